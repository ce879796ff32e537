"""Scores from CLIP models: CLIPScore, PickScore and the LAION aesthetic predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regaze.evals.asking.models import identify
from regaze.evals.pictures.scorers.base import (
    Images,
    Ready,
    Scorer,
    check_lengths,
    file_sha256,
    register,
)
from regaze.evals.task import Counts
from regaze.evals.weights import check_loaded, check_source


@register
@dataclass(frozen=True)
class ClipScore(Scorer):
    """100 max(cos, 0) of a picture and its prompt (arXiv 2104.08718, section 3).

    The scale is that of torchmetrics; the paper writes 2.5 instead of 100. Prompts are cut at the
    model's 77 tokens.

    Attributes:
        model: A CLIP model: folder or Hub id. Numbers of different models can't be compared.
        prefix: Words put before every prompt. The paper uses "A photo depicts", torchmetrics none.
    """

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "CLIPScore: how well a picture fits its prompt"
    paper: ClassVar[str] = "arXiv 2104.08718"
    directions: ClassVar = {"clip_score": 1}
    absolute: ClassVar = ("clip_score",)

    model: str = "openai/clip-vit-large-patch14"
    prefix: str = ""

    def load(self, device: str) -> Ready:
        """Load the model."""
        pair = Pair(self.model, self.model, device)

        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            cosines = pair.cosines(
                images, [f"{self.prefix} {prompt}".strip() for prompt in prompts]
            )
            return [{"clip_score": 100 * max(cosine, 0.0)} for cosine in cosines]

        return Ready(score, self.identity("transformers", weights=pair.sha256))


@register
@dataclass(frozen=True)
class PickScore(Scorer):
    """exp(logit scale) cos of a picture and its prompt, by a CLIP trained on people's choices.

    Mostly between 18 and 24 (arXiv 2305.01569).

    Attributes:
        model: Folder or Hub id.
        processor: The processor, where the model comes without one.
    """

    name: ClassVar[str] = "pickscore"
    summary: ClassVar[str] = "PickScore: which pictures people prefer for a prompt"
    paper: ClassVar[str] = "arXiv 2305.01569"
    directions: ClassVar = {"pickscore": 1}
    absolute: ClassVar = ("pickscore",)

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def load(self, device: str) -> Ready:
        """Load the model."""
        pair = Pair(self.model, self.processor, device)
        scale = float(pair.model.logit_scale.detach().exp())

        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            return [{"pickscore": scale * cosine} for cosine in pair.cosines(images, prompts)]

        return Ready(score, self.identity("transformers", weights=pair.sha256))


@register
@dataclass(frozen=True)
class Aesthetic(Scorer):
    """Aesthetic score of a picture by itself, about 1 to 10, by the LAION predictor.

    A stack of linear layers without activations on the normalised CLIP L/14 embedding
    (christophschuhmann/improved-aesthetic-predictor, ``simple_inference.py``).

    Attributes:
        head: The layers as safetensors, keys ``layers.0.weight``, ``layers.0.bias`` and so on.
            The original is a pickle, ``sac+logos+ava1-l14-linearMSE.pth``: convert it once.
        model: The CLIP model that the head was trained on.
    """

    name: ClassVar[str] = "aesthetic"
    summary: ClassVar[str] = "LAION aesthetic score: how pleasing a picture is, whatever its prompt"
    paper: ClassVar[str] = "LAION-Aesthetics V2"
    directions: ClassVar = {"aesthetic": 1}
    absolute: ClassVar = ("aesthetic",)

    head: str = ""
    model: str = "openai/clip-vit-large-patch14"

    def load(self, device: str) -> Ready:
        """Load the model and the head."""
        path = Path(self.head)
        if not self.head or path.suffix != ".safetensors":
            raise ValueError(
                "aesthetic needs its linear layers as safetensors: --score "
                "aesthetic:head=FILE.safetensors (the released .pth is a pickle, which could run "
                "code: convert it once in an environment you trust)"
            )
        try:
            weights = load_file(path, device=device)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        layers = _linear_layers(weights, path)
        model = load_model(transformers.CLIPVisionModelWithProjection, self.model, device)
        processor = load_processor(transformers.CLIPImageProcessor, self.model)
        width = model.config.projection_dim
        if layers[0][0].shape[1] != width:
            raise ValueError(
                f"{path} takes {layers[0][0].shape[1]} dimensions, but {self.model} gives {width}: "
                "give the CLIP model it was trained on"
            )

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            pixels = processor(images=list(images), return_tensors="pt").pixel_values.to(device)
            x = unit(model(pixel_values=pixels).image_embeds)
            for weight, bias in layers:
                x = torch.nn.functional.linear(x, weight, bias)
            return [{"aesthetic": value} for value in x[:, 0].tolist()]

        identity = self.identity(
            "transformers", weights=identify(model)["weights_sha256"], head_sha256=file_sha256(path)
        )
        return Ready(score, identity)


class Pair:
    """A CLIP model that embeds pictures and prompts."""

    def __init__(self, name: str, processor: str, device: str) -> None:
        self.model = load_model(transformers.CLIPModel, name, device)
        self.processor = load_processor(transformers.CLIPProcessor, processor)
        self.device = device
        self.sha256 = str(identify(self.model)["weights_sha256"])

    @torch.no_grad()
    def cosines(self, images: Images, prompts: Sequence[str]) -> list[float]:
        """The score of each picture and its prompt."""
        check_lengths(images, prompts)
        inputs = self.processor(
            text=list(prompts),
            images=list(images),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.device)
        # The whole model, not get_image_features: what that returns changed in transformers 5.
        output = self.model(**inputs)
        found: list[float] = (unit(output.image_embeds) * unit(output.text_embeds)).sum(-1).tolist()
        return found


def load_model(cls: Any, name: str, device: str) -> Any:
    """A model of transformers, float32, from a folder or the Hub.

    Raises:
        ValueError: It can't be had, or weights are missing.
    """
    try:
        check_source(name)
        model, info = cls.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        # Half of a CLIP model is loaded of the whole one's weights, so some may be left over.
        check_loaded(name, info)
    except Exception as error:  # whatever a damaged folder makes its loader raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(_unloadable("model", name, error)) from error
    return model.to(device).eval()


def load_processor(cls: Any, name: str) -> Any:
    """A processor or tokenizer of transformers.

    Raises:
        ValueError: It can't be had.
    """
    try:
        return cls.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever a damaged folder makes its loader raise
        raise ValueError(_unloadable("processor", name, error)) from error


def _unloadable(what: str, name: str, error: BaseException) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    where = (
        "is damaged" if Path(name).is_dir() else "is no folder here and can't be had from the Hub"
    )
    return f"{what} {name} {where} ({reason}); give a folder, e.g. --score clip:model=DIR"


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return torch.nn.functional.normalize(x, dim=-1)


def _linear_layers(weights: dict[str, Tensor], path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer, in the order of the numbers in their names."""
    names = sorted(
        {key.rpartition(".")[0] for key in weights}, key=lambda n: int("0" + n.rpartition(".")[2])
    )
    try:
        layers = [(weights[f"{n}.weight"].float(), weights[f"{n}.bias"].float()) for n in names]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds {', '.join(sorted(weights)[:3])}, ...: expected layers.0.weight, "
            "layers.0.bias and so on"
        ) from error
    sizes = [tuple(weight.shape) for weight, _ in layers]
    if any(a[0] != b[1] for a, b in zip(sizes, sizes[1:], strict=False)) or sizes[-1][0] != 1:
        raise ValueError(f"{path} holds layers of shapes {sizes}, which don't lead to one number")
    return layers
