"""How an edit gets into a diffusers denoiser."""

from regaze.hooks.diffusion.attach import DenoiserAttachment
from regaze.hooks.diffusion.call import Call, Samples
from regaze.hooks.diffusion.capture import Seen, capture
from regaze.hooks.diffusion.descent import Descend, Objective
from regaze.hooks.diffusion.gradients import Descent
from regaze.hooks.diffusion.host import Host, sites
from regaze.hooks.diffusion.latents import LatentEdit
from regaze.hooks.diffusion.literal import AttendForm, GuidanceForm
from regaze.hooks.diffusion.literal_latents import LatentForm
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Layout, Site, native_grid
from regaze.hooks.diffusion.works import Attend, Branch, Guidance, Run, Work

__all__ = [
    "Attend",
    "AttendForm",
    "Branch",
    "Call",
    "DenoiserAttachment",
    "Descend",
    "Descent",
    "Guidance",
    "GuidanceForm",
    "Host",
    "LatentEdit",
    "LatentForm",
    "Layout",
    "Objective",
    "Pass",
    "Run",
    "Samples",
    "Seen",
    "Site",
    "Work",
    "capture",
    "native_grid",
    "sites",
]
