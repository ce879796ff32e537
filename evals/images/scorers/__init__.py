"""Scores of pictures, one file per kind; each loads its library and weights when it is used."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.evals.images.scorers.base import IMAGES as IMAGES
    from regaze.evals.images.scorers.base import Ready as Ready
    from regaze.evals.images.scorers.base import Scorer as Scorer
    from regaze.evals.images.scorers.base import Spec as Spec
    from regaze.evals.images.scorers.base import check_lengths as check_lengths
    from regaze.evals.images.scorers.base import get as get
    from regaze.evals.images.scorers.base import names as names
    from regaze.evals.images.scorers.base import parse as parse
    from regaze.evals.images.scorers.base import register as register
    from regaze.evals.images.scorers.clip import Aesthetic as Aesthetic
    from regaze.evals.images.scorers.clip import ClipScore as ClipScore
    from regaze.evals.images.scorers.clip import PickScore as PickScore
    from regaze.evals.images.scorers.concepts import Caption as Caption
    from regaze.evals.images.scorers.concepts import Objects as Objects
    from regaze.evals.images.scorers.hpsv2 import HPSv2 as HPSv2
    from regaze.evals.images.scorers.painting import Painting as Painting
    from regaze.evals.images.scorers.sets import Fid as Fid
    from regaze.evals.images.scorers.sets import InceptionScore as InceptionScore
    from regaze.evals.images.scorers.sets import Kid as Kid
    from regaze.evals.images.scorers.sets import SetScorer as SetScorer
    from regaze.evals.images.scorers.similarity import Lpips as Lpips
    from regaze.evals.images.scorers.similarity import Psnr as Psnr
    from regaze.evals.images.scorers.similarity import Ssim as Ssim
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
