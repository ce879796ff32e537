"""HPSv2: which pictures people prefer for a prompt, by an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from regaze.evals.pictures.scorers.base import (
    Images,
    Ready,
    Scorer,
    check_lengths,
    file_sha256,
    register,
    require,
)
from regaze.evals.task import Counts


@register
@dataclass(frozen=True)
class HPSv2(Scorer):
    """Cosine of a picture and its prompt (arXiv 2306.09341); shown times 100, as papers print it.

    Versions 2.0 and 2.1 are different weights whose numbers can't be compared.

    Attributes:
        weights: The released file, ``HPS_v2_compressed.pt`` or ``HPS_v2.1_compressed.pt`` of
            xswu/HPSv2 on the Hub. open_clip reads nothing but tensors from it.
        architecture: open_clip's name of the model.
    """

    name: ClassVar[str] = "hpsv2"
    summary: ClassVar[str] = "HPSv2: which pictures people prefer for a prompt"
    paper: ClassVar[str] = "arXiv 2306.09341"
    directions: ClassVar = {"hpsv2": 1}

    weights: str = ""
    architecture: str = "ViT-H-14"

    def load(self, device: str) -> Ready:
        """Load the model."""
        path = Path(self.weights)
        if not self.weights or not path.is_file():
            missing = f"no file {self.weights!r} here" if self.weights else "which weights"
            raise ValueError(
                f"hpsv2: {missing}; download HPS_v2.1_compressed.pt of xswu/HPSv2 and give --score "
                "hpsv2:weights=FILE"
            )
        open_clip = require("open_clip", "open_clip_torch")
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                self.architecture, pretrained=str(path), device=device, precision="fp32"
            )
        except Exception as error:  # whatever another file than these weights makes it raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"hpsv2: {path} doesn't load ({reason})") from error
        model.eval()
        tokenize = open_clip.get_tokenizer(self.architecture)

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            check_lengths(images, prompts)
            pixels = torch.stack([preprocess(image) for image in images]).to(device)
            seen = model.encode_image(pixels, normalize=True)
            read = model.encode_text(tokenize(list(prompts)).to(device), normalize=True)
            return [{"hpsv2": cosine} for cosine in (seen * read).sum(-1).tolist()]

        return Ready(score, self.identity("open_clip_torch", weights_sha256=file_sha256(path)))
