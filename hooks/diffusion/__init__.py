"""Edits of attention and latents inside diffusers denoisers."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.hooks.diffusion.attach import DenoiserAttachment as DenoiserAttachment
    from regaze.hooks.diffusion.call import Call as Call
    from regaze.hooks.diffusion.call import Samples as Samples
    from regaze.hooks.diffusion.capture import Seen as Seen
    from regaze.hooks.diffusion.capture import capture as capture
    from regaze.hooks.diffusion.descent import Descend as Descend
    from regaze.hooks.diffusion.descent import Objective as Objective
    from regaze.hooks.diffusion.gradients import Descent as Descent
    from regaze.hooks.diffusion.host import Host as Host
    from regaze.hooks.diffusion.host import sites as sites
    from regaze.hooks.diffusion.latents import LatentEdit as LatentEdit
    from regaze.hooks.diffusion.literal import AttendForm as AttendForm
    from regaze.hooks.diffusion.literal import GuidanceForm as GuidanceForm
    from regaze.hooks.diffusion.literal_latents import LatentForm as LatentForm
    from regaze.hooks.diffusion.passes import Pass as Pass
    from regaze.hooks.diffusion.sites import Layout as Layout
    from regaze.hooks.diffusion.sites import Site as Site
    from regaze.hooks.diffusion.sites import native_grid as native_grid
    from regaze.hooks.diffusion.works import Attend as Attend
    from regaze.hooks.diffusion.works import Branch as Branch
    from regaze.hooks.diffusion.works import Guidance as Guidance
    from regaze.hooks.diffusion.works import Run as Run
    from regaze.hooks.diffusion.works import Work as Work
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
