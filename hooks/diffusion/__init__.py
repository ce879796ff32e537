"""How an edit gets into a diffusers denoiser."""

from regaze.hooks.diffusion.attach import DenoiserAttachment
from regaze.hooks.diffusion.host import Host, sites
from regaze.hooks.diffusion.kernel import Call
from regaze.hooks.diffusion.looking import Seen, look
from regaze.hooks.diffusion.sites import Layout, Site, native_grid
from regaze.hooks.diffusion.works import Attend, Branch

__all__ = [
    "Attend",
    "Branch",
    "Call",
    "DenoiserAttachment",
    "Host",
    "Layout",
    "Seen",
    "Site",
    "look",
    "native_grid",
    "sites",
]
