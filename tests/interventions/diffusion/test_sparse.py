"""Sparse attention of video models: exactness, promises, reports and bad inputs."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import plan
from tiny_denoisers import TINY
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, noise, quiet, state, tiny
from tiny_videos import VIDEOS
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import PARO, Intervention, RadialAttention, from_dict, parse
from regaze.interventions.diffusion.paro_plan import (
    Plan,
    packed,
    permutation,
    read,
)
from regaze.interventions.diffusion.paro_survey import (
    Rule,
    Survey,
    Surveying,
    best_blocks,
    best_orders,
)
from regaze.interventions.diffusion.sparse import image_first

MODELS = ("wan", "hunyuan", "mochi", "cogvideox")
METHODS = ("radial", "paro")
RULE = Rule(size=4, density=0.4)
STEPS = 3
_PIPES: dict[str, Any] = {}


def video(name: str) -> Any:
    return _PIPES.setdefault(name, quiet(VIDEOS[name].build()))


@functools.cache
def plan_of(name: str) -> Plan:
    """A plan with blocks and orders drawn at random."""
    return plan(video(name), STEPS)


def spec_for(method: str, family: str, folder: Path, **more: Any) -> Any:
    """A spec with blocks so small that there are some on a tiny clip."""
    if method == "radial":
        given = {"decay": 0.5, "block": 4, "start": 0.0, "dense_layers": 0, **more}
        return RadialAttention(**given)
    path = folder / f"{family}.safetensors"
    if not path.exists():
        plan_of(family).write(path)
    return PARO(plan=str(path), **more)


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_it_equals_masked_dense_attention_and_leaves_nothing(
    method: str, family: str, guided: bool, tmp_path: Path
) -> None:
    pipe, kind = video(family), VIDEOS[family]
    plain = kind.run(pipe, guided=guided)
    before = state(pipe.transformer)
    with regaze.attach(pipe, spec_for(method, family, tmp_path, layers=(1, 2))) as run:
        got = kind.run(pipe, guided=guided)
    spec: Any = run.specs[0]
    with literally(pipe, kind.running(guided), [spec.literal()]):
        want = kind.run(pipe, guided=guided)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-3 * scale
    (report,) = run.report().interventions
    assert report.fired and [layer.layer for layer in report.layers] == [1, 2]
    assert all(0 < layer.effect < 1.5 for layer in report.layers)
    assert "density 0." in report.note and "times dense attention's time" in report.note
    assert state(pipe.transformer) == before
    assert torch.equal(kind.run(pipe, guided=guided), plain)


@pytest.mark.parametrize("method", METHODS)
def test_no_layers_and_whole_maps_change_no_bit(method: str, tmp_path: Path) -> None:
    pipe, kind = video("wan"), VIDEOS["wan"]
    plain = kind.run(pipe)
    spec = spec_for(method, "wan", tmp_path)
    with regaze.attach(pipe, spec.idle()):
        assert torch.equal(kind.run(pipe), plain)
    whole: Any = RadialAttention(decay=0.5, start=0.0)  # One block.
    if method == "paro":
        plan = plan_of("wan")
        ones = {name: torch.full_like(mask, 255) for name, mask in plan.masks.items()}
        whole = PARO(plan=str(tmp_path / "whole.safetensors"))
        replace(plan, masks=ones, parts={}).write(tmp_path / "whole.safetensors")
    with regaze.attach(pipe, whole) as run:
        assert torch.equal(kind.run(pipe), plain)
    assert "density 1.000" in run.report().interventions[0].note


@pytest.mark.parametrize("method", METHODS)
def test_it_acts_beside_guidance_and_in_its_steps_alone(method: str, tmp_path: Path) -> None:
    pipe, kind = video("cogvideox"), VIDEOS["cogvideox"]
    spec = spec_for(method, "cogvideox", tmp_path, layers=(0, 3), start=0.3)
    with regaze.attach(pipe, spec, regaze.PAG(layers=(2,))) as run:
        got = kind.run(pipe, num_inference_steps=STEPS)
    assert run.report().interventions[0].steps == 2
    specs: Any = run.specs
    with literally(pipe, kind.running(), [one.literal() for one in specs]):
        want = kind.run(pipe, num_inference_steps=STEPS)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_settings_of_the_scripts_are_filled_in() -> None:
    found: dict[str, Any] = {}
    for family in ("wan", "hunyuan"):
        with regaze.attach(video(family), RadialAttention()) as run:
            found[family] = run.specs[0]
    assert (found["wan"].decay, found["wan"].sink) == (0.2, True)
    assert found["wan"].layers == tuple(f"blocks.{n}.attn1" for n in (1, 2, 3))
    assert (found["hunyuan"].decay, found["hunyuan"].sink) == (0.95, False)
    assert len(found["hunyuan"].layers) == 4
    # The first 12 of 50 steps are dense.
    assert found["wan"].start * 50 == 12


def test_orders_make_a_head_along_time_a_head_of_blocks() -> None:
    assert permutation((2, 2, 3), "whf").tolist() == [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]
    assert image_first(slice(2, 5), 6).tolist() == [2, 3, 4, 0, 1, 5]
    # Tokens that attend to their own place in other frames.
    grid = (4, 4, 4)
    place = torch.arange(64) % 16
    weights = (place == place[:, None]).float() / 4
    scores = []
    for order in RULE.orders:
        at = permutation(grid, order)
        block = weights[at][:, at].view(16, 4, 16, 4).transpose(1, 2).flatten(2)
        small = ((block < 1e-3).float().mean(-1) >= 0.9).float().mean()
        uneven = (block.amax(-1) * 16 / block.sum(-1).clamp(min=1e-30)).mean()
        scores.append(torch.stack([small, uneven])[:, None])
    assert best_orders(torch.stack(scores), RULE) == ["hwf"]
    both = replace(RULE, orders=("fhw", "whf"))
    assert best_orders(torch.stack([scores[0], scores[5]]), both) == ["whf"]


def test_the_largest_blocks_are_kept_and_one_in_each_row() -> None:
    sums = torch.tensor([[[9.0, 8, 7], [1, 2, 3], [6, 5, 4]], [[0.1, 0.2, 0.3]] * 3])
    kept = best_blocks(sums, 4 / 18)
    assert kept[0].tolist() == [[True, True, True], [False, False, True], [True, False, False]]
    assert kept[1].tolist() == [[False, False, True]] * 3


@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
def test_surveys_measure_explicit_maps(family: str) -> None:
    pipe, kind = video(family), VIDEOS[family]
    plain = kind.run(pipe)
    site = [s for s in regaze.hooks.diffusion.sites(pipe) if s.layer == 2][0]
    rule = replace(RULE, small=0.02, share=0.5)
    first, chosen = Survey(rule=rule), ["hwf", "fhw", "whf", "wfh"]
    second = Survey(rule=rule, chosen={site.name: chosen})
    for survey in (first, second):
        with regaze.attach(pipe, Surveying(survey, (site.name,))):
            assert torch.equal(kind.run(pipe), plain)
    maps: list[Any] = []

    def look(m: Any) -> Tensor:
        maps.append(m)
        return m.weights  # type: ignore[no-any-return]

    form = regaze.hooks.diffusion.AttendForm((2,), look)
    with literally(pipe, kind.running(), [form]):
        kind.run(pipe)
    sums, small, uneven = torch.zeros(4, 9, 9), [], []
    for m in maps:
        for head, order in enumerate(chosen):
            at = m.image.start + permutation((3, 4, 3), order)
            block = m.weights[:, head][:, at][:, :, at].unflatten(1, (9, 4)).unflatten(3, (9, 4))
            flat = block.transpose(2, 3).flatten(3)
            sums[head] += flat.sum((0, 3)) * (m.step[0] == 0)
            small.append(((flat < 0.02).float().mean(-1) >= 0.5).float().mean())
            uneven.append((flat.amax(-1) / flat.mean(-1)).mean())
    torch.testing.assert_close(second.sums[site.name, 0], sums, rtol=1e-4, atol=1e-5)
    assert sorted({group for _, group in second.sums}) == [0, 1, 2]
    seen = torch.stack(first.scores[site.name]).mean(0)
    assert seen.shape == (6, 2, 4) and 0.02 < seen[:, 0].mean() < 0.98
    at = [rule.orders.index(one) for one in chosen]
    got = torch.stack([seen[number, :, head] for head, number in enumerate(at)])
    want = torch.stack([torch.stack(small), torch.stack(uneven)], 1).view(-1, 4, 2).mean(0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_plans_survive_their_file_and_are_read_once(tmp_path: Path) -> None:
    plan, path = plan_of("hunyuan"), tmp_path / "one.safetensors"
    plan.write(path)
    again = read(path)
    assert again is read(path) and len(again.digest) == 16
    assert (again.identity, again.grid, again.steps) == (plan.identity, (3, 4, 3), STEPS)
    assert again.orders == plan.orders
    assert all(torch.equal(again.masks[name], mask) for name, mask in plan.masks.items())
    mask = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(5)) < 0.3
    name = next(iter(plan.masks))
    other = replace(plan, masks={name: packed(mask)}, parts={})
    assert torch.equal(other.mask(name, 1), mask[1]) and other.masks[name].shape == (2, 3, 11)


def test_bad_inputs_raise(tmp_path: Path) -> None:
    for family in ("sd3", "animatediff"):
        with pytest.raises(ValueError, match="no decay was published for"):
            regaze.attach(tiny(family), RadialAttention())
    with regaze.attach(tiny("sd3"), RadialAttention(decay=1, start=0.0)), pytest.raises(
        ValueError, match="tokens of .* make 4 x 3, and it must be known which frame each belongs"
    ):  # fmt: skip
        FAMILIES["sd3"].run(tiny("sd3"))
    for fields, message in (
        ({"decay": -1}, "decay"), ({"sink": 2}, "sink must be true or false"),
        ({"dense_layers": 1.5}, "dense_layers must be"), ({"block": 0}, "block must be"),
        ({"kernel": "triton"}, "unknown kernel 'triton'"), ({"start": 1.0}, "it would never act"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            RadialAttention(**fields)
    bare = video("wan").transformer
    call = TINY["WanTransformer3DModel"].call(1)
    for spec in (RadialAttention(), spec_for("paro", "wan", tmp_path)):
        with regaze.attach(bare, spec), pytest.raises(
            ValueError, match="only a running pipeline knows"
        ), torch.no_grad():  # fmt: skip
            bare(**call | {"hidden_states": noise(1, 4, 3, HEIGHT, COLUMNS)})


def test_plans_of_something_else_raise(tmp_path: Path) -> None:
    pipe, kind = video("wan"), VIDEOS["wan"]
    spec = spec_for("paro", "wan", tmp_path)
    with pytest.raises(ValueError, match="it needs a calibration"):
        regaze.attach(pipe, PARO())
    with pytest.raises(ValueError, match="can't read .*: No such file"):
        regaze.attach(pipe, PARO(plan=str(tmp_path / "none.safetensors")))
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="text.safetensors is no calibration"):
        regaze.attach(pipe, PARO(plan=str(tmp_path / "text.safetensors")))
    with pytest.raises(ValueError, match="is of a WanTransformer3DModel with 4 layers"):
        regaze.attach(video("hunyuan"), spec)
    with pytest.raises(ValueError, match="has changed since this spec was made"):
        regaze.attach(pipe, replace(spec, digest="0" * 16))
    partly = replace(plan_of("wan"), parts={})
    less = {"blocks.0.attn1": partly.orders["blocks.0.attn1"]}
    replace(partly, orders=less, masks={n: partly.masks[n] for n in less}).write(
        tmp_path / "less.safetensors"
    )
    with pytest.raises(ValueError, match="blocks.1.attn1 wasn't calibrated"):
        regaze.attach(pipe, PARO(plan=str(tmp_path / "less.safetensors"), layers=(1,)))
    other = quiet(kind.build())
    with torch.no_grad():
        other.transformer.blocks[0].attn1.to_q.weight.neg_()
    with regaze.attach(other, spec), pytest.raises(ValueError, match="with other weights"):
        kind.run(other)
    with regaze.attach(pipe, spec):
        with pytest.raises(ValueError, match="is of 3 steps, and this run has 2"):
            kind.run(pipe, num_inference_steps=2)
        with pytest.raises(ValueError, match="make 2 x 4 x 3, and the calibration is of 3 x 4 x 3"):
            kind.run(pipe, 1, latents=kind.call(1, True)["latents"][:, :, :2], num_frames=5)
    changed = replace(plan_of("wan").identity, config="0")
    replace(plan_of("wan"), identity=changed, parts={}).write(tmp_path / "config.safetensors")
    with regaze.attach(pipe, PARO(plan=str(tmp_path / "config.safetensors"))), pytest.raises(
        ValueError, match="with other settings"
    ):  # fmt: skip
        kind.run(pipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"density": 0}, "keeps no block"), ({"density": 2}, "density"), ({"size": 0}, "size must"),
     ({"orders": ("fwx",)}, "orders must be some of fhw")],
)  # fmt: skip
def test_rules_that_cannot_be_say_why(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**fields)


def test_specs_survive_json_and_their_own_labels() -> None:
    specs: list[Intervention] = [
        RadialAttention(), RadialAttention(decay=0.2, sink=False, layers=(1, "blocks.2"), block=64),
        PARO(plan="a.safetensors", layers=(3,), kernel="flex", start=0.5),
    ]  # fmt: skip
    for spec in specs:
        assert from_dict(spec.to_dict()) == spec == parse(spec.label)
    assert RadialAttention.preset("hunyuanvideo").decay == 0.95
