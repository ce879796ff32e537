"""Re-aim attention in pretrained vision-language and diffusion models, without training."""

from regaze.hooks import Attachment, Report, attach
from regaze.interventions import (
    PAG,
    PAI,
    SEG,
    VAF,
    VAR,
    VHR,
    SoftPAG,
    discover_sinks,
    from_dict,
    names,
    parse,
)

__version__ = "0.1.0"

__all__ = [
    "PAG",
    "PAI",
    "SEG",
    "VAF",
    "VAR",
    "VHR",
    "Attachment",
    "Report",
    "SoftPAG",
    "attach",
    "discover_sinks",
    "from_dict",
    "names",
    "parse",
]
