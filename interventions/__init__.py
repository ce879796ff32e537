"""The methods: one frozen dataclass each, in the sense of its paper."""

from regaze.interventions.base import Intervention, from_dict, get, names, parse, register
from regaze.interventions.diffusion.pag import PAG
from regaze.interventions.diffusion.seg import SEG
from regaze.interventions.diffusion.soft_pag import SoftPAG
from regaze.interventions.lvlm.pai import PAI
from regaze.interventions.lvlm.sinks import SinkProfile, discover_sinks
from regaze.interventions.lvlm.vaf import VAF
from regaze.interventions.lvlm.var import VAR
from regaze.interventions.lvlm.vhr import VHR

__all__ = [
    "PAG",
    "PAI",
    "SEG",
    "VAF",
    "VAR",
    "VHR",
    "Intervention",
    "SinkProfile",
    "SoftPAG",
    "discover_sinks",
    "from_dict",
    "get",
    "names",
    "parse",
    "register",
]
