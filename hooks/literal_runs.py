"""A language model run as methods' literal forms say: slow, literal, independent of the engine.

One unpadded prompt at a time; for methods that compare it with the prompt without its image, whole
runs of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.hooks.host import Host
from regaze.hooks.literal import Form, HeadForm, MapForm, OutputForm, Probe, ProbeForm
from regaze.hooks.literal_maps import Pass, running
from regaze.hooks.literal_prompt import Prompt, read
from regaze.hooks.literal_scores import ScoreForm, scored


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
    factors: dict[int, Tensor] = {}
    if any(prompt.image):
        for number, form in enumerate(each):
            if isinstance(form, ProbeForm) and not form.again:
                each[number] = _acting(host, inputs, prompt, each, form, {})
        first = list(each)
        for form in first:
            if isinstance(form, HeadForm):
                factors = choose_factors(host, inputs, form, _edits_of(first))
        for number, form in enumerate(first):
            if isinstance(form, ProbeForm):
                each[number] = _acting(host, inputs, prompt, first, form, factors)
    edits = _edits_of(each)
    # What a method of scores reads of attention is what the methods before it left.
    scores = [
        (form, len(_edits_of(each[:number])))
        for number, form in enumerate(each)
        if isinstance(form, ScoreForm)
    ]
    removed = [i or s for i, s in zip(prompt.image, prompt.structure, strict=True)]

    def plain(count: int, forms: Sequence[MapForm] = ()) -> AbstractContextManager[Pass]:
        return running(host, Pass(Prompt(*[[False] * count] * 3), forms, {}))

    with (
        running(host, Pass(prompt, edits, factors, reads={n for _, n in scores})) as now,
        scored(host, inputs, removed, scores, now, plain),
    ):
        yield now
    if not now.maps:
        raise RuntimeError(
            f"{host.model_type} computed no attention by transformers' interface, so there are no "
            "maps to edit: its attention can't be switched to another implementation"
        )


def _edits_of(forms: Sequence[Form]) -> list[MapForm | OutputForm]:
    return [form for form in forms if isinstance(form, MapForm | OutputForm)]


def _acting(
    host: Host,
    inputs: Mapping[str, Any],
    prompt: Prompt,
    forms: Sequence[Form],
    form: ProbeForm,
    factors: Mapping[int, Tensor],
) -> MapForm:
    """Return the form that acts, after a run of the prompt as the other methods leave it."""
    beside, before = _edits_of(forms), len(_edits_of(forms[: forms.index(form)]))
    model: Any = host.model
    more: dict[str, Any] = {}
    with ExitStack() as held, torch.no_grad():
        if form.looks_at is not None:
            # Rows that are seen there are what the tower's own maps hold, as its tests show.
            from regaze.hooks.capture import capture

            eye = held.enter_context(capture(model, form.looks_at, tower="vision"))
        now = Pass(prompt, beside, factors, looks=form.layers, before=before)
        seen = held.enter_context(running(host, now))
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
    prompt = read(host, inputs)
    if all(i or s for i, s in zip(prompt.image, prompt.structure, strict=True)):
        return factors  # Nothing to compare with is left.
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
    with running(host, Pass(prompt, edits, factors or {})) as seen:
        positions = _positions(host, inputs)
    kept = [not (i or s) for i, s in zip(prompt.image, prompt.structure, strict=True)]
    # Windows count hidden columns, too; states of layers without attention must not see them.
    stays = removed == "mask" and _slides(host, len(kept))
    count = len(kept) if stays else sum(kept)
    text = Prompt(*[[False] * count] * 3)
    # Without an image at its end, a prompt ends with the text before it.
    last = max(at for at, text_here in enumerate(kept) if text_here) if stays else -1
    with running(host, Pass(text, [], factors or {}, row=last)) as blind:
        at = None if removed == "drop" else positions
        _run_text(host, inputs["input_ids"], torch.tensor(kept, device="cpu"), at, stays)
    return seen.heads, blind.heads


@torch.no_grad()
def _positions(host: Host, inputs: Mapping[str, Any]) -> Tensor:
    """Run the prompt; the positions that the model numbered its columns with."""
    noted: list[Tensor] = []

    def note(tower: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("position_ids")
        length = inputs["input_ids"].shape[1]
        noted.append(torch.arange(length, device="cpu")[None] if given is None else given)

    handle = host.tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        host.model(**inputs)
    finally:
        handle.remove()
    return noted[0]


def _slides(host: Host, length: int) -> bool:
    """Return whether some layer's window or chunk is shorter than a prompt."""
    return any(site.window is not None and site.window < length for site in host.sites)


@torch.no_grad()
def _run_text(host: Host, ids: Tensor, kept: Tensor, positions: Tensor | None, stays: bool) -> None:
    """Run the prompt with its image tokens taken out, or hidden in their places.

    Args:
        host: The model.
        ids: "1 T", the whole prompt.
        kept: Bool "T", what isn't the image's.
        positions: Positions "... T" that the rest keeps; None numbers it anew.
        stays: True if the image's tokens stay as hidden columns.
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
        seen = torch.zeros(1, 1, len(kept), len(kept), device=ids.device, dtype=torch.float32)
        options["attention_mask"] = seen.masked_fill(~kept, torch.finfo(seen.dtype).min)
    host.tower(input_ids=ids, **options)
