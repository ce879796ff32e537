"""Scores of pictures, one file per kind; each loads its library and weights when it is used."""

from regaze.evals.pictures.scorers.base import (
    IMAGES,
    Ready,
    Scorer,
    Spec,
    check_lengths,
    get,
    names,
    parse,
    register,
)
from regaze.evals.pictures.scorers.clip import Aesthetic, ClipScore, PickScore
from regaze.evals.pictures.scorers.concepts import Caption, Objects
from regaze.evals.pictures.scorers.geneval2 import GenEval2
from regaze.evals.pictures.scorers.hpsv2 import HPSv2
from regaze.evals.pictures.scorers.moving import Moving
from regaze.evals.pictures.scorers.painting import Painting
from regaze.evals.pictures.scorers.sets import Fid, InceptionScore, Kid, SetScorer
from regaze.evals.pictures.scorers.similarity import Lpips, Psnr, Ssim
from regaze.evals.pictures.scorers.trial import try_out

__all__ = [
    "IMAGES",
    "Aesthetic",
    "Caption",
    "ClipScore",
    "Fid",
    "GenEval2",
    "HPSv2",
    "InceptionScore",
    "Kid",
    "Lpips",
    "Moving",
    "Objects",
    "Painting",
    "PickScore",
    "Psnr",
    "Ready",
    "Scorer",
    "SetScorer",
    "Spec",
    "Ssim",
    "check_lengths",
    "get",
    "names",
    "parse",
    "register",
    "try_out",
]
