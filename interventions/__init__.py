"""The methods: one frozen dataclass each, in the sense of its paper."""

from regaze.interventions.base import Intervention, from_dict, get, names, parse, register
from regaze.interventions.lvlm.pai import PAI
from regaze.interventions.lvlm.sinks import SinkProfile, discover_sinks
from regaze.interventions.lvlm.vaf import VAF
from regaze.interventions.lvlm.var import VAR
from regaze.interventions.lvlm.vhr import VHR

__all__ = [
    "PAI",
    "VAF",
    "VAR",
    "VHR",
    "Intervention",
    "SinkProfile",
    "discover_sinks",
    "from_dict",
    "get",
    "names",
    "parse",
    "register",
]
