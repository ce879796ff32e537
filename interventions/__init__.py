"""The methods: one frozen dataclass each, in the sense of its paper."""

from regaze.interventions.base import Intervention, Preset, from_dict, get, names, parse, register
from regaze.interventions.diffusion.a_star import AStar
from regaze.interventions.diffusion.attend_and_excite import AttendAndExcite
from regaze.interventions.diffusion.flow_warp import FlowWarp
from regaze.interventions.diffusion.pag import PAG
from regaze.interventions.diffusion.seg import SEG
from regaze.interventions.diffusion.soft_pag import SoftPAG
from regaze.interventions.lvlm.adaptvis import AdaptVis, ScalingVis
from regaze.interventions.lvlm.adhh import ADHH
from regaze.interventions.lvlm.carve import CARVE
from regaze.interventions.lvlm.carve_reading import Closer, look_closer
from regaze.interventions.lvlm.devils import Devils
from regaze.interventions.lvlm.gift import GIFT
from regaze.interventions.lvlm.pai import PAI
from regaze.interventions.lvlm.paint import PAINT
from regaze.interventions.lvlm.sinks import SinkProfile, discover_sinks
from regaze.interventions.lvlm.spin import SPIN
from regaze.interventions.lvlm.tools import (
    ColumnScale,
    HeadAblate,
    HeadScale,
    LogitBias,
    Patch,
    Steer,
    head_outputs,
)
from regaze.interventions.lvlm.vaf import VAF
from regaze.interventions.lvlm.var import VAR
from regaze.interventions.lvlm.vhr import VHR

__all__ = [
    "ADHH",
    "CARVE",
    "GIFT",
    "PAG",
    "PAI",
    "PAINT",
    "SEG",
    "SPIN",
    "VAF",
    "VAR",
    "VHR",
    "AStar",
    "AdaptVis",
    "AttendAndExcite",
    "Closer",
    "ColumnScale",
    "Devils",
    "FlowWarp",
    "HeadAblate",
    "HeadScale",
    "Intervention",
    "LogitBias",
    "Patch",
    "Preset",
    "ScalingVis",
    "SinkProfile",
    "SoftPAG",
    "Steer",
    "discover_sinks",
    "from_dict",
    "get",
    "head_outputs",
    "look_closer",
    "names",
    "parse",
    "register",
]
