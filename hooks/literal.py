"""A language model on explicit attention maps: slow, literal, independent of the engine.

Every map is built in full, softmax(scale Q K' + mask), and edited as a method's formula reads; what
the fused forms give has to equal this. One unpadded prompt at a time; for methods that compare it
with the prompt without its image, whole runs of both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, scored
from regaze.hooks.passes import Picture

NAME = "regaze_literal_maps"
STRUCTURE = {
    "mistral3": ("[IMG_BREAK]",),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<row_", "\n"),
    "idefics3": ("<fake_token_around_image>", "<global-img>", "<row_", "\n"),
}
"""Beginnings of tokens that stand between the patches of one picture, and so are no text."""


@dataclass(frozen=True)
class Map:
    """What the rows and columns of a layer's whole attention map are.

    Q rows of the block that is read now, K columns of all that was read or generated so far.

    Attributes:
        layer: Layer index.
        seen: Bool "1 1 Q K": what the model's own mask shows to each row.
        image: Bool "1 1 1 K": image patches.
        system: Bool "1 1 1 K": text before the first image.
        structure: Bool "1 1 1 K": row ends and tile marks inside images.
        prompt: Bool "1 1 1 K": what was read, not generated.
        text: Bool "1 1 Q 1": text rows after an image, generated ones included.
        last: Bool "1 1 Q 1": the row that predicts the next token, if there is an image.
        hidden: "1 K E": the residual stream that enters the layer, of all columns.
    """

    layer: int
    seen: Tensor
    image: Tensor
    system: Tensor
    structure: Tensor
    prompt: Tensor
    text: Tensor
    last: Tensor
    hidden: Tensor


def _same(scores: Tensor, map_: Map) -> Tensor:
    return scores


@dataclass(frozen=True)
class MapForm:
    """A method that edits attention maps.

    Attributes:
        layers: Where.
        edit: ``edit(scores, map)``: scaled logits "1 H Q K" (float32, before the mask) to edited
            ones; what isn't seen stays so.
        weigh: ``weigh(weights, scores, map)``: softmax weights "1 H Q K", and the scores that they
            were made of, to edited weights, whose rows needn't sum to 1.
    """

    layers: Collection[int]
    edit: Callable[[Tensor, Map], Tensor] = _same
    weigh: Callable[[Tensor, Tensor, Map], Tensor] | None = None


@dataclass(frozen=True)
class OutputForm:
    """A method that edits what heads put out, behind all edits of their maps.

    Attributes:
        layers: Where.
        edit: ``edit(outputs, map)``: "1 H Q D" in float32, before the output projection.
    """

    layers: Collection[int]
    edit: Callable[[Tensor, Map], Tensor]


@dataclass(frozen=True)
class HeadForm:
    """A method that scales heads by how they react to the image, one layer after the other.

    Attributes:
        layers: Where.
        factors: ``factors(seen, blind)``: from the heads' outputs at the prompt's last position,
            "H D" each, with and without the image, to one factor per head, "H".
        removed: Whether the image's tokens are taken out of the prompt ("drop"), or hidden in
            their places ("mask").
    """

    layers: Collection[int]
    factors: Callable[[Tensor, Tensor], Tensor]
    removed: Literal["drop", "mask"] = "drop"


@dataclass(frozen=True)
class Probe:
    """What a run of the plain prompt shows.

    Attributes:
        scores: "1 V", of the last row.
        weights: Of each layer asked for, "1 H Q K".
        ahead: Of each decode step on the likeliest tokens, as many as were asked for unless the
            answer ends before, the same "1 H 1 K".
        ids: The prompt's token ids.
        image: Which of its columns are image patches.
        structure: Which are row ends and tile marks inside images.
        processor: The model's processor, if it is known.
        pictures: What the vision tower was given, if it was looked at.
        eyes: How many layers it has.
        maps: Its rows' weights "H R N", by layer and picture.
    """

    scores: Tensor
    weights: Mapping[int, Tensor]
    ids: Sequence[int]
    image: Sequence[bool]
    structure: Sequence[bool]
    processor: Any
    pictures: Sequence[Picture] = ()
    eyes: int = 0
    maps: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    ahead: Sequence[Mapping[int, Tensor]] = ()

    def seen_by(self, layer: int, picture: int) -> Tensor:
        """Weights "H R N" of the vision tower's rows."""
        return self.maps[layer, picture]


@dataclass(frozen=True)
class ProbeForm:
    """A method that runs the whole prompt unedited before it says what it does to it.

    Attributes:
        act: ``act(probe)``: what it then does in a second run of the prompt.
        layers: Whose maps it looks at.
        looks_at: Rows of the vision tower that it looks at.
        looks_ahead: How many tokens it lets the plain model answer greedily.
    """

    act: Callable[[Probe], MapForm]
    layers: Collection[int] = ()
    looks_at: Literal["class", "all"] | None = None
    looks_ahead: int = 0


Form = MapForm | OutputForm | HeadForm | ScoreForm | ProbeForm


@dataclass(frozen=True)
class Prompt:
    """What the columns of one prompt hold."""

    image: list[bool]
    system: list[bool]
    structure: list[bool]

    @property
    def last(self) -> int:
        """Position of the row that predicts the first new token."""
        return len(self.image) - 1

    def is_text(self, position: int) -> bool:
        """Whether a row is text after an image, in the prompt or generated."""
        if position > self.last:
            return any(self.image)
        before = any(self.image[:position])
        return before and not self.image[position] and not self.structure[position]


def read(host: Host, inputs: Mapping[str, Any]) -> Prompt:
    """Tell the columns of an unpadded prompt from its tokens.

    Raises:
        ValueError: It is more than one prompt.
    """
    if len(inputs["input_ids"]) != 1:
        raise ValueError("literal forms run one prompt at a time, without padding")
    ids: list[int] = inputs["input_ids"][0].tolist()
    image = [i in host.image_ids for i in ids]
    if not any(image):
        return Prompt(image, image, image)
    first = image.index(True)
    end = len(image) - image[::-1].index(True)
    marks = STRUCTURE.get(host.model_type, ())
    tokenizer = getattr(host.processor, "tokenizer", host.processor)
    tokens = tokenizer.convert_ids_to_tokens(ids) if marks and tokenizer else [""] * len(ids)
    structure = [
        bool(marks) and first < at < end and not image[at] and token.startswith(marks)
        for at, token in enumerate(tokens)
    ]
    return Prompt(image, [at < first for at in range(len(ids))], structure)


@dataclass(eq=False)
class Pass:
    """One run of the text tower: the prompt, then what is generated.

    Attributes:
        prompt: What the prompt's columns hold.
        forms: Edits of maps and of heads' outputs, in order.
        factors: Per layer, one factor per head.
        end: Columns so far, those of the current block included.
        start: Columns before the current block.
        was_read: Of each column, whether it was read (in a block of several) or generated.
        hidden: Per layer, what entered it, of all columns.
        heads: Per layer, the prompt's last head outputs "H D", before the factors.
        last: Per layer, the weights "H T" of the prompt's last row.
        maps: How many maps were built.
        row: The row that ``heads`` are of.
        looks: Layers whose maps are kept.
        weights: Those maps, of the block that was run last.
        blocks: Those maps of all blocks.
    """

    prompt: Prompt
    forms: Sequence[MapForm | OutputForm]
    factors: Mapping[int, Tensor]
    end: int = 0
    start: int = 0
    was_read: list[bool] = field(default_factory=list)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    last: dict[int, Tensor] = field(default_factory=dict)
    maps: int = 0
    row: int = -1
    looks: Collection[int] = ()
    weights: dict[int, Tensor] = field(default_factory=dict)
    blocks: list[dict[int, Tensor]] = field(default_factory=list)

    def count(self, tower: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note a block that enters the tower; all layers are to compute all its rows."""
        if _passes[-1] is not self:
            return None  # A run of its own, inside of this one.
        embeds = kwargs.get("inputs_embeds")
        given: Any = embeds if embeds is not None else kwargs.get("input_ids", *args[:1])
        cache = kwargs.get("past_key_values")
        self.start = int(cache.get_seq_length()) if cache is not None else 0
        self.end = self.start + given.shape[1]
        self.was_read = self.was_read[: self.start] + [given.shape[1] > 1] * given.shape[1]
        if self.looks:
            self.weights = {}
            self.blocks.append(self.weights)
        return args, {k: v for k, v in kwargs.items() if k != "logits_to_keep"}

    def look(self, layer: int, hidden: Tensor) -> None:
        """Keep what enters a layer."""
        if _passes[-1] is not self:
            return
        if self.start:
            # Columns come last but one, after the streams of a tower that has several.
            before = self.hidden[layer][..., : self.start, :].to(hidden)
            hidden = torch.cat([before, hidden], -2)
        self.hidden[layer] = hidden

    def edit(self, layer: int, scores: Tensor, seen: Tensor) -> Tensor:
        """The edits on a layer's map.

        Args:
            layer: Layer index.
            scores: "1 H Q K".
            seen: Bool "1 1 Q K".
        """
        forms = [f for f in self.forms if isinstance(f, MapForm) and layer in f.layers]
        if not forms:
            return scores
        # A sliding window's first columns are gone: they count as unseen.
        gone = self.end - scores.shape[-1]
        scores, seen = pad(scores, (gone, 0)), pad(seen, (gone, 0))
        about = self._map(layer, seen)
        for form in forms:
            scores = form.edit(scores, about)
        return scores[..., gone:]

    def weigh(self, layer: int, weights: Tensor, scores: Tensor, seen: Tensor) -> Tensor:
        """The edits of a layer's weights "1 H Q K"."""
        edits = [f for f in self.forms if isinstance(f, MapForm) and layer in f.layers]
        forms = [form.weigh for form in edits if form.weigh is not None]
        if not forms:
            return weights
        gone = self.end - scores.shape[-1]
        weights, scores, seen = (pad(x, (gone, 0)) for x in (weights, scores, seen))
        about = self._map(layer, seen)
        for weigh in forms:
            weights = weigh(weights, scores, about)
        return weights[..., gone:]

    def edit_outputs(self, layer: int, out: Tensor, seen: Tensor) -> Tensor:
        """The edits on what a layer's heads put out, "1 H Q D"."""
        for form in self.forms:
            if isinstance(form, OutputForm) and layer in form.layers:
                gone = self.end - seen.shape[-1]
                out = form.edit(out, self._map(layer, pad(seen, (gone, 0))))
        return out

    def _map(self, layer: int, seen: Tensor) -> Map:
        more = [False] * (self.end - len(self.prompt.image))
        rows = range(self.start, self.end)
        last = [row == self.end - 1 and any(self.prompt.image) for row in rows]

        def mark(which: Sequence[bool]) -> Tensor:
            return torch.tensor(which, device=seen.device)

        return Map(
            layer,
            seen,
            mark([*self.prompt.image, *more][: self.end])[None, None, None],
            mark([*self.prompt.system, *more][: self.end])[None, None, None],
            mark([*self.prompt.structure, *more][: self.end])[None, None, None],
            mark(self.was_read)[None, None, None],
            mark([self.prompt.is_text(row) for row in rows])[None, None, :, None],
            mark(last)[None, None, :, None],
            self.hidden.get(layer, torch.empty(1, self.end, 0)).to(seen.device),
        )


_passes: list[Pass] = []


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    now, layer = _passes[-1], module.layer_idx
    now.maps += 1
    if s_aux is not None:
        raise NotImplementedError(
            f"layer {layer} has learned attention sinks beside its columns, which literal maps "
            "don't hold"
        )
    group = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query.float() @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    seen = torch.ones_like(scores[:, :1], dtype=torch.bool)
    if mask is not None:
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen & shown[..., : scores.shape[-1]]
    scores = now.edit(layer, scores, seen).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)  # A row may see nothing at all.
    weights = now.weigh(layer, weights, scores, seen)
    out = now.edit_outputs(layer, weights @ value, seen)
    if layer in now.looks:
        now.weights[layer] = weights
    if now.start == 0:
        now.heads[layer] = out[0, :, now.row].clone()
        now.last[layer] = weights[0, :, -1]
    if layer in now.factors:
        out = out * now.factors[layer].to(out)[None, :, None, None]
    return out.transpose(1, 2).to(query.dtype), weights


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def _running(host: Host, now: Pass) -> Iterator[Pass]:
    tower: Any = host.tower
    # Layers of different shapes have a config each.
    configs = {id(m.config): m.config for m in tower.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation_internal) for c in configs.values()]

    def looker(layer: int) -> Callable[..., None]:
        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            now.look(layer, args[0] if args else kwargs["hidden_states"])

        return look

    handles = [tower.register_forward_pre_hook(now.count, with_kwargs=True)]
    try:
        for index, layer in enumerate(tower.layers):
            handles.append(layer.register_forward_pre_hook(looker(index), with_kwargs=True))
        for config, _ in before:
            config._attn_implementation_internal = NAME
        _passes.append(now)
        yield now
    finally:
        if now in _passes:
            _passes.remove(now)
        for config, name in before:
            config._attn_implementation_internal = name
        for handle in handles:
            handle.remove()


@contextmanager
def literally(
    host: Host, inputs: Mapping[str, Any], forms: Sequence[Form | Sequence[Form]]
) -> Iterator[Pass]:
    """Run methods literally on one unpadded prompt, and on what is generated after it.

    Args:
        host: The model.
        inputs: The prompt that will be run, as for the model's ``forward``.
        forms: The methods' literal forms, in order, one or several of each; none runs the plain
            model on explicit maps.

    Raises:
        NotImplementedError: The model's attention can't be written as such maps.
        RuntimeError: Its attention never came here, so it isn't computed by transformers'
            interface.
    """
    prompt = read(host, inputs)
    each = [one for form in forms for one in (form if isinstance(form, Sequence) else [form])]
    each = [_acting(host, inputs, prompt, one) for one in each]
    edits = [form for form in each if isinstance(form, MapForm | OutputForm)]
    scores = [form for form in each if isinstance(form, ScoreForm)]
    factors: dict[int, Tensor] = {}
    for form in each:
        if isinstance(form, HeadForm) and any(prompt.image):
            factors = choose_factors(host, inputs, form, edits)
    removed = [i or s for i, s in zip(prompt.image, prompt.structure, strict=True)]

    def plain(count: int, forms: Sequence[MapForm] = ()) -> AbstractContextManager[Pass]:
        return _running(host, Pass(Prompt(*[[False] * count] * 3), forms, {}))

    with (
        _running(host, Pass(prompt, edits, factors)) as now,
        scored(host, inputs, removed, scores, now, plain),
    ):
        yield now
    if not now.maps:
        raise RuntimeError(
            f"{host.model_type} computed no attention by transformers' interface, so there are no "
            "maps to edit: its attention can't be switched to another implementation"
        )


def _acting(host: Host, inputs: Mapping[str, Any], prompt: Prompt, form: Form) -> Form:
    """What a form does, after the run that it may want to see first."""
    if not isinstance(form, ProbeForm) or not any(prompt.image):
        return form
    model: Any = host.model
    more: dict[str, Any] = {}
    with ExitStack() as held, torch.no_grad():
        if form.looks_at is not None:
            # Rows that are seen there are what the tower's own maps hold, as its tests show.
            from regaze.hooks.capture import capture

            eye = held.enter_context(capture(model, form.looks_at, tower="vision"))
        seen = held.enter_context(_running(host, Pass(prompt, [], {}, looks=form.layers)))
        if form.looks_ahead:
            told = {"max_new_tokens": form.looks_ahead, "do_sample": False, "num_beams": 1}
            model.generate(**inputs, **told)
            more["ahead"] = seen.blocks[1:]
        scores = model(**inputs).logits[:, -1].float()
        if form.looks_at is not None:
            maps = {(one.layer, one.picture): one.weights for one in eye.captured}
            more |= {"pictures": eye.pictures, "maps": maps, "eyes": 1 + max(maps)[0]}
    ids = inputs["input_ids"][0].tolist()
    return form.act(
        Probe(scores, seen.weights, ids, prompt.image, prompt.structure, host.processor, **more)
    )


def choose_factors(
    host: Host,
    inputs: Mapping[str, Any],
    form: HeadForm,
    edits: Sequence[MapForm | OutputForm] = (),
) -> dict[int, Tensor]:
    """The factors of each layer's heads, by two whole runs per layer, reinforced so far."""
    factors: dict[int, Tensor] = {}
    for layer in sorted(form.layers):
        seen, blind = compare_prompts(host, inputs, form.removed, edits, factors)
        factors = {**factors, layer: form.factors(seen[layer], blind[layer])}
    return factors


def compare_prompts(
    host: Host,
    inputs: Mapping[str, Any],
    removed: Literal["drop", "mask"],
    edits: Sequence[MapForm | OutputForm] = (),
    factors: Mapping[int, Tensor] | None = None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Last-row head outputs "H D" per layer: of the prompt, and of it without its image tokens."""
    prompt = read(host, inputs)
    with _running(host, Pass(prompt, edits, factors or {})) as seen:
        positions = _positions(host, inputs)
    kept = [not (i or s) for i, s in zip(prompt.image, prompt.structure, strict=True)]
    # Windows count hidden columns, too; states of layers without attention must not see them.
    stays = removed == "mask" and _slides(host, len(kept))
    count = len(kept) if stays else sum(kept)
    text = Prompt(*[[False] * count] * 3)
    # Without an image at its end, a prompt ends with the text before it.
    last = max(at for at, text_here in enumerate(kept) if text_here) if stays else -1
    with _running(host, Pass(text, [], factors or {}, row=last)) as blind:
        at = None if removed == "drop" else positions
        _run_text(host, inputs["input_ids"], torch.tensor(kept), at, stays)
    return seen.heads, blind.heads


@torch.no_grad()
def _positions(host: Host, inputs: Mapping[str, Any]) -> Tensor:
    """Run the prompt; the positions that the model numbered its columns with."""
    noted: list[Tensor] = []

    def note(tower: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("position_ids")
        length = inputs["input_ids"].shape[1]
        noted.append(torch.arange(length)[None] if given is None else given)

    handle = host.tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        host.model(**inputs)
    finally:
        handle.remove()
    return noted[0]


def _slides(host: Host, length: int) -> bool:
    """Whether some layer's window or chunk is shorter than a prompt."""
    return any(site.window is not None and site.window < length for site in host.sites)


@torch.no_grad()
def _run_text(host: Host, ids: Tensor, kept: Tensor, positions: Tensor | None, stays: bool) -> None:
    """Run the prompt with its image tokens taken out, or hidden in their places.

    Args:
        host: The model.
        ids: "1 T", the whole prompt.
        kept: Bool "T", what isn't the image's.
        positions: Positions "... T" that the rest keeps; None numbers it anew.
        stays: Whether the image's tokens stay as hidden columns.
    """
    kept = kept.to(ids.device)
    options: dict[str, Any] = {}
    if positions is not None:
        at = positions.to(ids.device) if stays else positions.to(ids.device)[..., kept]
        # Without a mask, a gap between positions would be read as the start of another text.
        mask = kept[None].long() if stays else torch.ones_like(ids[:, kept])
        options = {"attention_mask": mask, "position_ids": at}
    if stays:
        ids = ids.masked_fill(~kept, 0)
    else:
        ids, kept = ids[:, kept], kept[kept]
    if host.model_type == "paligemma":  # Its prompts see all of themselves.
        seen = torch.zeros(1, 1, len(kept), len(kept), device=ids.device)
        options["attention_mask"] = seen.masked_fill(~kept, torch.finfo(seen.dtype).min)
    host.tower(input_ids=ids, **options)
