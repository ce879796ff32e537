"""Re-aim attention in pretrained vision-language and diffusion models, without training."""

from regaze.hooks import Attachment, Report, attach
from regaze.interventions import PAI, VAF, VAR, VHR, discover_sinks, from_dict, names, parse

__version__ = "0.1.0"

__all__ = [
    "PAI",
    "VAF",
    "VAR",
    "VHR",
    "Attachment",
    "Report",
    "attach",
    "discover_sinks",
    "from_dict",
    "names",
    "parse",
]
