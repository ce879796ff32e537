"""Visual mass, divergence and distances of tiny models against whole maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from heads import subject
from torch import Tensor
from vision_maps import explicitly, of_picture

from regaze.evals.analysis.asked import Subject
from regaze.evals.analysis.distance import TextDistance, VisionDistance
from regaze.evals.analysis.divergence import Divergence
from regaze.evals.analysis.maps import HeadMap
from regaze.evals.analysis.mass import VisualMass
from regaze.hooks import capture


def measured(measure: type[Any], of: Subject) -> list[HeadMap]:
    made = measure(of)
    for batch in of.batches():
        made.add(batch)
    found: list[HeadMap] = made.maps()
    return found


def singles(family: str) -> list[tuple[dict[str, Any], Tensor]]:
    """Each prompt alone, and its image columns."""
    of = subject(family, batch_size=1)
    ids = torch.tensor(sorted(of.host.image_ids))
    batches = [dict(batch.inputs) for batch in of.batches()]
    return [(inputs, torch.isin(inputs["input_ids"][0], ids)) for inputs in batches]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_visual_mass_is_what_maps_say_also_while_answering(family: str) -> None:
    eager = subject(family, attention="eager").model
    last, answers = [], []
    for inputs, image in singles(family):
        config = subject(family).answerer.config
        made = eager.generate(
            **inputs, generation_config=config, output_attentions=True, return_dict_in_generate=True
        )
        masses = []
        for step in made.attentions:  # "1 H Q K" of each layer
            rows = torch.stack([one[0, :, -1] for one in step])
            masses.append((rows[..., : len(image)] * image).sum(-1))
        last.append(masses[0])
        answers += masses[1:]
    for batch_size in (1, 3):
        mass, answer = measured(VisualMass, subject(family, batch_size))
        torch.testing.assert_close(
            mass.values, torch.stack(last).mean(0).double(), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            answer.values, torch.stack(answers).mean(0).double(), rtol=0, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_divergence_is_between_prompts_with_the_image_and_without(family: str) -> None:
    of = subject(family)
    found: list[Tensor] = []

    def keep(module: Any, args: Any) -> None:
        found.append(args[0][0, -1].view(of.host.n_heads, -1))

    handles = [of.host.attention(n).o_proj.register_forward_pre_hook(keep) for n in range(3)]  # type: ignore[operator,union-attr]
    want = []
    for inputs, image in singles(family):
        of.model(**inputs)
        of.model(input_ids=inputs["input_ids"][:, ~image])
        seen, blind = torch.stack(found[:3]), torch.stack(found[3:])
        want.append((seen - blind).square().sum(-1).sqrt())
        found.clear()
    for handle in handles:
        handle.remove()
    (got,) = measured(Divergence, of)
    torch.testing.assert_close(got.values, torch.stack(want).mean(0).double(), rtol=1e-3, atol=1e-4)


def literal(maps: Tensor, grid: Tensor) -> tuple[list[list[float]], float]:
    """Each head's distances of all patches of a whole map "H K K", and the grid's diagonal."""
    rows, cols = grid.shape
    places = [(int(grid[r, c]), r, c) for r in range(rows) for c in range(cols)]
    found: list[list[float]] = []
    for one in maps.tolist():
        found.append([])
        for i, r, c in places:
            mass = sum(one[i][j] for j, _, _ in places)
            total = sum(one[i][j] * math.hypot(r - y, c - x) for j, y, x in places)
            found[-1].append(total / mass)
    return found, math.hypot(rows - 1, cols - 1)


def check(found: list[HeadMap], maps: list[list[tuple[Tensor, Tensor]]]) -> None:
    """Compare with whole maps and grids, by layer and picture."""
    patches, share = found
    for layer, pictures in enumerate(maps):
        wanted = [literal(*one) for one in pictures]
        for head in range(pictures[0][0].shape[0]):
            every = [(d, diagonal) for each, diagonal in wanted for d in each[head]]
            mean = sum(d for d, _ in every) / len(every)
            scaled = sum(d / diagonal for d, diagonal in every) / len(every)
            assert patches.values[layer, head] == pytest.approx(mean, rel=1e-4)
            assert share.values[layer, head] == pytest.approx(scaled, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "mistral3"])
def test_text_distances_are_what_maps_say_in_padded_batches_too(family: str) -> None:
    of = subject(family, attention="eager")
    maps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(of.host.n_layers)]
    for inputs, image in singles(family):
        columns = image.nonzero().flatten()
        grid = of.task.model.grid(inputs)  # type: ignore[attr-defined]
        assert grid is not None
        for layer, one in enumerate(of.model(**inputs, output_attentions=True).attentions):
            maps[layer].append((one[0], columns.view(grid)))
    check(measured(TextDistance, subject(family, batch_size=3)), maps)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_5_vl", "mistral3"])
def test_vision_distances_are_what_maps_say(family: str) -> None:
    of = subject(family, batch_size=1)
    eye = of.host.eye
    maps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(eye.n_layers)]
    for batch in of.batches():
        pictures = _pictures(of, batch.inputs)
        sizes = [one.length for one in pictures]
        packed = eye.vision.layout != "batch"
        with explicitly(eye, sizes if packed else []) as calls:
            of.read(batch)
        for layer in range(eye.n_layers):
            for number, one in enumerate(pictures):
                whole = of_picture(calls[layer], sizes, number)
                maps[layer].append((whole, one.grid))
    for batch_size in (1, 3):
        check(measured(VisionDistance, subject(family, batch_size)), maps)


def _pictures(of: Subject, inputs: Any) -> list[Any]:
    """The pictures that the vision tower is given."""
    with capture(of.model, [0], tower="vision") as seen:
        of.model(**inputs)
    return list(seen.pictures)


def test_equal_attention_is_the_distance_of_what_is_seen() -> None:
    # llava: a causal tower, and a square grid: of patch i the mean distance to those up to i.
    of = subject("llava")
    _, share = measured(TextDistance, of)
    side = math.isqrt(int(singles("llava")[0][1].sum()))
    at = [(r, c) for r in range(side) for c in range(side)]
    each = [sum(math.dist(at[i], at[j]) for j in range(i + 1)) / (i + 1) for i in range(len(at))]
    want = sum(each) / len(each) / math.hypot(side - 1, side - 1)
    (number,) = share.notes.values()
    assert number == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("measure", "family", "why"),
    [
        (VisualMass, "instructblip", "no image columns"),
        (TextDistance, "instructblip", "no image columns"),
        (VisualMass, "mllama", "cross-attention"),
    ],
)
def test_what_can_t_be_measured_says_so(measure: type[Any], family: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        measure(subject(family))
