"""How an edit gets into a model, exactly and reversibly."""

from regaze.hooks.attach import Attachment, attach
from regaze.hooks.capture import Capture, capture
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import HeadForm, Map, MapForm
from regaze.hooks.passes import Columns, Pass
from regaze.hooks.report import Report
from regaze.hooks.tokens import Kind, TokenMap

__all__ = [
    "Attachment",
    "Branch",
    "Capture",
    "Columns",
    "Edit",
    "HeadForm",
    "Host",
    "Kind",
    "Map",
    "MapForm",
    "Pass",
    "Report",
    "TokenMap",
    "attach",
    "capture",
]
