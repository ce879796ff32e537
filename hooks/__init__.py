"""How an edit gets into a model, exactly and reversibly."""

from regaze.hooks.attach import Attachment, attach
from regaze.hooks.capture import Capture, capture
from regaze.hooks.edits import Columns, Edit, Step, TowerInfo
from regaze.hooks.report import Report
from regaze.hooks.tokens import Kind, TokenMap

__all__ = [
    "Attachment",
    "Capture",
    "Columns",
    "Edit",
    "Kind",
    "Report",
    "Step",
    "TokenMap",
    "TowerInfo",
    "attach",
    "capture",
]
