"""The engine that puts edits into a model, exactly and reversibly."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.hooks.attach import Attachment as Attachment
    from regaze.hooks.attach import attach as attach
    from regaze.hooks.capture import Capture as Capture
    from regaze.hooks.capture import VisionCapture as VisionCapture
    from regaze.hooks.capture import capture as capture
    from regaze.hooks.edits import Branch as Branch
    from regaze.hooks.edits import Edit as Edit
    from regaze.hooks.handover import Handover as Handover
    from regaze.hooks.host import Host as Host
    from regaze.hooks.literal import HeadForm as HeadForm
    from regaze.hooks.literal import Map as Map
    from regaze.hooks.literal import MapForm as MapForm
    from regaze.hooks.literal import OutputForm as OutputForm
    from regaze.hooks.passes import Columns as Columns
    from regaze.hooks.passes import Pass as Pass
    from regaze.hooks.passes import Picture as Picture
    from regaze.hooks.report import Report as Report
    from regaze.hooks.tokens import Kind as Kind
    from regaze.hooks.tokens import TokenMap as TokenMap
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
