"""ConsistEdit's own: words, sources, rounds, clips, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from methods import METHODS
from scenes import differ, pairs_call
from tiny_guided import PIPES
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, TEXT, WIDTH, Family, noise, quiet, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import regaze
from regaze.hooks.diffusion.literal import Manner, literally
from regaze.hooks.diffusion.literal_maps import Map, edited
from regaze.hooks.diffusion.sites import read_layout
from regaze.hooks.diffusion.works import change
from regaze.interventions import ConsistEdit
from regaze.interventions.diffusion.consistent import Consistent
from regaze.interventions.diffusion.edit_source import Source, recorded
from regaze.interventions.diffusion.edit_words import changed_words

GUIDED = pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
SOME = ("sd3", "flux", "qwen")


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def arguments(kind: Family, guided: bool, pairs: int = 1, chain: int = 2) -> dict[str, Any]:
    return pairs_call(kind, pairs, guided, chain)


def of_rows(call: dict[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    return {
        name: x[rows] if isinstance(x, Tensor) and len(x) == batch else x
        for name, x in call.items()
    }


def run(pipe: Any, call: dict[str, Any], *specs: Any) -> Tensor:
    if not specs:
        latents = pipe(**call)[0]
    else:
        with regaze.attach(pipe, *specs) as attached:
            latents = pipe(**call)[0]
        assert attached.report().fired
    assert isinstance(latents, Tensor)
    return latents


@pytest.mark.parametrize("family", ["sd35", "qwen"])
@pytest.mark.parametrize("name", ["consistedit", "consistedit-words"])
def test_the_source_stays(family: str, name: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    call = arguments(kind, True, 2)
    plain = run(pipe, call)
    got = run(pipe, call, METHODS[name].on(family))
    assert torch.equal(got[::2], plain[::2])
    assert differ(got[1::2], plain[1::2]) > 1e-3


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "HunyuanVideoPipeline"])
def test_videos(name: str) -> None:
    """A mask for each frame; a picture's mask is all frames'."""
    pipe = quiet(PIPES[name].build(name))
    call = PIPES[name].arguments(True)
    for key, x in call.items():
        if isinstance(x, Tensor):
            other = noise(*x.shape, seed=50) if x.is_floating_point() else x
            call[key] = torch.cat([x, x if key == "latents" else other])
    plain = run(pipe, call)
    mask = torch.zeros(2, HEIGHT, COLUMNS, dtype=torch.bool)
    mask[1, 4:, 2:] = True
    spec = ConsistEdit(mask=mask, strength=0.6)
    got = run(pipe, call, spec)
    assert torch.equal(got[:1], plain[:1])
    with regaze.attach(pipe, spec) as attached:
        form: Any = attached.specs[0].literal()  # type: ignore[attr-defined]
    calls = PIPES[name].how == "calls"
    with literally(pipe, Manner("transformer", True, calls, samples=2), [form]):
        want = run(pipe, call)
    assert differ(got, want) < 1e-4
    assert differ(run(pipe, call, replace(spec, mask=mask[1])), got) > 1e-5
    assert differ(run(pipe, call, ConsistEdit(words=(1,), strength=0.4)), plain) > 1e-5


@contextmanager
def seen_literally(pipe: Any, kind: Family, layers: Any, maps: list[Tensor]) -> Iterator[None]:
    """Whole maps of the conditional rows, text's columns of the picture's rows."""
    denoiser = getattr(pipe, kind.denoiser)
    stock = denoiser.forward

    def keep(m: Map) -> Tensor:
        text = slice(0, TEXT) if m.image.start else slice(m.image.stop, m.image.stop + TEXT)
        cond = m.weights.chunk(2)[1] if kind.halves else m.weights
        maps.append(cond[:, :, m.image, text].mean(1))
        return m.weights

    calls = [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if not kind.halves and calls[0] % 2 == 0:
            return stock(*args, **kwargs)  # The other branch.
        with edited(denoiser, layers, keep, read_layout(denoiser, kwargs)):
            return stock(*args, **kwargs)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


@pytest.mark.parametrize("family", ["sd3", "sd35", "flux", "qwen"])
def test_attention_to_words_is_that_of_whole_maps(family: str) -> None:
    """By log-sum-exp where nothing is masked, by the kernel where something is (Qwen-Image)."""
    pipe, kind = tiny(family), FAMILIES[family]
    call = arguments(kind, True)
    with recorded(pipe, (1, 3)) as seen:
        run(pipe, call)
    with regaze.attach(pipe, ConsistEdit(mask="all")) as attached:
        layers = attached.specs[0].layers  # type: ignore[attr-defined]
    maps: list[Tensor] = []
    with seen_literally(pipe, kind, layers, maps):
        run(pipe, call)
    want = torch.stack(maps)[..., [1, 3]].sum(-1).mean(0)
    assert seen.source.shares is not None
    assert differ(seen.source.shares, want) < 1e-5


def test_a_mask_that_is_read_is_renewed_after_each_step() -> None:
    """In the first step nothing may change; then what the steps before gave to the words may."""
    pipe, kind = tiny("sd3"), FAMILIES["sd3"]
    call = arguments(kind, False) | {"num_inference_steps": 2}
    spec = ConsistEdit(words=(1, 3), strength=0.0, threshold=0.4)
    got = run(pipe, call, spec)
    first = dict(call) | {"num_inference_steps": 2}
    with recorded(pipe, (1, 3)) as seen:

        def stop(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
            pipe._interrupt = True
            return tensors

        pipe(**first, callback_on_step_end=stop)
    kept = Source.read(str(seen.source.keep()))
    assert kept.grid == seen.source.grid == (HEIGHT // 2, COLUMNS // 2)
    free = kept.edited(0.4)[0].view(kept.grid)
    nothing = run(pipe, call, ConsistEdit(mask=torch.zeros(HEIGHT, COLUMNS), strength=0.0))
    then = run(pipe, call, ConsistEdit(mask=free, strength=0.0))
    assert 0 < free.sum() < free.numel()
    assert differ(got[1:], nothing[1:]) > 1e-4 and differ(got[1:], then[1:]) > 1e-4
    # The first step of one and the second of the other.
    attached = [regaze.attach(pipe, ConsistEdit(mask=torch.zeros(HEIGHT, COLUMNS), strength=0.0))]

    def change(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        attached.pop().detach()
        if step == 0:
            attached.append(regaze.attach(pipe, ConsistEdit(mask=free, strength=0.0)))
        return tensors

    want = pipe(**call, callback_on_step_end=change)[0]
    assert differ(got, want) < 1e-5


@GUIDED
@pytest.mark.parametrize("family", SOME)
def test_a_recorded_source_gives_the_same_edit(family: str, guided: bool) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    call, spec = arguments(kind, guided, 2), METHODS["consistedit"].on("pairs-sd3")
    want = run(pipe, call, spec)
    with recorded(pipe) as seen:
        sources = {n: x[::2] if isinstance(x, Tensor) and len(x) == 4 else x
                   for n, x in call.items()}  # fmt: skip
        run(pipe, sources)
    assert seen.source.latents.shape[:2] == (3, 2)
    # What the pipeline begins with doesn't matter.
    other = call | {"latents": noise(*call["latents"].shape, seed=77)}
    got = run(pipe, other, replace(spec, source=seen.source))
    assert differ(got, want) < 1e-5
    again = Source.read(str(seen.source.keep()))
    assert torch.equal(again.latents, seen.source.latents)


@GUIDED
def test_rounds_are_edits_of_edits(guided: bool) -> None:
    pipe, kind = tiny("sd3"), FAMILIES["sd3"]
    call = arguments(kind, guided, 2, chain=3)
    spec = replace(METHODS["consistedit"].on("pairs-sd3"), rounds=2)
    got = run(pipe, call, spec)
    with regaze.attach(pipe, spec) as attached:
        form: Any = attached.specs[0].literal()  # type: ignore[attr-defined]
    with literally(pipe, kind.running(guided, batch=6), [form]):
        assert differ(got, run(pipe, call)) < 1e-5
    rows = [0, 1, 3, 4]
    first = {n: x[rows] if isinstance(x, Tensor) and len(x) == 6 else x for n, x in call.items()}
    assert differ(got[rows], run(pipe, first, replace(spec, rounds=1))) < 1e-5


@GUIDED
@pytest.mark.parametrize("family", ["sd3", "qwen"])
def test_a_round_takes_from_the_round_before(family: str, guided: bool) -> None:
    """A first edit that takes nothing of its source is a plain one, and the second one's source."""
    pipe, kind = tiny(family), FAMILIES[family]
    call = arguments(kind, guided, 1, chain=3)
    corner = torch.zeros(HEIGHT, COLUMNS, dtype=torch.bool)
    corner[4:, 2:] = True
    spec = ConsistEdit(mask=[torch.ones_like(corner), corner], strength=0.0, rounds=2)
    got, plain = run(pipe, call, spec), run(pipe, call)
    assert differ(got[:2], plain[:2]) < 1e-5
    last = run(pipe, of_rows(call, slice(1, 3), 3), ConsistEdit(mask=corner, strength=0.0))
    assert differ(got[1:], last) < 1e-5
    assert differ(got[2:], plain[2:]) > 1e-4


@pytest.mark.parametrize("family", ["sd3", "qwen"])
def test_each_edit_of_each_source_has_its_own_words(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    call = arguments(kind, True, 2, chain=3)
    spec = ConsistEdit(words=[[1], [2], [3], [1, 2]], strength=0.4, rounds=2)
    both = run(pipe, call, spec)
    for number, words in enumerate(([[1], [2]], [[3], [1, 2]])):
        rows = slice(3 * number, 3 * number + 3)
        one = run(pipe, of_rows(call, rows, 6), replace(spec, words=words))
        assert differ(both[rows], one) < 1e-5
    other = run(pipe, call, replace(spec, words=[[1], [3], [3], [1, 2]]))
    changed = [differ(a, b) > 1e-5 for a, b in zip(both, other, strict=True)]
    assert changed == [False, False, True, False, False, False]


@pytest.mark.parametrize("family", ["sd3", "qwen"])
@pytest.mark.parametrize("name", ["consistedit", "consistedit-words"])
def test_the_effect_is_the_change_of_all_rows(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, call = tiny(family), arguments(FAMILIES[family], True, 2)

    def effects() -> list[float]:
        with regaze.attach(pipe, METHODS[name].on(f"pairs-{family}")) as attached:
            pipe(**call)
        return [layer.effect for layer in attached.report().interventions[0].layers]

    found = effects()
    monkeypatch.setattr(Consistent, "moved", lambda self, call, new: change(new, call.output))
    assert found == pytest.approx(effects(), rel=1e-4) and min(found) > 0


def test_several_images_of_a_prompt() -> None:
    pipe, kind = tiny("qwen"), FAMILIES["qwen"]
    call, spec = arguments(kind, True), METHODS["consistedit-words"].on("pairs-sd3")
    # diffusers 0.42 repeats masks of several prompts in another order than their embeddings.
    call |= {n: torch.ones_like(x) for n, x in call.items() if n.endswith("embeds_mask")}
    both = noise(2, *call["latents"].shape[1:])
    got = run(pipe, call | {"latents": both.repeat(2, 1, 1), "num_images_per_prompt": 2}, spec)
    for n in range(2):
        one = call | {"latents": both[n : n + 1].repeat(2, 1, 1)}
        assert differ(got[n::2], run(pipe, one, spec)) < 1e-5


class Largest(TorchDispatchMode):
    """Notes tensors with two axes of all tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens, self.found = tokens, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor) and list(one.shape[-2:]) == [self.tokens] * 2:
                self.found += 1
        return out


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("name", ["consistedit", "consistedit-words"])
def test_no_map_of_all_tokens_is_made(family: str, name: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    call = arguments(kind, True)
    with Largest(HEIGHT // 2 * (COLUMNS // 2) + TEXT) as seen:
        run(pipe, call, METHODS[name].on(family))
    assert not seen.found
    with Largest(5) as seen:
        torch.ones(5, 3) @ torch.ones(3, 5)
    assert seen.found


def test_words_that_change() -> None:
    assert changed_words("a red hat, and a cat", "a green hat, and a cat") == ["red"]
    assert changed_words("a big red hat", "a hat") == ["big", "red"]
    assert changed_words("a red hat, a cat", "a red hat, a dog.") == ["cat"]
    with pytest.raises(ValueError, match="only adds words"):
        changed_words("a hat", "a red hat")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strength": 1.5}, "strength must be"),
        ({"threshold": -1}, "threshold must be"),
        ({"region": "left"}, "unknown region"),
        ({"rounds": 0}, "rounds must be a whole number from 1"),
        ({"over": "image"}, "unknown over"),
        ({"words": ()}, "words must be"),
        ({"words": (1.5,)}, "words must be"),
        ({"layers": ()}, "layers is empty"),
        ({"source": 3}, "source must be"),
        ({"mask": [[[[1]]]]}, "a mask is an array"),
    ],
)
def test_fields_out_of_their_domain(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ConsistEdit(**fields)


def refused(said: str, spec: ConsistEdit, family: str = "sd3", **more: Any) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with pytest.raises(ValueError, match=said), regaze.attach(pipe, spec):
        pipe(**{**arguments(kind, True), **more})


def test_what_is_refused(tmp_path: Any) -> None:
    square = torch.ones(4, 4)
    refused("proportions of the picture", ConsistEdit(mask=square))
    refused("2 masks for 1 edits", ConsistEdit(mask=[torch.ones(8, 6), torch.ones(8, 6)]))
    refused("a mask of 3 frames doesn't fit 1", ConsistEdit(mask=torch.ones(3, 8, 6)))
    refused("can't be read", ConsistEdit(mask=str(tmp_path / "none.npy")))
    refused("can't be read", ConsistEdit(source=str(tmp_path / "none.safetensors"), mask="all"))
    refused("given embeddings", ConsistEdit())
    refused("given embeddings", ConsistEdit(words="hat"))
    refused("column 9 doesn't exist", ConsistEdit(words=(9,)))
    refused("begin in different noise", ConsistEdit(mask="all"),
            latents=noise(2, 4, HEIGHT, COLUMNS))  # fmt: skip
    refused("has no joint attention", ConsistEdit(), "sd")
    refused("has no joint attention", ConsistEdit(), "wan")
    kind = FAMILIES["sd3"]
    with pytest.raises(ValueError, match="1 prompts, which are no pairs"):
        run(tiny("sd3"), kind.call(1, True), ConsistEdit(mask="all"))
    short = Source(noise(2, 1, 4, HEIGHT, COLUMNS), torch.tensor([1000.0, 500.0]))
    refused("source has 2 steps", ConsistEdit(mask="all", source=short))
    other = tmp_path / "other.npy"
    other.write_bytes(b"no array")
    refused("can't be read", ConsistEdit(mask=str(other)))


def test_a_bare_denoiser_knows_no_words() -> None:
    pipe = tiny("sd3")
    call = {
        "hidden_states": noise(1, 4, HEIGHT, COLUMNS).repeat(2, 1, 1, 1),
        "encoder_hidden_states": noise(2, TEXT, WIDTH, seed=1),
        "pooled_projections": noise(2, 12, seed=3), "timestep": torch.tensor([500.0] * 2),
    }  # fmt: skip
    with torch.no_grad():
        plain = pipe.transformer(**call)[0]
        with regaze.attach(pipe.transformer, ConsistEdit(mask="all"), cond_rows=slice(None)):
            got = pipe.transformer(**call)[0]
        assert torch.equal(got[0], plain[0]) and differ(got[1:], plain[1:]) > 1e-4
        for spec in (ConsistEdit(words=(1,)), ConsistEdit(mask="all", strength=0.5)):
            with (
                pytest.raises(ValueError, match="running pipeline|sampling steps"),
                regaze.attach(pipe.transformer, spec, cond_rows=slice(None)),
            ):
                pipe.transformer(**call)
