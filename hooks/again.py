"""A second run of a prompt's last row, once its prediction is known.

Some methods decide by the prediction of the unedited prompt, or by maps of later layers than those
they edit, what to do to the row that makes it. Rows before it don't depend on it, so it alone is
run again, over the keys and values of the first run: the cost of a decode step instead of a second
prompt. Its new keys and values take the place of the old ones in the cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from regaze.hooks.attention import visible_columns
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit, overrides
from regaze.hooks.passes import Pass
from regaze.hooks.rows import RowJob, Stages
from regaze.hooks.running import Running
from regaze.hooks.tally import Entry
from regaze.hooks.tokens import Kind

SHOWN = ("hidden_states", "router_logits")
"""What an output may hold of all rows, by ``output_hidden_states=True`` and the like."""
_PLAIN = ("DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer")


def shown(output: Any) -> list[str]:
    """Those of `SHOWN` that an output of a model holds."""
    return [name for name in SHOWN if getattr(output, name, None)]


@dataclass(eq=False)
class Again:
    """A second run of the last rows of a prompt: the prompt's own, and those of drafts behind it.

    Attributes:
        first: The first run.
        pass_: Pass of this second run, marked as run again.
        samples: Bool "B": which prompts take what comes out.
        offsets: Per layer, the prompt column of key 0.
        cache: Separate cache of these rows alone.
        apart: As in `Running`: nothing runs apart here.
        weights: Per layer, the rows' weights "B H R K", where the model gives them out.
    """

    first: Running
    pass_: Pass
    samples: Tensor
    offsets: Mapping[int, int]
    cache: Any = None
    null: None = None
    apart: dict[nn.Module, Any] = field(default_factory=dict)
    weights: dict[int, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, first: Running, samples: Tensor) -> Again:
        """Make the second run of a first one that has kept its attention calls."""
        pass_ = replace(first.pass_, again=True)
        return cls(first, pass_, samples, first.offsets)

    @property
    def rows(self) -> Tensor:
        """The rows of the block that are run again, "B R"."""
        return self.pass_.scored(self.pass_.length)

    def inputs(
        self, given: Mapping[str, Any], config: Any, cache: str, more: Collection[str] = ()
    ) -> dict[str, Any]:
        """Arguments of the model's ``forward``.

        Args:
            given: The first run's arguments.
            config: The text tower's config.
            cache: Name of the model's argument for its cache.
            more: Those of `SHOWN` that the first run's output holds.

        Raises:
            NotImplementedError: The first run was given neither token ids nor embeddings, or a
                row is a picture's.
        """
        rows, length = self.rows, self.pass_.length
        image = self.pass_.tokens.is_kind(Kind.IMAGE)[:, -length:].gather(1, rows).any(1)
        if bool((image & self.samples.cpu()).any()):
            # What stands there isn't its token's embedding.
            raise NotImplementedError(
                "this method runs the last token of a prompt again, and a prompt ends with its "
                "picture: put text behind it"
            )
        entered = [(name, given.get(name)) for name in ("inputs_embeds", "input_ids")]
        tokens = [(n, v) for n, v in entered if isinstance(v, Tensor) and v.shape[1] >= length]
        if not tokens:
            raise NotImplementedError(
                "this method runs the last token of a prompt again, and the model was given "
                "neither input_ids nor inputs_embeds"
            )
        name, entering = tokens[0]
        at = rows.to(entering.device)
        index = at if entering.ndim == 2 else at[..., None].expand(-1, -1, entering.shape[-1])
        entering = entering[:, -length:].gather(1, index)
        positions = self.first.positions
        if positions is None:
            positions = at + self.pass_.past
        else:
            at = rows.to(positions.device).expand(*positions.shape[:-2], -1, -1)
            whole = positions.expand(*positions.shape[:-2], len(rows), -1)
            positions = whole.gather(-1, at)
        self.cache = DynamicCache(config=config)
        found = {
            name: entering,
            "position_ids": positions,
            cache: self.cache,
            "use_cache": True,
            "return_dict": True,
        }
        found |= {f"output_{name}": True for name in more}
        types = [name for name, v in given.items() if name.endswith("token_type_ids")]
        return found | {n: torch.zeros_like(at) for n in types if given[n] is not None}

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """Attend with the rows to the first run's keys and values, edited as in a whole second run.

        What edits scale heads by, and what they found in the prompt, is that of the first run.

        Raises:
            NotImplementedError: Other rows see these, so they would change, too.
        """
        kept, rows = self.first.kept[layer], self.rows.to(call.key.device)
        offset = self.offsets.get(layer, 0)
        self._refuse_seen(layer, kept, rows)
        columns = rows + self.pass_.past - offset
        key = self._with(kept.key, call.key, columns)
        value = self._with(kept.value, call.value, columns)
        entries = self.first.by_layer.get(layer, ())
        works: list[tuple[Entry[Edit, int], Edit]] = [(e, self.first.works[e]) for e in entries]
        edits = [
            (entry, work)
            for entry, work in works
            if work.rows
            and (work.reads_again or not work.reads_only)
            and work.active(layer, self.pass_)
        ]
        plan = self.pass_.last_plan(call.query.device)
        over = replace(kept, key=key, value=value)
        asked = self.first.prompt.asked
        job = RowJob(
            over, Stages.of(edits), plan, layer, self.pass_, offset, asked, query=call.query
        )
        done = job.run()
        self.weights[layer], out = done.weights, done.out
        for entry, work in works:
            if overrides(work, "scale_heads"):
                factor = self.first.factor(layer, entry)
                out = out if factor is None else out * factor[:, None, :, None].to(out.dtype)
        return out.to(call.query.dtype), None

    def show(self, layer: int, hidden: Tensor) -> None:
        """Show a layer's input "B R E" to the edits that see those of single rows."""
        for entry in self.first.by_layer.get(layer, ()):
            edit = self.first.works[entry]
            if overrides(edit, "see_hidden") and (edit.sees_decoding or edit.reads_again):
                with torch.no_grad():
                    edit.see_hidden(layer, hidden, self.pass_)

    def answer(self, output: Any, scores: Tensor, new: Any) -> Tensor:
        """The scores "B R V" of both runs, where each counts.

        Attention maps, and what else the output shows of these rows, change likewise.

        Args:
            output: Output of the model in the first run.
            scores: Scores of the last rows in the first run.
            new: Output of the model in the second run.
        """
        chosen = self.samples.to(scores.device)
        maps = getattr(output, "attentions", None)
        if maps and all(isinstance(one, Tensor) for one in maps):
            rows = self.rows.to(maps[0].device)[:, None, :, None]
            output.attentions = tuple(
                self._map(one, rows, self.weights.get(layer)) for layer, one in enumerate(maps)
            )
        for name in shown(output):
            pairs = zip(output[name], new[name], strict=True)
            output[name] = tuple(self._shown(old, own) for old, own in pairs)
        new = new.logits[:, -self.pass_.n_last :].to(scores)
        return torch.where(chosen[:, None, None], new, scores)

    def _map(self, old: Tensor, rows: Tensor, new: Tensor | None) -> Tensor:
        if new is None:
            return old
        index = rows.expand(*new.shape[:3], old.shape[-1])
        chosen = self.samples.to(old.device)[:, None, None, None]
        return old.scatter(2, index, torch.where(chosen, new.to(old), old.gather(2, index)))

    def _shown(self, old: Tensor, new: Tensor) -> Tensor:
        """Return "... B T E", or "BT E" as routers have it, with new rows."""
        if old.ndim == 2:
            rows = [x.unflatten(0, (len(self.samples), -1)) for x in (old, new)]
            return self._shown(*rows).flatten(0, 1)
        index = self.rows.to(old.device)[..., None].expand(new.shape)
        chosen = self.samples.to(old.device)[:, None, None]
        return old.scatter(-2, index, torch.where(chosen, new.to(old), old.gather(-2, index)))

    def _with(self, old: Tensor, new: Tensor, columns: Tensor) -> Tensor:
        """Return keys or values "B G K D" with the new ones at columns "B R"."""
        index = columns[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
        chosen = self.samples.to(old.device)[:, None, None, None]
        return old.scatter(2, index, torch.where(chosen, new.to(old), old.gather(2, index)))

    def store(self) -> None:
        """Put the new keys and values into the first run's cache.

        Raises:
            NotImplementedError: A kind of cache into which they can't be put.
        """
        cache = self.first.cache
        if cache is None or self.cache is None:
            return
        columns, total = self.rows + self.pass_.past, self.pass_.past + self.pass_.length
        for held, new in zip(cache.layers, self.cache.layers, strict=False):
            if new.keys is None:
                continue  # A layer that shares another one's.
            plain = any(kind.__name__ in _PLAIN for kind in type(held).__mro__)
            # Quantised layers are dynamic ones that keep most columns elsewhere.
            if not plain or hasattr(held, "_quantized_keys"):
                raise NotImplementedError(
                    "this method runs the last token of a prompt again, and can't put its keys "
                    f"into a cache of {type(held).__name__}; use a dynamic or static one"
                )
            for name in ("keys", "values"):
                old = getattr(held, name)
                # A sliding window keeps the last ones, which may be padding behind these.
                gone = max(0, total - old.shape[2])
                whole = nn.functional.pad(old, (0, 0, gone, 0))
                made = self._with(whole, getattr(new, name), columns.to(old.device))[:, :, gone:]
                if held.is_compileable:
                    old.copy_(made)  # A static cache's tensors stay where they are.
                else:
                    setattr(held, name, made)

    def _refuse_seen(self, layer: int, kept: Call, rows: Tensor) -> None:
        mask = kept.mask
        if not isinstance(mask, Tensor) or mask.ndim != 4 or self.pass_.length == rows.shape[1]:
            return
        before = (rows[:, :1] - 1).clamp(min=0)
        seen, _ = visible_columns(
            mask, before, kept.key.shape[2], query_offset=0, causal=True, window=None
        )
        column = rows[:, :1] + self.pass_.past - self.offsets.get(layer, 0)
        if seen is not None and bool(seen[:, 0].gather(2, column[:, None]).any()):
            raise NotImplementedError(
                "this method runs the last token of a prompt again, but this model's prompts see "
                "all of themselves, so that all of it would have to run again; a mask of one's own "
                "hides columns by -inf or torch.finfo(dtype).min, and -1e9 is a bias like any other"
            )


def keeps_calls(works: Iterable[Edit], pass_: Pass) -> bool:
    """Return whether a pass ends a prompt whose last row may have to run again."""
    ends = pass_.prompt_end and pass_.tokens.generated == 0
    looking = ends and any(work.looks_back for work in works)
    return looking and bool(pass_.tokens.has_image.any())
