"""Finding the heads that a method should act on: one at a time, by what a score says.

`rank_heads` is PASTA's profiling (arXiv 2311.02262, section 3.2: steer one head at a time, rank by
the gain on a task) for any method with a field ``heads``. `attribute_heads` is AD-HH's attribution
(TianyunYoung/Hallucination-Attribution@841fc1b, eval_scripts/eval_utils/head_attribution.py): how
much likelier a head makes hallucinated words than true ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.attach import attach
from regaze.hooks.caches import cache_name, find_cache
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host, find_host
from regaze.hooks.passes import Pass
from regaze.hooks.targets import split_target
from regaze.interventions.base import Intervention
from regaze.interventions.lvlm.heads import Pairs, choose_heads


@dataclass(frozen=True)
class Ranking:
    """Heads by a score.

    Attributes:
        scores: "L H" float64, by layer and head; NaN where a head wasn't tried.
    """

    scores: Tensor

    def best(self, count: int, lowest: bool = False) -> Pairs:
        """The heads of highest scores (or lowest), as a ``heads`` field takes them.

        Raises:
            ValueError: So many weren't tried.
        """
        tried = int((~self.scores.isnan()).sum())
        if not 0 < count <= tried:
            raise ValueError(f"{count} heads were asked for, and {tried} were tried")
        worst = torch.inf if lowest else -torch.inf
        flat = self.scores.nan_to_num(nan=worst).flatten()
        order = flat.argsort(descending=not lowest, stable=True)[:count].tolist()
        heads = self.scores.shape[1]
        return tuple((at // heads, at % heads) for at in order)


def check_rankable(spec: Intervention) -> None:
    """Check that a method can be tried on one head after the other.

    Raises:
        ValueError: It has no field ``heads``, chooses heads itself, lacks another field, or changes
            nothing as it is set.
    """
    heads = getattr(spec, "heads", "")
    if not hasattr(spec, "heads") or not hasattr(spec, "layers"):
        raise ValueError(f"{spec.name} doesn't act on listed heads: it has no field heads")
    if isinstance(heads, str) and heads != "all":
        raise ValueError(
            f"{spec.name} doesn't act on listed heads: it chooses them itself (heads={heads})"
        )
    one = _on(spec, 0, 0)
    one.check_given()
    if one == one.idle():
        raise ValueError(f"{spec.label} changes nothing on any head: set its strength")


def _on(spec: Intervention, layer: int, head: int) -> Intervention:
    """A method on one head."""
    fields: dict[str, Any] = {"heads": ((layer, head),), "layers": None}
    return replace(spec, **fields)


def rank_heads(
    target: Any,
    spec: Intervention,
    score: Callable[[], float],
    *,
    heads: Collection[tuple[int, int]] | None = None,
    layers: Collection[int] | None = None,
    processor: Any = None,
) -> Ranking:
    """Try a method on one head after the other: what each gains over the unedited model.

    Args:
        target: The model, or a pipeline.
        spec: The method; its ``heads`` and ``layers`` are replaced.
        score: Runs the model on the task and says how well it did; higher is better. Take data
            that isn't reported on.
        heads: Heads to try; by default all, of
        layers: these layers, by default of all that attend.
        processor: For `regaze.attach`.

    Raises:
        ValueError: See `check_rankable`; or a head doesn't exist.
    """
    check_rankable(spec)
    model, processor = split_target(target, processor)
    host = find_host(model, processor)
    given = None if heads is None else tuple(heads)
    named = None if layers is None else tuple(layers)
    _, where = choose_heads(spec.name, host, given or "all", named)
    tried = given or tuple((layer, head) for layer in where for head in range(host.n_heads))
    found = torch.full((host.n_layers, host.n_heads), torch.nan, dtype=torch.float64, device="cpu")
    before = score()
    for layer, head in tried:
        with attach(model, _on(spec, layer, head), processor=processor):
            found[layer, head] = score() - before
    return Ranking(found)


@dataclass(frozen=True)
class Caption:
    """A model's own answer, with the places of words that are known to be true or not.

    Attributes:
        inputs: The prompt, as for the model's ``forward``; one sample.
        answer: "A" token ids of the answer.
        hallucinated: The tokens that name what isn't in the picture, from 1: the first token of an
            answer is predicted by the prompt itself.
        true: The tokens that name what is.
    """

    inputs: Mapping[str, Any]
    answer: Tensor
    hallucinated: Collection[int]
    true: Collection[int]


def attribute_heads(target: Any, captions: Iterable[Caption], *, processor: Any = None) -> Ranking:
    """Each head's influence on hallucinated words, less that on true ones.

    The influence of a head on a word is ``log p - log p'``, with p' the word's probability when
    the head's output is set to zero in the row that predicts it; scores are its mean over
    hallucinated words less that over true words. Each word costs a decode step per layer, with a
    row for each head.

    Args:
        target: The model, or a pipeline.
        captions: Answers with their words; at least one of both kinds in all.
        processor: For `regaze.attach`.

    Raises:
        ValueError: No words of one kind, or a place that isn't in an answer.
    """
    model, processor = split_target(target, processor)
    host = find_host(model, processor)
    ablation = _Ablation(host)
    sums = {
        kind: torch.zeros(host.n_layers, host.n_heads, dtype=torch.float64, device="cpu")
        for kind in (True, False)
    }
    counts = {True: 0, False: 0}
    with attach(model, ablation, processor=processor), torch.no_grad():
        for caption in captions:
            for place, false in _words(caption):
                sums[false] += _influence(model, host, ablation, caption, place)
                counts[false] += 1
    if not counts[True] or not counts[False]:
        kind = "true" if counts[True] else "hallucinated"
        raise ValueError(f"no {kind} words were given, so there is nothing to compare with")
    difference = sums[True] / counts[True] - sums[False] / counts[False]
    attends = torch.zeros(host.n_layers, 1, dtype=torch.bool, device="cpu")
    attends[[site.layer for site in host.sites]] = True
    return Ranking(difference.masked_fill(~attends, torch.nan))


def _words(caption: Caption) -> list[tuple[int, bool]]:
    places = [(p, True) for p in caption.hallucinated] + [(p, False) for p in caption.true]
    for place, _ in places:
        if not 0 < place < len(caption.answer):
            raise ValueError(
                f"a word at place {place} of an answer of {len(caption.answer)} tokens: places go "
                f"from 1 to {len(caption.answer) - 1}"
            )
    return sorted(places)


def _influence(model: Any, host: Host, ablation: _Ablation, caption: Caption, place: int) -> Tensor:
    """Direct effect of each head on the log-probability of one word: "L H"."""
    ids = caption.answer.to(caption.inputs["input_ids"].device)[None]
    ablation.layer = None
    name = cache_name(model)
    cache = find_cache(model(**caption.inputs, use_cache=True))
    for at in range(place - 1):
        model(input_ids=ids[:, at : at + 1], **{name: cache})
    step, word = ids[:, place - 1 : place], int(ids[0, place])
    plain = model(input_ids=step, **{name: copy.deepcopy(cache)}).logits[0, -1]
    found = torch.zeros(host.n_layers, host.n_heads, dtype=torch.float64, device="cpu")
    cache.batch_repeat_interleave(host.n_heads)
    for site in host.sites:
        ablation.layer = site.layer
        rows = model(
            input_ids=step.expand(host.n_heads, -1), **{name: copy.deepcopy(cache)}
        ).logits[:, -1]
        change = plain.double().log_softmax(-1)[word] - rows.double().log_softmax(-1)[:, word]
        found[site.layer] = change.cpu()
    return found


class _Ablation:
    """Zeroes head h in batch row h, at one given layer; `attach` takes it as a method."""

    label, acts_on = "head ablation", Intervention.acts_on

    def __init__(self, host: Host) -> None:
        self.layer: int | None = None
        self._layers = [site.layer for site in host.sites]

    def resolve(self, host: Host) -> _Ablation:
        return self

    def bind(self, host: Host) -> Edit:
        return _AblationEdit(self, self._layers)


class _AblationEdit(Edit):
    def __init__(self, told: _Ablation, layers: Collection[int]) -> None:
        super().__init__(layers)
        self.given = told

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass
    ) -> Tensor | None:
        if layer != self.given.layer:
            return None
        return 1 - torch.eye(out.shape[2], device=out.device, dtype=torch.float32)
