"""Frame consistency by CLIP, for real pictures: the mean cosine of neighbouring frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import transformers

from regaze.evals.asking.models import identify
from regaze.evals.pictures.scorers.base import Images, Ready, Scorer
from regaze.evals.pictures.scorers.clip import load_model, load_processor
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
        model = load_model(transformers.CLIPVisionModelWithProjection, self.model, device)
        processor = load_processor(transformers.CLIPImageProcessor, self.model)

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            shown = processor(images=[*images, *references], return_tensors="pt")
            found = model(pixel_values=shown.pixel_values.to(device)).image_embeds
            now, before = torch.nn.functional.normalize(found, dim=-1).chunk(2)
            return [{"frame_consistency": 100 * each} for each in (now * before).sum(-1).tolist()]

        weights = identify(model)["weights_sha256"]
        return Ready(score, self.identity("transformers", weights=weights))
