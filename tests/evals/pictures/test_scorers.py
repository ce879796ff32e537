from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModelWithProjection,
)

from regaze.evals.pictures import scorers
from regaze.evals.pictures.scorers import IMAGES, Scorer, base
from regaze.evals.sandbox.painting.build import build_tokenizer
from regaze.evals.sandbox.painting.scenes import scene

PROMPTS = ["a red circle", "a blue cross and a white square", "a green triangle"]


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    values = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (*size[::-1], 3))
    return Image.fromarray(values.astype(np.uint8))


PICTURES = [noise(seed) for seed in range(3)]


def counts(text: str, images: Sequence[Image.Image], prompts: Sequence[str], **given: Any) -> Any:
    scorer = scorers.parse(text)
    assert isinstance(scorer, Scorer)
    return scorer.load("cpu").score(images, prompts, given.get("references", images))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, and the processor that belongs to it."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def literal_cosines(folder: Path, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
    """One by one, from the towers themselves."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            inputs = processor(text=[prompt], images=[image], return_tensors="pt")
            seen = model.vision_model(pixel_values=inputs.pixel_values).pooler_output
            read = model.text_model(input_ids=inputs.input_ids).pooler_output
            pair = (model.visual_projection(seen), model.text_projection(read))
            found.append(float(torch.cosine_similarity(*pair)))
    return found


def test_clip_score_is_a_hundred_cosines_but_never_negative(clip: Path) -> None:
    cosines = literal_cosines(clip, PICTURES, PROMPTS)
    found = [each["clip_score"] for each in counts(f"clip:model={clip}", PICTURES, PROMPTS)]
    assert found == pytest.approx([100 * max(cosine, 0) for cosine in cosines], abs=1e-4)
    prefixed = literal_cosines(clip, PICTURES, [f"and {prompt}" for prompt in PROMPTS])
    found = [each["clip_score"] for each in counts(f"clip:model={clip},prefix=and", PICTURES,
                                                   PROMPTS)]  # fmt: skip
    assert found == pytest.approx([100 * max(cosine, 0) for cosine in prefixed], abs=1e-4)


def test_pickscore_is_the_scaled_cosine(clip: Path) -> None:
    scale = float(CLIPModel.from_pretrained(clip).logit_scale.detach().exp())
    found = counts(f"pickscore:model={clip},processor={clip}", PICTURES, PROMPTS)
    cosines = literal_cosines(clip, PICTURES, PROMPTS)
    assert [each["pickscore"] for each in found] == pytest.approx(
        [scale * cosine for cosine in cosines], abs=1e-4
    )


def test_the_aesthetic_score_runs_the_layers_in_order_on_the_unit_embedding(
    clip: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    layers = {0: torch.nn.Linear(8, 6), 2: torch.nn.Linear(6, 3), 10: torch.nn.Linear(3, 1)}
    head = tmp_path / "head.safetensors"
    save_file({f"layers.{i}.{k}": v for i, m in layers.items() for k, v in m.state_dict().items()},
              head)  # fmt: skip
    found = counts(f"aesthetic:head={head},model={clip}", PICTURES, PROMPTS)
    model = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    processor = CLIPImageProcessor.from_pretrained(clip)
    with torch.no_grad():
        pixels = processor(images=PICTURES, return_tensors="pt").pixel_values
        x = torch.nn.functional.normalize(model(pixel_values=pixels).image_embeds)
        for layer in layers.values():
            x = layer(x)
    assert [each["aesthetic"] for each in found] == pytest.approx(x[:, 0].tolist(), abs=1e-5)


def test_an_aesthetic_head_that_does_not_fit_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a pickle, which could run code"):
        counts("aesthetic:head=sac+logos+ava1-l14-linearMSE.pth", PICTURES, PROMPTS)
    head = tmp_path / "head.safetensors"
    save_file({"layers.0.weight": torch.zeros(1, 4), "layers.0.bias": torch.zeros(1)}, head)
    with pytest.raises(ValueError, match=r"takes 4 dimensions, but .* gives 8"):
        counts(f"aesthetic:head={head},model={clip}", PICTURES, PROMPTS)
    save_file({"layers.0.weight": torch.zeros(2, 4), "layers.0.bias": torch.zeros(2)}, head)
    with pytest.raises(ValueError, match=r"don't lead to one number"):
        counts(f"aesthetic:head={head},model={clip}", PICTURES, PROMPTS)


def test_models_that_are_not_there_are_named_in_one_line(clip: Path) -> None:
    with pytest.raises(ValueError, match=r"model nobody/nothing is no folder here") as caught:
        counts("clip:model=nobody/nothing", PICTURES, PROMPTS)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"which weights; download HPS_v2\.1_compressed\.pt"):
        counts("hpsv2", PICTURES, PROMPTS)


def test_a_list_of_prompts_of_another_length_is_refused(clip: Path) -> None:
    for text in (f"clip:model={clip}", "painting"):
        with pytest.raises(ValueError, match=r"3 pictures but 2 prompts"):
            counts(text, PICTURES, PROMPTS[:2])


def test_the_painting_scorer_finds_everything_in_drawn_scenes() -> None:
    scenes = [scene("train", index) for index in range(8)]
    scorer = scorers.parse("painting")
    assert isinstance(scorer, Scorer)
    found = counts(
        "painting", [each.image for each in scenes], [each.wanted.prompt for each in scenes]
    )
    sums = {
        key: np.array(float(sum(each[key] for each in [{IMAGES: 1, **row} for row in found])))
        for key in {IMAGES, *found[0]}
    }
    metrics = scorer.metrics(sums)
    assert metrics["right"] == metrics["found"] == 1
    assert metrics["missing"] == metrics["leaked"] == metrics["extra"] == 0
    assert [scorer.value(each) for each in found] == [1.0] * 8
    black = [Image.new("RGB", (32, 32), (40, 40, 44))]
    assert scorer.value(counts("painting", black, [scenes[0].wanted.prompt])[0]) == 0


def test_psnr_is_in_decibels_and_undefined_for_equal_pictures() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (51, 51, 51))
    (found,) = counts("psnr", [grey], [""], references=[black])
    assert found["psnr"] == pytest.approx(20 * math.log10(5))
    (found,) = counts("psnr", [grey], [""], references=[grey])
    assert math.isnan(found["psnr"])
    with pytest.raises(ValueError, match=r"8 x 8 can't be compared with a reference of 32 x 32"):
        counts("psnr", [grey], [""], references=[noise(0)])


def test_ssim_is_one_for_equal_pictures_and_less_for_others() -> None:
    pytest.importorskip("skimage")
    (found,) = counts("ssim", [noise(0)], [""], references=[noise(0)])
    assert found["ssim"] == pytest.approx(1)
    (found,) = counts("ssim", [noise(0)], [""], references=[noise(1)])
    assert found["ssim"] < 0.2


def test_a_library_that_is_missing_or_broken_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImportError, match=r"^no-such isn't installed: pip install no-such$"):
        base.require("no_such_module", "no-such")
    (tmp_path / "halfinstalled.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"numpy .* doesn't load \(operator does not exist\): r"):
        base.require("halfinstalled", "numpy")


def test_labels_can_be_read_back() -> None:
    for text in ("clip", "clip:model=a/b,prefix=A photo of, say", "fid:reference=x,mode=clean"):
        assert scorers.parse(scorers.parse(text).label) == scorers.parse(text)
    prefix = scorers.parse("clip:prefix=A photo of, say,")
    assert getattr(prefix, "prefix") == "A photo of, say,"  # noqa: B009 (a scorer's own field)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clipp", "did you mean clip"),
        ("clip:modle=x", "unknown field of clip 'modle'; did you mean model"),
        ("clip:model", "expected field=value"),
    ],
)
def test_unknown_scorers_and_fields_name_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorers.parse(text)
