"""Whatever kernel, precision, placement or wrapper runs the model, the edits are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from asking import LONG, SHORT, TOKENS, Row, answer, ask, assert_literal, logits
from flash import use_flash
from flex import plain_flex
from matrix import CONTRASTS, EDITS, MAIN, pairs
from methods import LAYERS, Method
from tiny import Tiny, tiny
from torch import Tensor
from transformers import pipeline
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks import attach
from regaze.interventions import VAR, Intervention

ALL = [EDITS[name].acts for name in MAIN]
__all__ = ["plain_flex"]
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]


def check_against_sdpa(model: Tiny, family: str, spec: Intervention) -> None:
    inputs = ask(model, *ROWS)
    real = inputs["attention_mask"].bool()
    want = logits(tiny(family), inputs, spec)[real]
    torch.testing.assert_close(logits(model, inputs, spec)[real], want, rtol=0, atol=1e-4)
    assert answer(model, inputs, spec) == answer(tiny(family), inputs, spec)


@pairs(families=("llava", "qwen3_vl", "gemma3", "paligemma", "instructblip"))
def test_eager_attention_gives_what_sdpa_gives(family: str, method: Method) -> None:
    check_against_sdpa(tiny(family, attn_implementation="eager"), family, method.acts)


@pytest.mark.usefixtures("plain_flex")
@pairs("pai", "vaf", "var", families=("llava", "gemma3"))
def test_flex_attention_gives_what_sdpa_gives(family: str, method: Method) -> None:
    check_against_sdpa(tiny(family, attn_implementation="flex_attention"), family, method.acts)


@pytest.mark.usefixtures("plain_flex")
@pairs("vhr", "vhr-mask", families=("llava", "gemma3", "paligemma"))
def test_flex_attention_runs_the_prompt_without_image(family: str, method: Method) -> None:
    check_against_sdpa(tiny(family, attn_implementation="flex_attention"), family, method.acts)


@pairs(families=("llava", "llava_next", "qwen2_vl"))
def test_flash_attention_gives_what_sdpa_gives(
    family: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family, fresh=True)
    use_flash(model.model, monkeypatch)
    check_against_sdpa(model, family, method.acts)


@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
@pytest.mark.parametrize("base", ["sdpa", "eager", "flash"])
def test_sliding_windows_that_the_kernel_applies_bound_what_edited_rows_see(
    name: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `gemma3` tells for masks: the first image columns have left the last rows' window."""
    spec = EDITS[name].acts
    results = []
    for implementation in ("sdpa", base):
        model = tiny("mistral3", attn_implementation="sdpa", fresh=True)
        config = model.model.config.text_config
        config.sliding_window = 12
        if implementation == "flash":
            use_flash(model.model, monkeypatch)
        else:
            config._attn_implementation = implementation
        inputs = ask(model, *ROWS)
        real = inputs["attention_mask"].bool()
        results.append((logits(model, inputs, spec)[real], answer(model, inputs, spec)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-4)
    assert results[1][1] == results[0][1]
    unbounded = logits(tiny("mistral3"), inputs, spec)[real]
    assert (unbounded - results[0][0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pairs(families=("llava", "qwen2_vl", "gemma3", "instructblip"))
def test_half_precision_stays_close_to_full(
    family: str, method: Method, dtype: torch.dtype
) -> None:
    full, half = tiny(family), tiny(family, dtype=dtype)
    inputs = ask(full, (SHORT, [0]))
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    edited = logits(half, cast, method.acts)
    assert edited.dtype == dtype
    own = (logits(half, cast).float() - logits(full, inputs)).abs().mean()
    effect = (logits(full, inputs, method.acts) - logits(full, inputs))[0, -1].abs().mean()
    error = (edited.float() - logits(full, inputs, method.acts)).abs().mean()
    # A threshold may fall to the other side; the typical logit may not.
    assert error < 3 * own + 0.2 * effect
    assert len(answer(half, cast, method.acts)[0]) == TOKENS


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_returned_attention_is_the_edited_one(family: str, name: str) -> None:
    if (family, name) == ("gemma3", "vhr"):
        name = "vhr-mask"
    model = tiny(family, attn_implementation="eager")
    inputs = ask(model, *ROWS)
    real = inputs["attention_mask"].bool()
    outputs = [
        run(model, inputs, *specs, output_attentions=True, output_hidden_states=True)
        for specs in ([EDITS[name].acts], [])
    ]
    for maps in outputs[0].attentions:
        assert maps.shape[0] == 2
        sums = maps.sum(-1).transpose(1, 2)[real]
        if name in ("adhh", "spin"):  # They take weight away, for good.
            assert (sums <= 1 + 1e-5).all()
            continue
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
    assert [h.shape for h in outputs[0].hidden_states] == [
        h.shape for h in outputs[1].hidden_states
    ]
    # Not the first layer: in Gemma 3 it slides, and its last row doesn't see the image.
    first = LAYERS[0] if name.startswith("vhr") else LAYERS[1]
    edited, plain = (out.attentions[first] for out in outputs)
    assert name.startswith("vhr") == torch.equal(edited, plain)


def run(model: Tiny, inputs: dict[str, Any], *specs: Intervention, **options: Any) -> Any:
    with attach(model.model, *specs, processor=model.processor), torch.no_grad():
        return model.model(**inputs, **options)


@pytest.mark.parametrize("name", MAIN)
def test_generate_returns_edited_attention_of_every_step(name: str) -> None:
    model = tiny("llava", attn_implementation="eager")
    inputs = ask(model, *ROWS)
    with attach(model.model, EDITS[name].acts):
        made = model.model.generate(
            **inputs, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True
        )
    length = inputs["input_ids"].shape[1]
    for step, layers in enumerate(made.attentions):
        rows = length if step == 0 else 1
        for maps in layers:
            assert maps.shape == (2, 4, rows, length + step)
            sums = maps[:, :, -1].sum(-1)
            if name in ("adhh", "spin"):  # They take weight away, for good.
                assert (sums <= 1 + 1e-5).all()
                continue
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("place", ["cpu_offload", "disk_offload", "dispatch_model"])
def test_dispatched_models_are_edited(name: str, place: str, tmp_path: Path) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, *ROWS)
    if place == "cpu_offload":
        accelerate.cpu_offload(model.model, execution_device="cpu")
    elif place == "disk_offload":
        accelerate.disk_offload(model.model, str(tmp_path), execution_device="cpu")
    else:
        accelerate.dispatch_model(
            model.model,
            {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu",
             "model.language_model": "disk", "lm_head": "cpu"},
            offload_dir=str(tmp_path),
            main_device="cpu",
        )  # fmt: skip
    spec = EDITS[name].acts
    assert torch.equal(logits(model, inputs, spec), logits(tiny("llava"), inputs, spec))
    assert answer(model, inputs, spec) == answer(tiny("llava"), inputs, spec)
    assert torch.equal(logits(model, inputs), logits(tiny("llava"), inputs))


def test_sinks_are_discovered_in_offloaded_models() -> None:
    model = tiny("llava", fresh=True)
    accelerate.cpu_offload(model.model, execution_device="cpu")
    with attach(model.model, VAR(tau=0.2)) as run:
        offloaded = run.specs
    with attach(tiny("llava").model, VAR(tau=0.2)) as run:
        assert run.specs == offloaded


def test_compiled_models_are_edited_however_early_they_were_compiled() -> None:
    model = tiny("llava", fresh=True)
    tower: Any = model.model.get_decoder()
    inputs, longer = ask(model, (SHORT, [0])), ask(model, (LONG, [1]))
    # PASTA's second kernel call rounds otherwise where its operands are laid out otherwise.
    exact = [EDITS[name].acts for name in MAIN if name != "pasta"]
    cases = [(x, specs) for specs in (exact, ALL) for x in (inputs, longer)]
    want = [logits(tiny("llava"), x, *specs) for x, specs in cases]
    plain = logits(tiny("llava"), inputs)
    torch._dynamo.reset()
    tower.compile(backend="eager")  # guards and graph breaks as with any other backend
    assert torch.equal(logits(model, inputs), plain)
    for (x, specs), expected in zip(cases, want, strict=True):
        got = logits(model, x, *specs)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 if specs is ALL else 0)
    assert torch.equal(logits(model, inputs), plain)


def test_a_model_compiled_as_one_graph_raises_rather_than_skip_the_edit() -> None:
    model = tiny("llava", fresh=True)
    tower: Any = model.model.get_decoder()
    inputs = ask(model, (SHORT, [0]))
    torch._dynamo.reset()
    tower.compile(backend="eager", fullgraph=True)
    plain = logits(model, inputs)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        logits(model, inputs, EDITS["pai"].acts)
    assert torch.equal(logits(model, inputs), plain)


def test_a_wrapped_compiled_model_is_a_target() -> None:
    model = tiny("llava", fresh=True)
    wrapped: Any = torch.compile(model.model, backend="eager")
    with attach(wrapped, *ALL) as run:
        inner = logits(tiny("llava"), ask(model, (SHORT, [0])), *ALL)
        with torch.no_grad():
            assert torch.equal(model.model(**ask(model, (SHORT, [0]))).logits, inner)
    assert run.report().fired


@torch.no_grad()
def test_scores_of_a_compiled_model_are_edited() -> None:
    model, spec = tiny("llava", fresh=True), CONTRASTS["vcd"].acts
    inputs = ask(model, (SHORT, [0]))
    want, plain = logits(tiny("llava"), inputs, spec), logits(tiny("llava"), inputs)
    torch._dynamo.reset()
    wrapped: Any = torch.compile(model.model, backend="eager")
    in_place: Any = model.model
    for called in (wrapped, in_place):
        if called is in_place:
            called.compile(backend="eager")
        assert torch.equal(called(**inputs).logits, plain)
        with attach(model.model, spec):
            torch.testing.assert_close(called(**inputs).logits, want, rtol=0, atol=1e-4)
        assert torch.equal(called(**inputs).logits, plain)


@pytest.mark.parametrize("name", MAIN)
def test_a_pipeline_is_a_target(name: str) -> None:
    model = tiny("qwen2_vl")
    pipe: Any = pipeline("image-text-to-text", model=model.model, processor=model.processor)
    picture = model.picture(0)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": SHORT}]
    chat = [{"role": "user", "content": content}]

    def say() -> str:
        made = pipe(text=chat, max_new_tokens=TOKENS, generate_kwargs={"do_sample": False})
        text: str = made[0]["generated_text"][-1]["content"]
        return text

    plain = say()
    with attach(pipe, EDITS[name].acts) as run:
        edited = say()
    ids = answer(model, model.inputs([SHORT], [[picture]]), EDITS[name].acts)[0]
    said = model.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert edited == said.removeprefix("##")  # it continues the prompt
    assert run.report().fired
    assert say() == plain


def test_gradients_flow_through_edited_rows() -> None:
    model = tiny("llava", fresh=True)
    with attach(model.model, *ALL):
        out: Tensor = model.model(**ask(model, (SHORT, [0]))).logits
        out[0, -1].logsumexp(0).backward()
    gradient = model.model.get_decoder().layers[0].self_attn.q_proj.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", MAIN)
def test_a_users_own_attention_function_is_called_and_its_output_edited(name: str) -> None:
    calls: list[int] = []

    def own(module: Any, *args: Any, **options: Any) -> Any:
        calls.append(module.layer_idx)
        return sdpa_attention_forward(module, *args, **options)

    ALL_ATTENTION_FUNCTIONS.register("tests_own", own)
    ALL_MASK_ATTENTION_FUNCTIONS.register("tests_own", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = tiny("llava", fresh=True)
    model.model.get_decoder().config._attn_implementation = "tests_own"
    inputs = ask(model, *ROWS)
    edited = logits(model, inputs, EDITS[name].acts)
    assert set(calls) == {*LAYERS}
    assert torch.equal(edited, logits(tiny("llava"), inputs, EDITS[name].acts))
    assert model.model.get_decoder().config._attn_implementation == "tests_own"


@pytest.mark.parametrize("name", MAIN)
def test_autocast_stays_close_to_full_precision(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits(model, inputs, EDITS[name].acts)
    full = logits(model, inputs, EDITS[name].acts)
    plain = logits(model, inputs)
    effect = (full - plain)[:, -1].abs().mean()
    assert (cast - full).abs().mean() < 0.05 * float(full.std()) + 0.2 * effect


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def default(request: pytest.FixtureRequest) -> Iterator[None]:
    """A default dtype that isn't the model's, as scripts set it while they load one."""
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [*EDITS, *CONTRASTS])
def test_the_default_dtype_changes_nothing(name: str, default: None) -> None:
    model, spec = tiny("llava"), {**EDITS, **CONTRASTS}[name].acts
    inputs = ask(model, *ROWS)
    with attach(model.model, spec, processor=model.processor):
        got = scores(model, inputs)
    torch.set_default_dtype(torch.float32)
    with attach(model.model, spec, processor=model.processor):
        want = scores(model, inputs)
    cut = want == -torch.inf
    assert torch.equal(got == -torch.inf, cut)
    torch.testing.assert_close(got[~cut], want[~cut], rtol=0, atol=1e-5 * float(want[~cut].std()))


@pytest.mark.parametrize("name", [*EDITS, *CONTRASTS])
def test_the_default_device_changes_nothing(name: str) -> None:
    """Tensors that land on it by themselves hold no data here."""
    model, spec = tiny("llava"), {**EDITS, **CONTRASTS}[name].acts
    inputs = ask(model, *ROWS)
    with torch.device("meta"), attach(model.model, spec, processor=model.processor):
        got = scores(model, inputs)
    with attach(model.model, spec, processor=model.processor):
        assert torch.equal(got, scores(model, inputs))


@torch.no_grad()
def scores(model: Tiny, inputs: dict[str, Any]) -> Tensor:
    """Scores of two tokens."""
    made = model.model.generate(
        **inputs,
        max_new_tokens=2,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.scores)


@pairs(families=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
def test_a_video_of_one_frame_is_edited_as_an_image_is(family: str, method: Method) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    config: Any = model.model.config
    video = dict(inputs)
    ids = inputs["input_ids"]
    video["input_ids"] = ids.masked_fill(ids == config.image_token_id, config.video_token_id)
    video["mm_token_type_ids"] = 2 * inputs["mm_token_type_ids"]
    video["pixel_values_videos"] = video.pop("pixel_values")
    video["video_grid_thw"] = video.pop("image_grid_thw")
    edited = logits(model, video, method.acts)
    torch.testing.assert_close(edited, logits(model, inputs, method.acts), rtol=0, atol=1e-4)
    assert answer(model, video, method.acts) == answer(model, inputs, method.acts)


def clip_and_picture(model: Tiny, frames: int) -> dict[str, Any]:
    """A prompt with two pictures, of which the first becomes a clip of frames unlike each other."""
    inputs, config = ask(model, (SHORT, [0, 0])), model.model.config
    ids, (grid, other) = inputs["input_ids"], inputs["image_grid_thw"]
    patches = inputs["pixel_values"][: int(grid.prod())]
    drawn = torch.Generator().manual_seed(5)
    noise = [torch.randn(patches.shape, generator=drawn) for _ in range(frames)]
    columns = (ids == config.image_token_id)[0].nonzero().flatten()[: int(grid.prod()) // 4]
    start, end = int(columns[0]), int(columns[-1]) + 1
    clip = torch.full((1, frames * len(columns)), config.video_token_id)
    ids = torch.cat([ids[:, :start], clip, ids[:, end:]], 1)
    kinds = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds,
        "pixel_values": inputs["pixel_values"][len(patches) :], "image_grid_thw": other[None],
        "pixel_values_videos": torch.cat([patches + 0.5 * one for one in noise]),
        "video_grid_thw": grid[None] * torch.tensor([frames, 1, 1]),
    }  # fmt: skip


@pairs(*(name for name in MAIN if name != "paint"), "vcd", "avisc", families=("qwen2_5_vl",))
def test_a_clip_beside_a_picture_is_edited_as_explicit_maps_are(
    family: str, method: Method
) -> None:
    model = tiny(family)
    assert_literal(model, clip_and_picture(model, 3), method.acts, within=5e-5)


@pytest.mark.parametrize("name", MAIN)
def test_inference_mode_gives_the_same_and_leaves_nothing_behind(name: str) -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, *ROWS)
    with attach(model.model, EDITS[name].acts):
        with torch.inference_mode():
            inside = model.model(**inputs).logits.clone()
        with torch.no_grad():
            outside = model.model(**inputs).logits
            made = model.model.generate(**inputs, max_new_tokens=3)
    assert torch.equal(outside, inside)
    assert made[:, -3:].tolist() == answer(model, inputs, EDITS[name].acts, tokens=3)
