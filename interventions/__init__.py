"""The methods: one frozen dataclass each, in the sense of its paper."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.interventions.base import Intervention as Intervention
    from regaze.interventions.base import Preset as Preset
    from regaze.interventions.base import from_dict as from_dict
    from regaze.interventions.base import get as get
    from regaze.interventions.base import names as names
    from regaze.interventions.base import register as register
    from regaze.interventions.diffusion.a_star import AStar as AStar
    from regaze.interventions.diffusion.attend_and_excite import AttendAndExcite as AttendAndExcite
    from regaze.interventions.diffusion.bytheway import ByTheWay as ByTheWay
    from regaze.interventions.diffusion.consist_edit import ConsistEdit as ConsistEdit
    from regaze.interventions.diffusion.enhance_a_video import EnhanceAVideo as EnhanceAVideo
    from regaze.interventions.diffusion.flow_warp import FlowWarp as FlowWarp
    from regaze.interventions.diffusion.nag import NAG as NAG
    from regaze.interventions.diffusion.pag import PAG as PAG
    from regaze.interventions.diffusion.paro import PARO as PARO
    from regaze.interventions.diffusion.prime_composer import PrimeComposer as PrimeComposer
    from regaze.interventions.diffusion.radial import RadialAttention as RadialAttention
    from regaze.interventions.diffusion.regions import Regions as Regions
    from regaze.interventions.diffusion.reweight import Reweight as Reweight
    from regaze.interventions.diffusion.seg import SEG as SEG
    from regaze.interventions.diffusion.slg import SLG as SLG
    from regaze.interventions.diffusion.soft_pag import SoftPAG as SoftPAG
    from regaze.interventions.diffusion.stg import STG as STG
    from regaze.interventions.diffusion.structured_diffusion import (
        StructuredDiffusion as StructuredDiffusion,
    )
    from regaze.interventions.diffusion.tpg import TPG as TPG
    from regaze.interventions.lvlm.adaptvis import AdaptVis as AdaptVis
    from regaze.interventions.lvlm.adaptvis import ScalingVis as ScalingVis
    from regaze.interventions.lvlm.adhh import ADHH as ADHH
    from regaze.interventions.lvlm.anchor import AnchorAttention as AnchorAttention
    from regaze.interventions.lvlm.avar import AVAR as AVAR
    from regaze.interventions.lvlm.avisc import AvisC as AvisC
    from regaze.interventions.lvlm.carve import CARVE as CARVE
    from regaze.interventions.lvlm.carve_reading import Closer as Closer
    from regaze.interventions.lvlm.carve_reading import look_closer as look_closer
    from regaze.interventions.lvlm.column_scale import ColumnScale as ColumnScale
    from regaze.interventions.lvlm.devils import Devils as Devils
    from regaze.interventions.lvlm.dola import DoLa as DoLa
    from regaze.interventions.lvlm.gift import GIFT as GIFT
    from regaze.interventions.lvlm.head_ablate import HeadAblate as HeadAblate
    from regaze.interventions.lvlm.head_outputs import head_outputs as head_outputs
    from regaze.interventions.lvlm.head_scale import HeadScale as HeadScale
    from regaze.interventions.lvlm.head_search import Caption as Caption
    from regaze.interventions.lvlm.head_search import Ranking as Ranking
    from regaze.interventions.lvlm.head_search import attribute_heads as attribute_heads
    from regaze.interventions.lvlm.head_search import rank_heads as rank_heads
    from regaze.interventions.lvlm.highlight import PromptHighlighter as PromptHighlighter
    from regaze.interventions.lvlm.icd import ICD as ICD
    from regaze.interventions.lvlm.ilvad import ILVAD as ILVAD
    from regaze.interventions.lvlm.logit_bias import LogitBias as LogitBias
    from regaze.interventions.lvlm.m3id import M3ID as M3ID
    from regaze.interventions.lvlm.pai import PAI as PAI
    from regaze.interventions.lvlm.paint import PAINT as PAINT
    from regaze.interventions.lvlm.pasta import PASTA as PASTA
    from regaze.interventions.lvlm.patch import Patch as Patch
    from regaze.interventions.lvlm.sinks import SinkProfile as SinkProfile
    from regaze.interventions.lvlm.sinks import discover_sinks as discover_sinks
    from regaze.interventions.lvlm.spin import SPIN as SPIN
    from regaze.interventions.lvlm.steer import Steer as Steer
    from regaze.interventions.lvlm.tidal import TidalDecode as TidalDecode
    from regaze.interventions.lvlm.vaf import VAF as VAF
    from regaze.interventions.lvlm.var import VAR as VAR
    from regaze.interventions.lvlm.vcd import VCD as VCD
    from regaze.interventions.lvlm.vhr import VHR as VHR
    from regaze.interventions.lvlm.vicrop import ViCrop as ViCrop
    from regaze.interventions.parsing import parse as parse
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
