"""Inversion: the latents from which a pipeline's deterministic steps lead to given pictures.

With signal a and noise s of a level, its latents are ``x = a x0 + s e``, and a DDIM step to the
next level (a', s') is

    x' = a' x0(x, m) + s' e(x, m)

for the model's output m at x, of which x0 and e are linear functions. Solved for x with m held,
that is a step upwards; m is first taken at x', and then a few times at the x that it gave, until
the step downwards from there gives x' back.

Levels are those of the pipeline's scheduler in this run, whatever solver it is. PrimeComposer's
code inverts by DPM-Solver++ of order 2 running upwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

_BY_TIMESTEP = ("DDIMScheduler", "DDPMScheduler")
_BY_SIGMA = ("DPMSolverMultistepScheduler",)
_UNSCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
SCHEDULERS = (*_BY_TIMESTEP, *_BY_SIGMA, *_UNSCALED)
"""Schedulers whose latents in a step are known to be those of that step's level."""
TEXTS = ("exceptional", "empty")


class Level(NamedTuple):
    """The shares of signal and noise before a step, but for a factor: signal² + noise² = 1.

    Attributes:
        t: The step's timestep.
        signal: Factor of the picture.
        noise: Factor of the noise.
        factor: The pipeline's latents, in multiples of these.
    """

    t: Tensor
    signal: float
    noise: float
    factor: float


def levels(method: str, scheduler: Any) -> list[Level]:
    """The levels of a scheduler's steps, the noisiest first.

    Raises:
        ValueError: It isn't one of `SCHEDULERS`.
    """
    name = scheduler.__class__.__name__  # Of what a proxy stands for.
    if name not in SCHEDULERS:
        raise ValueError(
            f"{method}: what latents hold in a step of {name} isn't known; use "
            f"{', '.join(SCHEDULERS[:-1])} or {SCHEDULERS[-1]}"
        )
    found = []
    for step, t in enumerate(scheduler.timesteps):
        if name in _BY_TIMESTEP:
            kept = float(scheduler.alphas_cumprod[int(t)])
            found.append(Level(t, kept**0.5, (1 - kept) ** 0.5, 1.0))
            continue
        sigma = float(scheduler.sigmas[step])
        length = (1 + sigma**2) ** 0.5
        found.append(Level(t, 1 / length, sigma / length, length if name in _UNSCALED else 1.0))
    return found


def invert(
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    found: Sequence[Level],
    prediction: str,
    refine: int = 0,
) -> Tensor:
    """The pipeline's latents of every level, "B T+1 ...": the noisiest first, the clean ones last.

    Args:
        predict: The model's output at latents (of factor 1) and a timestep.
        clean: The pictures' latents, "B ...".
        found: The levels.
        prediction: The model's prediction: "epsilon" or "v_prediction".
        refine: Number of times that a step is solved again.

    Raises:
        ValueError: Another prediction, or a step that can't be solved.
    """
    x, below = clean, Level(clean, 1.0, 0.0, 1.0)
    made = [clean]
    for level in reversed(found):
        keeps, adds = _step(level, below, prediction)
        guess = x
        for _ in range(refine + 1):
            guess = (x - adds * predict(guess, level.t)) / keeps
        made.append(guess * level.factor)
        x, below = guess, level
    return torch.stack(made[::-1], 1)


@torch.no_grad()
def inverted(
    pipeline: Any,
    pictures: Sequence[Image.Image],
    steps: int,
    text: str = "exceptional",
    refine: int = 3,
) -> Tensor:
    """Pictures as latents of every step of a pipeline, "B T+1 C H W", to be used more than once.

    Args:
        pipeline: Stable Diffusion's, with nothing attached.
        pictures: RGB, of the size to make.
        steps: Sampling steps.
        text: Under what prompt, one of `TEXTS`.
        refine: Number of times that a step is solved again.

    Raises:
        ValueError: Its scheduler, autoencoder or text encoder isn't known, or it has two.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    if getattr(unet.config, "addition_embed_type", None) is not None:
        raise ValueError(f"{type(pipeline).__name__} can't be inverted apart from a run of it")
    scheduler.set_timesteps(steps, device=pipeline._execution_device)
    words = text_of("inversion", pipeline, text)[0].expand(len(pictures), -1, -1)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        predicted: Tensor = unet(x.to(unet.dtype), t, words, return_dict=False)[0]
        return predicted.float()

    clean, predicts = encoded("inversion", pipeline, pictures), scheduler.config.prediction_type
    return invert(predict, clean, levels("inversion", scheduler), predicts, refine)


def _step(level: Level, below: Level, prediction: str) -> tuple[float, float]:
    """Factors of the latents and of the model's output in a step downwards."""
    (a, s), (to_a, to_s) = level[1:3], below[1:3]
    if prediction == "v_prediction":  # x0 = a x - s m, e = s x + a m
        keeps, adds = to_a * a + to_s * s, to_s * a - to_a * s
    elif prediction == "epsilon":  # x0 = (x - s m) / a, e = m
        keeps, adds = to_a / max(a, 1e-12), to_s - to_a * s / max(a, 1e-12)
    else:
        raise ValueError(
            f"inversion isn't known of models that predict {prediction!r}; epsilon and "
            "v_prediction are"
        )
    if keeps < 1e-3 or keeps > 1e3:
        raise ValueError(
            f"the step from timestep {float(level.t):g} can't be inverted: nothing of its latents "
            "is left in those that it gives; use more steps"
        )
    return keeps, adds


def encoded(method: str, pipeline: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures' latents as a pipeline scales them, float32.

    Raises:
        ValueError: It has no autoencoder of a known kind, or one that overflows.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None or getattr(vae.config, "latents_mean", None) is not None:
        what = "no autoencoder" if vae is None else "an autoencoder with means of its latents"
        raise ValueError(
            f"{method}: this {type(pipeline).__name__} has {what}, so pictures can't be inverted; "
            "give their latents"
        )
    device = pipeline._execution_device
    pixels = pipeline.image_processor.preprocess(list(pictures)).to(device, vae.dtype)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    found: Tensor = (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor
    if not found.isfinite().all():
        raise ValueError(
            f"{method}: the autoencoder overflows in {vae.dtype}; load the pipeline in float32 or "
            "bfloat16, or with an autoencoder made for float16"
        )
    return found.float()


def text_of(method: str, pipeline: Any, kind: str) -> tuple[Tensor, Tensor | None]:
    """The text that pictures are inverted under: "1 L C", and where the model takes it pooled text.

    Args:
        method: Name of the method, for messages.
        pipeline: The pipeline.
        kind: "empty" is the empty prompt; "exceptional" tokens that are all alike, without places:
            TF-ICON's (arXiv 2307.12493). Which token isn't said; here it is the one that pads.

    Raises:
        ValueError: No text encoder, or two, of which the exceptional prompt isn't known.
    """
    encoder, second = (getattr(pipeline, n, None) for n in ("text_encoder", "text_encoder_2"))
    if encoder is None:
        raise ValueError(
            f"{method}: this {type(pipeline).__name__} has no text encoder to invert pictures "
            "with; give their latents"
        )
    device = pipeline._execution_device
    if kind == "empty":
        given = pipeline.encode_prompt(
            "", device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return given[0], given[2] if second is not None else None
    if second is not None:
        raise ValueError(
            f"{method}: the exceptional prompt is known of one text encoder, and this "
            f'{type(pipeline).__name__} has two; use invert="empty"'
        )
    reader = pipeline.tokenizer
    ids = torch.full((1, reader.model_max_length), reader.pad_token_id, device=device)
    places = [n for n, _ in encoder.named_parameters() if n.endswith("position_embedding.weight")]
    if len(places) != 1:
        raise ValueError(
            f'{method}: the places of {type(encoder).__name__} are not known; use invert="empty"'
        )
    weight = encoder.get_parameter(places[0])
    if hasattr(encoder, "_hf_hook"):
        raise ValueError(
            f"{method}: the exceptional prompt needs the text encoder's weights, which offloading "
            'moves away; use invert="empty"'
        )
    # A copy that shares the other weights: the encoder may be reading another thread's prompt.
    kept: dict[int, Any] = {id(x): x for x in (*encoder.parameters(), *encoder.buffers())}
    kept[id(weight)] = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
    return copy.deepcopy(encoder, kept)(ids)[0], None
