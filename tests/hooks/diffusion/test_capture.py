from __future__ import annotations

from typing import Any

import pytest
import tiny_painter
import torch
from tiny_pipelines import FAMILIES, TEXT, tiny

import regaze
from regaze.hooks.diffusion import capture
from regaze.hooks.diffusion.literal_latents import recorded

LAYERS: dict[str, tuple[Any, ...]] = {
    "sd": ("mid",),
    "sd35": (0, 1),
    "flux": (1, 2),
    "wan": ("blocks.1",),
}
NAMES = {
    "sd": ["mid_block.attentions.0.transformer_blocks.0.attn2"],
    "sd35": ["transformer_blocks.0.attn", "transformer_blocks.1.attn"],
    "flux": ["transformer_blocks.1.attn", "single_transformer_blocks.0.attn"],
    "wan": ["blocks.1.attn2"],
}


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("family", LAYERS)
def test_what_is_seen_are_the_text_columns_of_the_whole_maps(family: str, guided: bool) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    once: dict[str, Any] = {"num_inference_steps": 1}
    plain = kind.run(pipe, guided=guided, **once)
    with capture(pipe, LAYERS[family]) as seen:
        looked = kind.run(pipe, guided=guided, **once)
    # A backend that was set meanwhile, which diffusers does for all models, computes otherwise.
    torch.testing.assert_close(looked, plain, atol=1e-5, rtol=1e-5)
    assert not denoiser._forward_hooks
    first: list[Any] = []
    with recorded(denoiser, NAMES[family]) as found:
        hook = denoiser.register_forward_hook(lambda m, a, o: first.append(dict(found)))
        kind.run(pipe, guided=guided, **once)
        hook.remove()
    maps = []
    for whole in first[0].values():  # With a call per branch the conditional one comes first.
        text = {"sd35": whole[:, :, :-TEXT, -TEXT:], "flux": whole[:, :, TEXT:, :TEXT]}
        maps += list(text.get(family, whole)[-2:].unbind(1))
    (got,) = seen.steps
    torch.testing.assert_close(
        got.reshape(2, -1, TEXT), torch.stack(maps).mean(0), atol=1e-6, rtol=1e-5
    )


def test_words_of_a_running_pipeline() -> None:
    pipe = tiny_painter.fresh().pipeline
    pipe.set_progress_bar_config(disable=True)
    with capture(pipe, ["mid"]) as seen:
        with pytest.raises(ValueError, match="nothing was seen"):
            seen.map("circle")
        pipe("a red circle and a blue square", num_inference_steps=2, output_type="latent")
    frames, rows, columns = seen.map("circle").shape
    assert (frames, rows, columns) == (1, *seen.steps[0].shape[2:4])
    torch.testing.assert_close(seen.map("red circle"), (seen.map("red") + seen.map("circle")) / 2)
    assert seen.iou("circle", "circle") == 1.0
    assert 0 <= seen.iou("circle", "square") <= 1
    seen.steps = [torch.zeros(1, 1, 1, 4, 16)]
    seen.steps[0][..., :2, 3] = seen.steps[0][..., 1:3, 7] = 1.0  # The nouns' columns.
    assert seen.iou("circle", "square") == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="'cat' isn't in the prompt; its tokens are 0 <|start"):
        seen.map("cat")


def test_moved_latents_are_looked_at() -> None:
    pipe = tiny_painter.fresh().pipeline
    pipe.set_progress_bar_config(disable=True)

    def seen_with(*specs: Any) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        with regaze.attach(pipe, *specs), capture(pipe, ["mid"]) as seen:
            pipe("a red circle", generator=noise, num_inference_steps=1, output_type="latent")
        return seen.steps[0]

    assert not torch.equal(seen_with(), seen_with(regaze.AStar(tokens=["red", "circle"])))


def test_what_cannot_be_looked_at_raises() -> None:
    pipe = tiny("sd")
    with pytest.raises(TypeError, match="is no diffusers pipeline"), capture(pipe.unet, ["mid"]):
        pass
    with pytest.raises(ValueError, match="sees no text"), capture(pipe, ["L0"]):
        pass
    compiled = FAMILIES["sd"].build()
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    with pytest.raises(ValueError, match="capture before compiling"), capture(compiled, ["mid"]):
        pass

    def fails(*_: Any) -> None:
        raise KeyError("gone")

    hook = pipe.unet.conv_in.register_forward_pre_hook(fails)
    with capture(pipe, ["mid"]), pytest.raises(KeyError):
        FAMILIES["sd"].run(pipe)
    hook.remove()
    assert not pipe.unet._forward_hooks
