"""The methods: one frozen dataclass each, in the sense of its paper."""

from regaze.interventions.base import Intervention, Preset, from_dict, get, names, parse, register
from regaze.interventions.diffusion.a_star import AStar
from regaze.interventions.diffusion.attend_and_excite import AttendAndExcite
from regaze.interventions.diffusion.flow_warp import FlowWarp
from regaze.interventions.diffusion.pag import PAG
from regaze.interventions.diffusion.seg import SEG
from regaze.interventions.diffusion.soft_pag import SoftPAG
from regaze.interventions.lvlm.avisc import AvisC
from regaze.interventions.lvlm.carve import CARVE
from regaze.interventions.lvlm.carve_reading import Closer, look_closer
from regaze.interventions.lvlm.dola import DoLa
from regaze.interventions.lvlm.icd import ICD
from regaze.interventions.lvlm.m3id import M3ID
from regaze.interventions.lvlm.pai import PAI
from regaze.interventions.lvlm.sinks import SinkProfile, discover_sinks
from regaze.interventions.lvlm.vaf import VAF
from regaze.interventions.lvlm.var import VAR
from regaze.interventions.lvlm.vcd import VCD
from regaze.interventions.lvlm.vhr import VHR

__all__ = [
    "CARVE",
    "ICD",
    "M3ID",
    "PAG",
    "PAI",
    "SEG",
    "VAF",
    "VAR",
    "VCD",
    "VHR",
    "AStar",
    "AttendAndExcite",
    "AvisC",
    "Closer",
    "DoLa",
    "FlowWarp",
    "Intervention",
    "Preset",
    "SinkProfile",
    "SoftPAG",
    "discover_sinks",
    "from_dict",
    "get",
    "look_closer",
    "names",
    "parse",
    "register",
]
