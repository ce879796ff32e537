"""`Edit`, the base class of what a method does inside a language model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from regaze.hooks.passes import Columns, Pass, RowPlan, Rows

if TYPE_CHECKING:
    from regaze.hooks.biases import ColumnBias
    from regaze.hooks.dispatch import Attention, Call, Stock


@dataclass(frozen=True)
class Branch:
    """A second run of the model beside the main one, whose next-token scores are combined with it.

    It has a cache of its own that stays in step with the main one's: what is generated goes through
    it too, what is rolled back is rolled back, and rows that move (beams) move in it.

    Attributes:
        inputs: Makes its arguments at the prompt from those of the model's call (of ``generate``,
            where that runs: pictures as they were given) and the main run's pass: another picture,
            another instruction, no picture (`regaze.hooks.second_runs.without_images`).
        combine: The main run's scores and the branch's, "B R V" float32 logits at the same rows,
            to the scores that take their place.
        edits: Edits of the branch; the main run's don't act on it.
        enter: Changes the arguments of its text tower at the prompt, after pictures were put among
            the text: ``enter(arguments, pass)``, where "inputs_embeds" are "B Q E".
    """

    inputs: Callable[[Mapping[str, Any], Pass], Mapping[str, Any]]
    combine: Callable[[Tensor, Tensor, Pass], Tensor]
    edits: tuple[Edit, ...] = ()
    enter: Callable[[Mapping[str, Any], Pass], Mapping[str, Any]] | None = None


class Edit:
    """The work of one bound method inside one model. Override what the method needs.

    Every forward pass works on a copy of what the pass before it left: many prompts may be under
    way at once, in threads or in turns, and a cache may be copied with what is known of its
    prompt. Attributes that are dicts, lists or sets are copied with it, one level deep; other
    objects are shared, so replace tensors rather than write into them. State belongs to one prompt
    and is dropped in `begin` when ``pass_.prompt_start``.

    Attributes:
        tower: Tower whose attention it edits: "text", or "vision" (`regaze.hooks.pictures`), which
            has no prompts: each of its runs is one pass, of ``pass_.pictures``.
        layers: Layers at which the edit acts.
        reads: Layers among them at which the edit only looks, and nothing is counted.
        rows: Query rows that `edit_logits` and `edit_outputs` get: "last" (last prompt row and
            decode rows), "question" (prompt text after the image), "text" (that and decode rows),
            "image" (the image's own), or None for no row edit. In the vision tower "class" (the
            class token's row of each picture), indices of each picture's rows, or "all", which
            costs a whole map: N x N a head.
        keeps_masked: `edit_logits` leaves -inf as it is, because it adds finite numbers or
            multiplies by positive ones; otherwise masked columns are masked once more behind it.
        sees_decoding: `see_hidden` is called in decode steps, and for rows that run again, too.
        reads_only: The edit only looks, in `see_rows`; the model's output stays as it is.
        reads_again: It looks at last rows that are run again, too, which count from then on.
        looks_ahead: Number of decode steps that are run, on the likeliest tokens and a copy of the
            prompt's cache, before `look_back`: passes with ``pass_.ahead``, in which everything
            that is attached acts, and whose state is dropped.
        null_prompt: True if prompts must also be run without their images; see `scale_heads`.
        branches: Second runs of the model, in the order in which they are combined.
        null_positions: Then "drop" renumbers positions as if the image tokens were not there,
            "mask" keeps them.
    """

    tower: Literal["text", "vision"] = "text"
    reads: frozenset[int] = frozenset()
    rows: Rows | None = None
    reads_only: bool = False
    reads_again: bool = False
    keeps_masked: bool = False
    sees_decoding: bool = False
    looks_ahead: int = 0
    null_prompt: bool = False
    null_positions: Literal["drop", "mask"] = "drop"
    branches: tuple[Branch, ...] = ()

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)

    def fork(self) -> Edit:
        """A copy with state of its own."""
        twin: Edit = object.__new__(type(self))  # What copy.copy does by way of pickling.
        held = vars(twin)
        held.update(vars(self))
        for name, value in held.items():
            if isinstance(value, (dict, list, set)):
                held[name] = value.copy()
        return twin

    def select(self, rows: Tensor) -> Edit:
        """Return the edit with its state of some batch rows only: override with state per row.

        Called when the rows of a cache change places (beams), are repeated or left out.

        Args:
            rows: "B'" indices, on the CPU; may repeat.

        Raises:
            NotImplementedError: There is state, and nothing says which row it belongs to.
        """
        held = [n for n, v in vars(self).items() if isinstance(v, (dict, list, set)) and v]
        if held:
            raise NotImplementedError(
                f"the rows of a prompt's cache were moved, and {type(self).__name__} doesn't say "
                f"how its {', '.join(held)} follow; override Edit.select"
            )
        return self

    def told(self) -> str:
        """Return a note for reports on how the edit ran; asked of the edit that was bound."""
        return ""

    def begin(self, pass_: Pass) -> None:
        """Prepare for a forward pass; drop the state of another prompt."""

    def see_hidden(self, layer: int, hidden: Tensor, pass_: Pass) -> None:
        """Read the residual stream "B Q E" entering a layer, before its norm.

        In decode steps only with ``sees_decoding``, and of last rows that run again (then they
        alone, "B R E") with that or ``reads_again``.
        Gradients don't flow through what is read.
        """

    def active(self, layer: int, pass_: Pass) -> bool:
        """Return whether `edit_logits` has anything to do here; False keeps the stock output."""
        return True

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        """Return edited logits "B H R K" (float32, -inf where masked); never in place."""
        return logits

    def move_weights(self, layer: int, weights: Tensor, columns: Columns) -> Tensor:
        """Return what `edit_logits` makes of the weights, "B H R K"; never in place.

        Optional: called instead of `edit_logits` where nothing looks at logits behind it, which
        spares a softmax. Rows must sum to what they did, and what is 0 stays 0.

        Args:
            layer: Layer index.
            weights: "B H R K" float32, the softmax of the logits.
            columns: Masks that tell the keys' kinds.
        """
        return weights

    def column_bias(self, layer: int, columns: Columns) -> ColumnBias | None:
        """Return what all rows of some heads add to their logits, or None.

        Called instead of `edit_logits` where it is overridden, with ``rows`` "last" or "latest";
        the other rows of a prompt are biased by a kernel. In rows that others edit too it acts in
        its turn.
        """
        return None

    def edit_weights(self, layer: int, weights: Tensor, logits: Tensor, columns: Columns) -> Tensor:
        """Return edited weights "B H R K", whose rows needn't sum to 1; never in place.

        Called instead of `edit_logits` where it is overridden, after all edits of logits.

        Args:
            layer: Layer index.
            weights: "B H R K" float32, 0 where masked.
            logits: "B H R K", what they are the softmax of.
            columns: Masks that tell the keys' kinds.
        """
        return weights

    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        """Return edited head outputs "B R H D" (float32) of the same rows; never in place.

        Called behind all edits of the rows' logits.
        """
        return out

    def takes(self, pass_: Pass) -> bool:
        """Return whether `take_over` is asked in a pass: by default in decode steps.

        Raises:
            NotImplementedError: The pass reads several generated tokens at once.
        """
        if pass_.n_last > 1:
            raise NotImplementedError(
                "an intervention that computes a decode step's attention itself (TidalDecode) "
                "takes one new token at a time: leave the assistant, prompt_lookup_num_tokens and "
                "use_cache=False out"
            )
        return pass_.decodes

    def take_over(self, layer: int, call: Call, stock: Stock) -> Attention | None:
        """Return the result of an attention call in place of the stock one's, or None.

        Asked for in the passes that `takes` names; nothing else may edit the layer then.
        """
        return None

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        """Look at the chosen rows' logits "B H R K"; called instead of `edit_logits`."""

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass
    ) -> Tensor | None:
        """Return a factor "B H" for all rows of each head's output, or None.

        Gradients don't flow through the factor.

        Args:
            layer: Layer index.
            out: "B Q H D", head outputs before the output projection.
            null: "B H D", the same at the last token of the prompt without its images; given on
                prompts with images of an edit with ``null_prompt``. That run gets the same factors.
                A sample of which nothing would be left has the prompt's own last row here.
            pass_: The block. In a vision tower that takes pictures one by one, or in windows, the
                one that this call is about.
        """
        return None

    def look_back(self, scores: Tensor, pass_: Pass) -> Tensor | None:
        """Say for which samples a prompt's last row is to be run again, edited otherwise.

        Called once, at the end of a prompt, with what its last row predicts so far; decide here
        what to do. Then the row is run again, with ``pass_.again``, and `edit_logits` gets it
        (and rows of drafts behind it). See `regaze.hooks.again`.

        Args:
            scores: "B V" float32 logits.
            pass_: The block.

        Returns:
            Bool "B", or None for none.
        """
        return None

    def edit_scores(self, scores: Tensor, pass_: Pass) -> Tensor:
        """Return edited next-token scores, after those of `branches` were combined with them.

        Args:
            scores: "B R V" float32 logits at the last row of the prompt or the new one, or where
                assisted decoding checks candidates at as many rows more.
            pass_: The block.
        """
        return scores

    @property
    def scores(self) -> bool:
        """True if the edit changes next-token scores."""
        return bool(self.branches) or overrides(self, "edit_scores")

    @property
    def looks_back(self) -> bool:
        """True if the edit may have a prompt's last row run again."""
        return bool(self.layers) and overrides(self, "look_back")

    @property
    def idle(self) -> bool:
        """True if the edit is a no-op by its settings."""
        return not self.layers and not self.scores


def as_works(bound: Edit | Sequence[Edit], label: str) -> tuple[Edit, ...]:
    """Return the result of a spec's ``bind`` as a tuple of works, which act together.

    Raises:
        TypeError: It gave something else, or nothing.
    """
    works = tuple(bound) if isinstance(bound, (tuple, list)) else (bound,)
    if not works or not all(isinstance(work, Edit) for work in works):
        raise TypeError(f"{label}: bind must give an Edit or a tuple of Edits, got {bound!r}")
    return works


def overrides(edit: Edit, method: str) -> bool:
    """Return whether an edit overrides a method of `Edit`."""
    return getattr(type(edit), method) is not getattr(Edit, method)
