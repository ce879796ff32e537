"""Tokenizers, autoencoder, text encoders and untrained painters, in the libraries' own classes."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from regaze.evals.sandbox.painting.prompts import WORDS
from regaze.evals.sandbox.painting.scenes import SIZE

ARCHITECTURES = ("mmdit", "unet")
TOKENS = 16
"""Length of every tokenized prompt; the longest has 13 tokens."""
LATENT_SIZE = SIZE // 2
TEXT_WIDTHS = {"mmdit": (64, 32), "unet": (96,)}
"""Widths of the CLIP text encoders; Stable Diffusion 3 has two, whose outputs it joins."""

_LATENT_CHANNELS = 4


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs are merged until every word is one token.

    The merges are found here because `tokenizers` trains them in another order each time.
    """
    pieces = {word: [*word[:-1], f"{word[-1]}</w>"] for word in WORDS}
    vocabulary = sorted({piece for word in pieces.values() for piece in word})
    merges: list[Any] = []  # pairs, whatever CLIPTokenizer's annotation says
    while pair := next(((p[0], p[1]) for p in pieces.values() if len(p) > 1), None):
        merges.append(pair)
        vocabulary.append("".join(pair))
        pieces = {word: _merged(parts, pair) for word, parts in pieces.items()}
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=TOKENS,
    )


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with every occurrence of a pair made one, from left to right."""
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_autoencoder() -> AutoencoderKL:
    """32 x 32 pixels to 16 x 16 latents of 4 channels, convolutions only; 0.16 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        # Stable Diffusion 3 adds it and can't add the default, None.
        shift_factor=0.0,
    )


def build_text_encoders(architecture: str, vocabulary: int) -> nn.ModuleList:
    """The CLIP text encoders of a painter, untrained."""
    kind = CLIPTextModel if architecture == "unet" else CLIPTextModelWithProjection
    encoders = nn.ModuleList()
    for width in TEXT_WIDTHS[architecture]:
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=width // 16,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            projection_dim=width,
            hidden_act="gelu",
        )
        encoder = kind(config)
        embedding: Any = encoder.get_input_embeddings()
        nn.init.normal_(embedding.weight, std=0.5)
        encoders.append(encoder)
    return encoders


def build_denoiser(architecture: str) -> SD3Transformer2DModel | UNet2DConditionModel:
    """The untrained denoiser."""
    if architecture == "mmdit":
        width = sum(TEXT_WIDTHS["mmdit"])
        return SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            patch_size=2,
            in_channels=_LATENT_CHANNELS,
            out_channels=_LATENT_CHANNELS,
            num_layers=6,
            num_attention_heads=5,
            attention_head_dim=32,
            joint_attention_dim=width,
            caption_projection_dim=5 * 32,
            pooled_projection_dim=width,
            pos_embed_max_size=LATENT_SIZE // 2,
            qk_norm="rms_norm",
        )
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTHS["unet"][0],
        attention_head_dim=(2, 4),  # numbers of heads, despite the name
        norm_num_groups=16,
    )


def build_scheduler(architecture: str) -> FlowMatchEulerDiscreteScheduler | DDIMScheduler:
    """Rectified flow for the MM-DiT; velocity prediction down to pure noise for the U-Net."""
    if architecture == "mmdit":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # the pipeline warns of 0; with this spacing it changes nothing
    )


def build_pipeline(
    architecture: str,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    encoders: nn.ModuleList,
    denoiser: nn.Module,
) -> DiffusionPipeline:
    """The stock pipeline around a painter's parts."""
    scheduler = build_scheduler(architecture)
    if architecture == "unet":
        return StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=encoders[0],
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return StableDiffusion3Pipeline(
        vae=autoencoder,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        text_encoder_3=_silent_t5(sum(TEXT_WIDTHS["mmdit"])),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=_t5_tokenizer(),
        transformer=denoiser,
        scheduler=scheduler,
    )


def _t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one token per word, so that no prompt needs more than ``TOKENS``."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [("▁", -2.0), *((f"▁{word}", -1.0) for word in WORDS), (",", -1.0)]
    return T5Tokenizer(vocab=special + words, extra_ids=0, model_max_length=TOKENS)


def _silent_t5(width: int) -> T5EncoderModel:
    """A third text encoder that gives zeros, as the pipeline itself does where there is none.

    Without one, `DiffusionPipeline.from_pretrained(folder)` refuses the folder.
    """
    config = T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=8,
        num_layers=1,
        num_heads=1,
        dropout_rate=0.0,
    )
    encoder = T5EncoderModel(config)
    for weight in encoder.parameters():
        nn.init.zeros_(weight)
    return encoder
