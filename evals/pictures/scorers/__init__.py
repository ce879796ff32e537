"""Scores of pictures, one file per kind; each loads its library and weights when it is used."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.evals.pictures.scorers.base import IMAGES as IMAGES
    from regaze.evals.pictures.scorers.base import Ready as Ready
    from regaze.evals.pictures.scorers.base import Scorer as Scorer
    from regaze.evals.pictures.scorers.base import Spec as Spec
    from regaze.evals.pictures.scorers.base import check_lengths as check_lengths
    from regaze.evals.pictures.scorers.base import get as get
    from regaze.evals.pictures.scorers.base import names as names
    from regaze.evals.pictures.scorers.base import parse as parse
    from regaze.evals.pictures.scorers.base import register as register
    from regaze.evals.pictures.scorers.clip import Aesthetic as Aesthetic
    from regaze.evals.pictures.scorers.clip import ClipScore as ClipScore
    from regaze.evals.pictures.scorers.clip import PickScore as PickScore
    from regaze.evals.pictures.scorers.concepts import Caption as Caption
    from regaze.evals.pictures.scorers.concepts import Objects as Objects
    from regaze.evals.pictures.scorers.geneval2 import GenEval2 as GenEval2
    from regaze.evals.pictures.scorers.hpsv2 import HPSv2 as HPSv2
    from regaze.evals.pictures.scorers.painting import Painting as Painting
    from regaze.evals.pictures.scorers.sets import Fid as Fid
    from regaze.evals.pictures.scorers.sets import InceptionScore as InceptionScore
    from regaze.evals.pictures.scorers.sets import Kid as Kid
    from regaze.evals.pictures.scorers.sets import SetScorer as SetScorer
    from regaze.evals.pictures.scorers.similarity import Lpips as Lpips
    from regaze.evals.pictures.scorers.similarity import Psnr as Psnr
    from regaze.evals.pictures.scorers.similarity import Ssim as Ssim
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
