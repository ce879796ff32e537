"""Frame consistency by CLIP, for real pictures: the mean cosine of neighbouring frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.errors import HFValidationError

from regaze.evals.asking.models import identify
from regaze.evals.pictures.scorers.base import Images, Ready, Scorer
from regaze.evals.task import Counts


@dataclass(frozen=True)
class FrameConsistency(Scorer):
    """100 cos of a frame's CLIP image embedding and that of the frame before.

    What video papers call frame consistency. It hardly sees small things flicker, and a clip in
    which nothing moves scores best.

    Attributes:
        model: A CLIP model: folder or Hub id. Numbers of different models can't be compared.
    """

    name: ClassVar[str] = "frame_consistency"
    summary: ClassVar[str] = "cosine of neighbouring frames' CLIP embeddings"
    paper: ClassVar[str] = "none"
    directions: ClassVar = {"frame_consistency": 1}
    absolute: ClassVar = ("frame_consistency",)
    compares: ClassVar[bool] = True

    model: str = "openai/clip-vit-large-patch14"

    def load(self, device: str) -> Ready:
        """Load the model's image half."""
        try:
            model: Any = transformers.CLIPVisionModelWithProjection.from_pretrained(
                self.model, dtype=torch.float32, use_safetensors=True
            )
            processor = transformers.CLIPImageProcessor.from_pretrained(self.model)
        except (OSError, ValueError, RuntimeError, HFValidationError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"frame_consistency: {self.model} can't be loaded: {reason}"
            ) from error
        model = model.to(device).eval()

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            shown = processor(images=[*images, *references], return_tensors="pt")
            found = model(pixel_values=shown.pixel_values.to(device)).image_embeds
            now, before = torch.nn.functional.normalize(found, dim=-1).chunk(2)
            return [{"frame_consistency": 100 * each} for each in (now * before).sum(-1).tolist()]

        weights = identify(model)["weights_sha256"]
        return Ready(score, self.identity("transformers", weights=weights))
