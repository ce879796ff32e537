"""How an edit gets into a model, exactly and reversibly."""

from regaze.hooks.attach import Attachment, attach
from regaze.hooks.capture import Capture, VisionCapture, capture
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.handover import Handover
from regaze.hooks.host import Host
from regaze.hooks.literal import HeadForm, Map, MapForm, OutputForm
from regaze.hooks.passes import Columns, Pass, Picture
from regaze.hooks.report import Report
from regaze.hooks.tokens import Kind, TokenMap

__all__ = [
    "Attachment",
    "Branch",
    "Capture",
    "Columns",
    "Edit",
    "Handover",
    "HeadForm",
    "Host",
    "Kind",
    "Map",
    "MapForm",
    "OutputForm",
    "Pass",
    "Picture",
    "Report",
    "TokenMap",
    "VisionCapture",
    "attach",
    "capture",
]
