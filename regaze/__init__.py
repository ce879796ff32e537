"""Re-aim attention in pretrained vision-language and diffusion models, without training."""

from regaze.evals.verify import Certificate, verify
from regaze.hooks import Attachment, Report, attach
from regaze.interventions import (
    CARVE,
    PAG,
    PAI,
    SEG,
    VAF,
    VAR,
    VHR,
    AStar,
    AttendAndExcite,
    FlowWarp,
    SoftPAG,
    discover_sinks,
    from_dict,
    look_closer,
    names,
    parse,
)

__version__ = "0.1.0"

__all__ = [
    "CARVE",
    "PAG",
    "PAI",
    "SEG",
    "VAF",
    "VAR",
    "VHR",
    "AStar",
    "Attachment",
    "AttendAndExcite",
    "Certificate",
    "FlowWarp",
    "Report",
    "SoftPAG",
    "attach",
    "discover_sinks",
    "from_dict",
    "look_closer",
    "names",
    "parse",
    "verify",
]
