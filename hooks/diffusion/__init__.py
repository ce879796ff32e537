"""How an edit gets into a diffusers denoiser."""

from regaze.hooks.diffusion.attach import Denoiser, DenoiserAttachment, sites
from regaze.hooks.diffusion.edits import Edit, Guidance
from regaze.hooks.diffusion.looking import Seen, look
from regaze.hooks.diffusion.seat import Call
from regaze.hooks.diffusion.sites import Layout, Site, native_grid

__all__ = [
    "Call",
    "Denoiser",
    "DenoiserAttachment",
    "Edit",
    "Guidance",
    "Layout",
    "Seen",
    "Site",
    "look",
    "native_grid",
    "sites",
]
