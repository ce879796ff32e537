"""What has to be known of a denoiser's class, and of a pipeline's, to edit attention in them.

One entry per class: where a denoiser's attention modules are and what their rows hold, and how a
pipeline runs guidance. Nothing here is guessed from shapes: a class that has no entry is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["self", "joint", "cross", "temporal", "linear", "other"]
"""What the rows of an attention module attend to: the picture ("self"), picture and text ("joint"),
the text or other columns that aren't the rows ("cross"), the same place in other frames
("temporal"), everything by running sums without a map ("linear"), or rows that aren't the picture's
("other": text alone, sound)."""

Order = Literal["image", "image-text", "text-image"]
"""In which order a call holds its streams."""


@dataclass(frozen=True)
class Rule:
    """What some attention modules of a denoiser are.

    Attributes:
        path: Regular expression that a module's whole path matches.
        kind: What its rows attend to.
        order: How its rows are laid out.
        counted: Whether it is one of the numbered layers; of self- and joint attention only.
    """

    path: str
    kind: Kind
    order: Order = "image"
    counted: bool = True


@dataclass(frozen=True)
class Family:
    """A class of denoisers.

    Attributes:
        attention: What its attention modules are; the first rule whose path matches holds.
        blocks: Names of its lists of blocks (or of a single block), in the order in which they run.
        chain: Whether a block reads nothing but what the one before it returned, so that of a run
            of blocks that a branch skips only the last one's output has to be kept.
        sample: Which argument holds the latents.
        text: Which argument holds the text stream, if there is one.
        lists: Arguments that are lists with one entry for each row of the batch.
        per_token: Arguments that run over tokens, whatever their first size happens to be.
        per_frame: Arguments that may hold all frames of a sample one after the other.
        refuse: Why it can't be edited; empty if it can.
    """

    attention: tuple[Rule, ...] = ()
    blocks: tuple[str, ...] = ("transformer_blocks",)
    chain: bool = False
    sample: str = "hidden_states"
    text: str = "encoder_hidden_states"
    lists: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    per_frame: tuple[str, ...] = ()
    refuse: str = ""


@dataclass(frozen=True)
class Convention:
    """How a class of pipelines runs classifier-free guidance.

    Attributes:
        branches: All branches in one call's batch ("batch"), a call for each ("calls"), or one
            branch alone ("none": distilled, or guided otherwise).
        cond: Which half of the batch, or which of a step's calls, is the conditional one.
        guided: Name of what says whether guidance is on: a property of the pipeline or a variable
            of its ``__call__``.
        texts: Variables of ``__call__`` that hold the conditional and the other branch's text.
        refuse: Why guidance can't be told apart here; empty if it can.
    """

    branches: Literal["batch", "calls", "none"]
    cond: Literal["first", "last"] = "last"
    guided: str = "do_classifier_free_guidance"
    texts: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds")
    refuse: str = ""

    def is_guided(self, pipeline: Any, variables: Mapping[str, Any]) -> bool:
        """Whether a running pipeline runs both branches.

        Args:
            pipeline: It.
            variables: Of its ``__call__``.

        Raises:
            ValueError: It doesn't say.
        """
        if self.branches == "none":
            return False
        word = variables.get(self.guided, getattr(pipeline, self.guided, None))
        if word is None:
            raise ValueError(
                f"{type(pipeline).__name__} has no {self.guided} that says whether guidance is on; "
                "pass cond_rows"
            )
        return bool(word)


_UNET = Family(
    attention=(
        Rule(r".*motion_modules.*|.*temp(oral)?_(attentions|transformer).*", "temporal"),
        Rule(r".*\.attn1", "self"),
        Rule(r".*\.attn2", "cross"),
    ),
    blocks=("down_blocks", "mid_block", "up_blocks"),
    sample="sample",
    per_frame=(
        "encoder_hidden_states",
        "added_cond_kwargs",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
    ),
)
_SELF_AND_CROSS = (Rule(r".*\.attn1", "self"), Rule(r".*\.attn2", "cross"))

FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": _UNET,
    "UNetMotionModel": _UNET,
    "SD3Transformer2DModel": Family(
        attention=(
            Rule(r".*\.attn", "joint", "image-text"),
            Rule(r".*\.attn2", "self", counted=False),
        ),
        chain=True,
    ),
    "FluxTransformer2DModel": Family(
        attention=(Rule(r".*\.attn", "joint", "text-image"),),
        blocks=("transformer_blocks", "single_transformer_blocks"),
        chain=True,
        per_token=("img_ids", "txt_ids"),
    ),
    "PixArtTransformer2DModel": Family(attention=_SELF_AND_CROSS, chain=True),
    "WanTransformer3DModel": Family(attention=_SELF_AND_CROSS, blocks=("blocks",), chain=True),
    "QwenImageTransformer2DModel": Family(
        attention=(Rule(r".*\.attn", "joint", "text-image"),), chain=True
    ),
}
"""Families by the name of the class that defines the denoiser's ``forward``."""

_HALVES = Convention("batch")
_TRUE_CFG = Convention("calls", "first", guided="do_true_cfg")

CONVENTIONS: dict[str, Convention] = {
    "StableDiffusionPipeline": _HALVES,
    "StableDiffusionXLPipeline": _HALVES,
    "StableDiffusion3Pipeline": _HALVES,
    "StableDiffusionControlNetPipeline": _HALVES,
    "StableDiffusionImg2ImgPipeline": _HALVES,
    "StableDiffusionInpaintPipeline": _HALVES,
    "AnimateDiffPipeline": _HALVES,
    "PixArtSigmaPipeline": _HALVES,
    "FluxPipeline": _TRUE_CFG,
    "QwenImagePipeline": _TRUE_CFG,
    "WanPipeline": Convention("calls", "first"),
}
"""Conventions by the name of the class that defines the pipeline's ``__call__``."""


def family_of(denoiser: Any) -> Family:
    """What is known of a denoiser's class.

    Args:
        denoiser: A U-Net or transformer; not compiled, or unwrapped.

    Raises:
        ValueError: Nothing is known of it, or that it can't be edited.
    """
    family = FAMILIES.get(name := _defining(denoiser, "forward"))
    if family is None:
        raise ValueError(
            f"{type(denoiser).__name__} isn't known here: which of its attention is the picture's, "
            "and where its text is, would be a guess. `regaze verify` tells whether edits act on "
            'it as they should; attach(..., unknown="check") runs that check and goes on if it '
            "passes"
        )
    if family.refuse:
        raise ValueError(f"{name} can't be edited: {family.refuse}")
    return family


def convention_of(pipeline: Any) -> Convention:
    """How a pipeline's class runs guidance.

    Raises:
        ValueError: Nothing is known of it, or that its branches can't be told apart.
    """
    convention = CONVENTIONS.get(name := _defining(pipeline, "__call__"))
    if convention is None:
        raise ValueError(
            f"how {type(pipeline).__name__} runs guidance isn't known here; say which rows of its "
            "denoiser's batch are conditional: attach(..., cond_rows=slice(start, stop))"
        )
    if convention.refuse:
        raise ValueError(f"{name} can't be guided: {convention.refuse}")
    return convention


def _defining(thing: Any, method: str) -> str:
    """Name of the class from which an object has a method: what a subclass leaves as it was."""
    return next(c.__name__ for c in type(thing).__mro__ if method in vars(c))
