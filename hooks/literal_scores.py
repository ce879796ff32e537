"""Edits of next-token scores, the literal way.

For each token the text so far is run anew on other inputs: no cache, no second run that keeps step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from regaze.hooks.host import Host

_TYPES = ("token_type_ids", "mm_token_type_ids")


class _Run(Protocol):
    """A literal run that is under way."""

    start: int
    hidden: dict[int, Tensor]
    last: dict[tuple[int, int], Tensor]


@dataclass(frozen=True)
class Whole:
    """A prompt and what was generated after it, to be run anew.

    Attributes:
        host: The model.
        inputs: The prompt.
        kept: Bool "T": which of its columns are no image's.
        generated: "1 G" token ids.
        hidden: Per layer, the residual stream "1 K E" that entered it in the main run.
        last: Per layer, the weights "H T" of the prompt's last row in the main run, as the methods
            before this one left them.
        plain: Makes a context in which the text tower runs a number of columns, unedited or with
            edits of its maps.
    """

    host: Host
    inputs: Mapping[str, Any]
    kept: Tensor
    generated: Tensor
    hidden: Mapping[int, Tensor]
    last: Mapping[int, Tensor]
    plain: Callable[..., Any]

    @property
    def has_image(self) -> bool:
        """True if the prompt has an image."""
        return not bool(self.kept.all())

    def without_image(self) -> Tensor:
        """Scores "1 V" after the same text without its image."""
        ids: Tensor = self.inputs["input_ids"]
        text = ids[:, self.kept.to(ids.device)]
        given: dict[str, Any] = {"input_ids": text}
        given |= {name: torch.zeros_like(text) for name in _TYPES if name in self.inputs}
        return self.after(given)

    def after(
        self,
        prompt: Mapping[str, Any],
        enter: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        forms: Sequence[Any] = (),
    ) -> Tensor:
        """Scores "1 V" after another prompt and the same generated tokens.

        Args:
            prompt: The model's arguments for it.
            enter: Changes the text tower's arguments.
            forms: `regaze.hooks.literal.MapForm`s that edit its maps; no column counts as an
                image's there.
        """
        given = {name: value for name, value in prompt.items() if name != "labels"}
        length, new = given["input_ids"].shape[1], self.generated
        # A generated image token is text here: models would look for a picture of its own.
        odd = torch.isin(new, torch.tensor(sorted(self.host.image_ids), device=new.device))
        given["input_ids"] = torch.cat([given["input_ids"], new.masked_fill(odd, 0)], 1)
        if "attention_mask" in given:
            given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(new)], 1)
        for name in _TYPES:
            if name in given:
                # PaliGemma's prompts see all of themselves.
                mark = torch.ones_like if self.host.model_type == "paligemma" else torch.zeros_like
                given[name] = torch.cat([given[name], mark(new)], 1)

        def change(tower: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            if bool(odd.any()) and isinstance(kwargs.get("inputs_embeds"), Tensor):
                written = tower.get_input_embeddings()(new)
                embeds = kwargs["inputs_embeds"].clone()
                embeds[:, length:] = torch.where(odd[..., None], written, embeds[:, length:])
                kwargs = {**kwargs, "inputs_embeds": embeds}
            return args, kwargs if enter is None else dict(enter(kwargs))

        model: Any = self.host.model
        with ExitStack() as held, self.plain(length + new.shape[1], forms), torch.no_grad():
            held.callback(
                self.host.tower.register_forward_pre_hook(change, with_kwargs=True).remove
            )
            found: Tensor = model.forward(**given, use_cache=False).logits[:, -1]
        return found.float()


@dataclass(frozen=True)
class ScoreForm:
    """A method that changes next-token scores.

    Attributes:
        edit: ``edit(scores, whole)``: scores "1 V" of the last row, to those that take their place.
    """

    edit: Callable[[Tensor, Whole], Tensor]


@contextmanager
def scored(
    host: Host,
    inputs: Mapping[str, Any],
    removed: Sequence[bool],
    forms: Sequence[tuple[ScoreForm, int]],
    now: _Run,
    plain: Callable[[int], Any],
) -> Iterator[None]:
    """Change the scores of the runs inside.

    Args:
        host: The model.
        inputs: The prompt.
        removed: Mask of the prompt's columns that are the image's.
        forms: The methods, in order, and how many edits of maps come before each.
        now: The run; its ``start`` is the number of columns before a block.
        plain: Makes a context in which the text tower runs a number of columns unedited.
    """
    if not forms:
        with nullcontext():
            yield
        return
    kept = ~torch.tensor(removed, device="cpu")
    ids = torch.empty(1, 0, dtype=torch.long, device="cpu")

    def change(module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        nonlocal ids
        block = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        ids = torch.cat([ids.to(block)[:, : now.start], block], 1)
        new, hidden = ids[:, len(kept) :], dict(now.hidden)
        scores = output.logits[:, -1].float()
        for form, before in forms:
            last = {layer: row for (count, layer), row in now.last.items() if count == before}
            scores = form.edit(scores, Whole(host, inputs, kept, new, hidden, last, plain))
        output.logits = torch.cat([output.logits[:, :-1], scores[:, None].to(output.logits)], 1)
        return output

    handle = host.model.register_forward_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
