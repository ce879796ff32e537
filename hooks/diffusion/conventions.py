"""Conventions of pipelines' classifier-free guidance: one entry for each class.

All branches in one call of the denoiser, or a call for each; which is the conditional one; and how
the running pipeline says whether it guides at all. Each is read off the class's ``__call__`` in
diffusers 0.42. A class that has no entry is refused, for a wrong half is never noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regaze.hooks.calls import own_class

Says = Callable[[Any, Mapping[str, Any]], Any]
"""A function of a running pipeline and the variables of its ``__call__``: does it guide?"""


class UntoldError(ValueError):
    """Raised where it can't be told which rows are conditional; the user may say it."""


@dataclass(frozen=True)
class Convention:
    """The way in which a class of pipelines runs classifier-free guidance.

    Attributes:
        branches: All branches in one call's batch ("batch"), a call for each ("calls"), or one
            branch alone ("none": distilled, or without guidance).
        cond: Position of the conditional one among the halves of the batch, or among the calls of a
            step.
        guided: Source that says if guidance is on: the name of a variable of ``__call__`` or else
            of a property, or a function.
        texts: Variables of ``__call__`` that hold the conditional and the other branch's text.
        named: Variable that names the branch of a call while it runs, where there is one.
        aside: Arguments of the denoiser that mark calls of other kinds of guidance, beside those
            of the branches.
        encoders: Readers of the prompts, see `regaze.hooks.diffusion.text`.
        refuse: Reason why branches can't be told apart; empty if they can.
    """

    branches: Literal["batch", "calls", "none"]
    cond: Literal["first", "last"] = "last"
    guided: str | Says = "do_classifier_free_guidance"
    texts: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds")
    named: str = ""
    aside: tuple[str, ...] = ()
    encoders: tuple[Encoder, ...] = ()
    refuse: str = ""

    def is_guided(self, pipeline: Any, variables: Mapping[str, Any]) -> bool:
        """True if a running pipeline runs both branches.

        Args:
            pipeline: The pipeline.
            variables: The variables of its ``__call__``.

        Raises:
            UntoldError: It doesn't say.
        """
        if self.branches == "none":
            return False
        if callable(self.guided):
            return bool(self.guided(pipeline, variables))
        word = variables.get(self.guided, getattr(pipeline, self.guided, None))
        if word is None:
            raise UntoldError(
                f"{type(pipeline).__name__} has no {self.guided} that says whether guidance is on; "
                "pass cond_rows"
            )
        return bool(word)


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a pipeline, and how it reads prompts.

    Attributes:
        kind: "clip" or "t5".
        tokenizer: Name of its tokenizer among the pipeline's parts.
        prompt: Variable of ``__call__`` with what it reads; ``prompt`` if that is None.
        length: Attribute of the pipeline that says how many columns it has, where the next encoder
            has the rest; all of them if empty.
        beside: Variable of ``__call__`` with another prompt, which a second encoder reads into the
            same columns; ``prompt`` if that is None.
    """

    kind: Literal["clip", "t5"]
    tokenizer: str = "tokenizer"
    prompt: str = "prompt"
    length: str = ""
    beside: str = ""


def _scale(pipeline: Any, variables: Mapping[str, Any]) -> bool:
    return bool(variables["guidance_scale"] > 1)


def _kandinsky5(pipeline: Any, variables: Mapping[str, Any]) -> bool:
    return pipeline.guidance_scale > 1 and variables["negative_prompt_embeds_qwen"] is not None


def _lumina2(pipeline: Any, variables: Mapping[str, Any]) -> bool:
    return pipeline.do_classifier_free_guidance and not variables["do_classifier_free_truncation"]


def _guider(pipeline: Any, variables: Mapping[str, Any]) -> bool:
    return len(variables["guider_state"]) > 1


_CLIP, _T5 = (Encoder("clip", beside="prompt_2"),), (Encoder("t5"),)
_SD = Convention("batch", encoders=_CLIP)
_SD3 = Convention(
    "batch",
    aside=("skip_layers",),
    encoders=(
        Encoder("clip", length="tokenizer_max_length", beside="prompt_2"),
        Encoder("t5", "tokenizer_3", "prompt_3"),
    ),
)
_FLUX_ENCODER = (Encoder("t5", "tokenizer_2", "prompt_2"),)
_HALVES, _CALLS = Convention("batch"), Convention("calls", "first")
_ALONE = Convention("none")
_FLUX = Convention("calls", "first", "do_true_cfg", encoders=_FLUX_ENCODER)
_FLUX_ALONE = Convention("none", encoders=_FLUX_ENCODER)
_TRUE_CFG = Convention("calls", "first", "do_true_cfg")
_T5_HALVES, _T5_CALLS = (
    Convention("batch", encoders=_T5),
    Convention("calls", "first", encoders=_T5),
)
_GUIDER = Convention("calls", "first", _guider, named="context_name")
_LTX2 = Convention(
    "batch",
    texts=("connector_prompt_embeds", "negative_prompt_embeds"),
    aside=("isolate_modalities", "spatio_temporal_guidance_blocks"),
)
_KANDINSKY5 = Convention(
    "calls", "first", _kandinsky5, ("prompt_embeds_qwen", "negative_prompt_embeds_qwen")
)
_Z_IMAGE = Convention("batch", "first", "apply_cfg")
_PIX2PIX = Convention("batch", refuse="it runs three branches: text, image and neither")

CONVENTIONS: dict[str, Convention] = {
    **dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionUpscalePipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionAdapterPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
            "StableDiffusionXLAdapterPipeline",
        ),
        _SD,
    ),
    **dict.fromkeys(
        (
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
        ),
        _SD3,
    ),
    **dict.fromkeys(
        (
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
        ),
        _FLUX,
    ),
    **dict.fromkeys(
        (
            "FluxControlPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxFillPipeline",
        ),
        _FLUX_ALONE,
    ),
    **dict.fromkeys(
        (
            "HunyuanSkyreelsImageToVideoPipeline",
            "HunyuanVideoPipeline",
            "HunyuanVideoImageToVideoPipeline",
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
            "QwenImageControlNetInpaintPipeline",
            "QwenImageEditPipeline",
            "QwenImageEditInpaintPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageLayeredPipeline",
            "QwenImage21Pipeline",
        ),
        _TRUE_CFG,
    ),
    **dict.fromkeys(
        (
            "ChronoEditPipeline",
            "CogView4Pipeline",
            "CogView4ControlPipeline",
            "Flux2KleinPipeline",
            "Flux2KleinInpaintPipeline",
            "Krea2Pipeline",
            "LucyEditPipeline",
            "LongCatImageEditPipeline",
            "LongCatImagePipeline",
            "OvisImagePipeline",
            "SkyReelsV2Pipeline",
            "SkyReelsV2ImageToVideoPipeline",
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVACEPipeline",
            "WanVideoToVideoPipeline",
        ),
        _CALLS,
    ),
    **dict.fromkeys(
        ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"), _T5_CALLS
    ),
    **dict.fromkeys(
        (
            "AllegroPipeline",
            "AnimateDiffControlNetPipeline",
            "AnimateDiffPipeline",
            "AnimateDiffSDXLPipeline",
            "AnimateDiffSparseControlNetPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "AuraFlowPipeline",
            "BriaPipeline",
            "CogView3PlusPipeline",
            "KolorsPipeline",
            "KolorsImg2ImgPipeline",
            # They clean and lower the prompt before it is cut into tokens.
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableUnCLIPImg2ImgPipeline",
            "StableVideoDiffusionPipeline",
        ),
        _HALVES,
    ),
    **dict.fromkeys(
        (
            "CogVideoXPipeline",
            "CogVideoXFunControlPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXVideoToVideoPipeline",
            "LTXPipeline",
            "LTXImageToVideoPipeline",
            "LTXConditionPipeline",
            "MochiPipeline",
        ),
        _T5_HALVES,
    ),
    **dict.fromkeys(("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"), _LTX2),
    **dict.fromkeys(
        (
            "HunyuanImagePipeline",
            "HunyuanVideo15Pipeline",
            "HunyuanVideo15ImageToVideoPipeline",
        ),
        _GUIDER,
    ),
    **dict.fromkeys(
        (
            "Kandinsky5T2VPipeline",
            "Kandinsky5I2VPipeline",
            "Kandinsky5T2IPipeline",
            "Kandinsky5I2IPipeline",
        ),
        _KANDINSKY5,
    ),
    **dict.fromkeys(
        (
            "ZImageControlNetInpaintPipeline",
            "ZImageControlNetPipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImagePipeline",
        ),
        _Z_IMAGE,
    ),
    **dict.fromkeys(
        ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
        _PIX2PIX,
    ),
    **dict.fromkeys(
        (
            "DDIMPipeline",
            "DDPMPipeline",
            "Flux2Pipeline",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
        ),
        _ALONE,
    ),
    "DiTPipeline": Convention("batch", "first", _scale),
    "Lumina2Pipeline": Convention("calls", "first", _lumina2),
}
"""Conventions by the name of the class that defines the pipeline's ``__call__``."""


def convention_of(pipeline: Any) -> Convention:
    """Find the convention of a pipeline's class.

    Raises:
        UntoldError: Nothing is known of it, or that its branches can't be told apart.
    """
    convention = CONVENTIONS.get(name := defining(pipeline, "__call__"))
    if convention is None:
        raise UntoldError(
            f"how {type(pipeline).__name__} runs guidance isn't known here; say which rows of its "
            "denoiser's batch are conditional: attach(..., cond_rows=slice(start, stop))"
        )
    if convention.refuse:
        raise UntoldError(
            f"which rows of {name} are conditional can't be told: {convention.refuse}; say it: "
            "attach(..., cond_rows=slice(start, stop))"
        )
    return convention


def encoders_of(pipeline: Any) -> tuple[Encoder, ...]:
    """The text encoders of a pipeline, in the order of their columns; none if they aren't known."""
    convention = CONVENTIONS.get(defining(pipeline, "__call__"))
    if convention is not None and convention.encoders:
        return convention.encoders
    tokenizers = [name for name in pipeline.components if name.startswith("tokenizer")]
    # A pipeline whose one tokenizer is CLIP's has no other text.
    only_clip = tokenizers == ["tokenizer"] and "CLIP" in type(pipeline.tokenizer).__name__
    return _CLIP if only_clip else ()


def defining(thing: Any, method: str) -> str:
    """Name of the class that says what an object's method does.

    diffusers' own class, or a class from elsewhere that has a method of its own: another one's
    subclass that leaves the method as it was is what its parent is. A name of diffusers means its
    own class alone: a copy that was changed, or a method that was put in another's place, has the
    name of its module before it.
    """
    for one in own_class(type(thing)).__mro__:
        if one.__module__.startswith("diffusers."):
            code = getattr(one, method, None)
            whose = getattr(code, "__module__", None) or one.__module__
            if whose.startswith("diffusers."):
                return one.__name__
            return f"{whose}.{getattr(code, '__qualname__', one.__name__)}"
        if method in vars(one):
            theirs = getattr(sys.modules.get("diffusers"), one.__name__, one)
            return one.__name__ if theirs == one else f"{one.__module__}.{one.__qualname__}"
    return type(thing).__name__
