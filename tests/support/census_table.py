"""The table of denoisers in docs/models.md: what the census finds of each class."""

from __future__ import annotations

from test_census_diffusers import KNOWN, built, perturbed_sites, picture_rows
from tiny_calls import cells
from tiny_denoisers import TINY

from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.sites import TEXT, find_sites

MODELS = {
    "AllegroTransformer3DModel": "Allegro",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "BriaTransformer2DModel": "Bria 3.2",
    "ChromaTransformer2DModel": "Chroma",
    "ChronoEditTransformer3DModel": "ChronoEdit",
    "CogVideoXTransformer3DModel": "CogVideoX",
    "CogView3PlusTransformer2DModel": "CogView 3+",
    "CogView4Transformer2DModel": "CogView 4",
    "DiTTransformer2DModel": "DiT",
    "Flux2Transformer2DModel": "FLUX.2, Klein",
    "FluxTransformer2DModel": "FLUX.1, Kontext",
    "HunyuanImageTransformer2DModel": "HunyuanImage 2.1",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo 1.5",
    "HunyuanVideoTransformer3DModel": "HunyuanVideo",
    "Kandinsky5Transformer3DModel": "Kandinsky 5",
    "Krea2Transformer2DModel": "Krea 2",
    "LTX2VideoTransformer3DModel": "LTX-2",
    "LTXVideoTransformer3DModel": "LTX",
    "LongCatImageTransformer2DModel": "LongCat-Image",
    "Lumina2Transformer2DModel": "Lumina 2",
    "MochiTransformer3DModel": "Mochi",
    "OvisImageTransformer2DModel": "Ovis-Image",
    "PixArtTransformer2DModel": "PixArt",
    "QwenImage21Transformer2DModel": "Qwen-Image 2.1",
    "QwenImageTransformer2DModel": "Qwen-Image, -Edit",
    "SD3Transformer2DModel": "Stable Diffusion 3, 3.5",
    "SanaTransformer2DModel": "Sana",
    "SkyReelsV2Transformer3DModel": "SkyReels V2",
    "UNet2DConditionModel": "Stable Diffusion 1, 2, XL, Kolors",
    "UNet2DModel": "DDPM",
    "UNet3DConditionModel": "ModelScope",
    "UNetMotionModel": "AnimateDiff",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "WanTransformer3DModel": "Wan",
    "WanVACETransformer3DModel": "Wan VACE",
    "ZImageTransformer2DModel": "Z-Image",
}
"""The verdict on a class, for readers."""

NOTES = {
    "frames": "Frames of a video attend to each other in one sequence: no picture has its own map.",
    "words": "It takes no words.",
    "singly": "One picture at a time: samples of a batch attend one after the other.",
    "linear": "Its self-attention is linear: there is no map to edit.",
}


def one_picture(name: str) -> bool:
    """True if a layer's tokens are those of one picture."""
    rows = picture_rows(name)[perturbed_sites(name)[-1].name]
    return cells(max(int(one.sum()) for one in rows))[0] == 1


def support_table() -> str:
    """The table in Markdown."""
    used: list[str] = []

    def no(why: str, word: str = "no") -> str:
        if why not in used:
            used.append(why)
        return f"{word}<sup>{used.index(why) + 1}</sup>"

    lines = ["| denoiser | models | guidance | latents | FlowWarp |", "|---|---|---|---|---|"]
    for name in sorted(FAMILIES, key=lambda name: MODELS[name].lower()):
        if name not in KNOWN:
            cells_ = [no("linear")] * 3
        else:
            reads = TINY[name].prompt and any(s.kind in TEXT for s in find_sites(built(name)))
            latents = "yes" if reads else no("words")
            if name.startswith("Mochi"):
                latents = no("singly", "yes")
            cells_ = ["yes", latents, "yes" if one_picture(name) else no("frames")]
        lines.append(f"| `{name}` | {MODELS[name]} | {' | '.join(cells_)} |")
    notes = [f"{number + 1}. {NOTES[why]}" for number, why in enumerate(used)]
    return "\n".join([*lines, "", *notes])
