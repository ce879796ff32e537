"""Scores of whole sets of pictures: FID, KID and the Inception score.

They belong to a set, not to its pictures, so there is no pairing and no interval over prompts: KID
and the Inception score come with the spread over their own subsets, FID with none. Pictures are
read as PNG, never JPEG, and both sides are resized by the same code.
"""

from __future__ import annotations

import contextlib
import io
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from regaze.evals.pictures.scorers.base import Spec, register, require
from regaze.hooks.checks import check_choice

FEW = 5_000
"""Below so many pictures FID is far from its limit: it is indicative only, KID is unbiased."""
_SUBSET = 1_000
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class SetScore:
    """One metric of a set of pictures.

    Attributes:
        metric: Name of the metric.
        value: The metric's value.
        sd: Over the subsets that the metric draws itself; None if it draws none.
        n: Pictures in the set.
        n_reference: Pictures in the reference set; None without one.
        rules: The way it was computed, for readers.
    """

    metric: str
    value: float
    sd: float | None
    n: int
    n_reference: int | None
    rules: str


class SetScorer(Spec):
    """Base of all scorers of sets."""

    @abstractmethod
    def check(self) -> None:
        """Check, before anything is painted, what can be known without pictures.

        Raises:
            ImportError: A library is missing; the message says what to install.
            ValueError: A setting is unknown, or references or weights are missing.
        """

    @abstractmethod
    def measure(self, folder: Path, device: str, extractor: Any = None) -> SetScore:
        """Score the pictures in a folder.

        Args:
            folder: Holds nothing but the pictures, as PNG.
            device: The device to compute on.
            extractor: Another network than Inception: for clean-fid a function, for
                torch-fidelity the name under which one is registered there.

        Raises:
            ImportError: A library is missing; the message says what to install.
            ValueError: A folder or weights are missing, or the sets are too small.
        """


@register
@dataclass(frozen=True)
class Fid(SetScorer):
    """Frechet distance of Inception features (arXiv 1706.08500), by clean-fid (arXiv 2104.11222).

    Attributes:
        reference: Folder of the reference pictures.
        mode: clean-fid's ``clean``, or ``legacy_pytorch`` or ``legacy_tensorflow`` to match
            numbers of older papers; their resizing differs, so they can't be compared.
        network: ``inception_v3``, or ``clip_vit_b_32`` for CLIP-FID.
    """

    name: ClassVar[str] = "fid"
    summary: ClassVar[str] = "Frechet distance to a set of reference pictures, by clean-fid"
    paper: ClassVar[str] = "arXiv 1706.08500"
    directions: ClassVar = {"fid": -1}

    reference: str = ""
    mode: str = "clean"
    network: str = "inception_v3"

    def check(self) -> None:
        """Check settings, references and the library."""
        check_choice("fid", "mode", self.mode, ("clean", "legacy_pytorch", "legacy_tensorflow"))
        check_choice("fid", "network", self.network, ("inception_v3", "clip_vit_b_32"))
        _reference("fid", self.reference)
        require("cleanfid.fid", "clean-fid")

    def measure(self, folder: Path, device: str, extractor: Any = None) -> SetScore:
        """Score the pictures in a folder."""
        self.check()
        reference = _reference("fid", self.reference)
        fid = require("cleanfid.fid", "clean-fid")
        # clean-fid takes a GPU and the statistics of faces unless it is asked not to.
        value = _quietly(
            "fid",
            fid.compute_fid,
            str(folder),
            str(reference),
            mode=self.mode,
            model_name=self.network,
            num_workers=0,
            device=torch.device(device),
            dataset_name="",
            verbose=False,
            custom_feat_extractor=extractor,
            use_dataparallel=False,
        )
        rules = f"clean-fid {self.mode}, {self.network}"
        return SetScore("fid", float(value), None, _count(folder), _count(reference), rules)


@register
@dataclass(frozen=True)
class Kid(SetScorer):
    """Squared maximum mean discrepancy of Inception features, unbiased (arXiv 1801.01401).

    Mean and standard deviation over 100 drawn subsets, by torch-fidelity.

    Attributes:
        reference: Folder of the reference pictures.
        weights: The Inception network's file. Default: torch-fidelity downloads it.
    """

    name: ClassVar[str] = "kid"
    summary: ClassVar[str] = "kernel distance to a set of reference pictures, by torch-fidelity"
    paper: ClassVar[str] = "arXiv 1801.01401"
    directions: ClassVar = {"kid": -1}

    reference: str = ""
    weights: str = ""

    def check(self) -> None:
        """Check references, weights and the library."""
        _reference("kid", self.reference)
        _check_fidelity("kid", self.weights)

    def measure(self, folder: Path, device: str, extractor: Any = None) -> SetScore:
        """Score the pictures in a folder."""
        self.check()
        reference = _reference("kid", self.reference)
        n, n_reference = _count(folder), _count(reference)
        size = min(_SUBSET, n, n_reference)
        options = {"input2": str(reference), "kid": True, "kid_subset_size": size}
        found = _fidelity("kid", folder, device, extractor, self.weights, options)
        mean = found["kernel_inception_distance_mean"]
        sd = found["kernel_inception_distance_std"]
        rules = f"torch-fidelity, 100 subsets of {size}"
        return SetScore("kid", mean, sd, n, n_reference, rules)


@register
@dataclass(frozen=True)
class InceptionScore(SetScorer):
    """Sureness and variety of an ImageNet classifier on the pictures (arXiv 1606.03498).

    Mean and standard deviation over 10 splits, by torch-fidelity.

    Attributes:
        weights: The Inception network's file. Default: torch-fidelity downloads it.
    """

    name: ClassVar[str] = "is"
    summary: ClassVar[str] = "Inception score of the set, by torch-fidelity"
    paper: ClassVar[str] = "arXiv 1606.03498"
    directions: ClassVar = {"inception_score": 1}

    weights: str = ""

    def check(self) -> None:
        """Check weights and the library."""
        _check_fidelity("is", self.weights)

    def measure(self, folder: Path, device: str, extractor: Any = None) -> SetScore:
        """Score the pictures in a folder."""
        self.check()
        found = _fidelity("is", folder, device, extractor, self.weights, {"isc": True})
        mean, sd = found["inception_score_mean"], found["inception_score_std"]
        rules = "torch-fidelity, 10 splits"
        return SetScore("inception_score", mean, sd, _count(folder), None, rules)


def _check_fidelity(name: str, weights: str) -> None:
    if weights and not Path(weights).is_file():
        raise ValueError(f"{name}: there is no file of weights {weights}")
    require("torch_fidelity", "torch-fidelity")


def _fidelity(
    name: str,
    folder: Path,
    device: str,
    extractor: Any,
    weights: str,
    options: Mapping[str, Any],
) -> dict[str, float]:
    library = require("torch_fidelity", "torch-fidelity")
    found: dict[str, float] = _quietly(
        name,
        library.calculate_metrics,
        input1=str(folder),
        cuda=device.startswith("cuda"),
        cache=False,
        verbose=False,
        feature_extractor=extractor,
        feature_extractor_weights_path=weights or None,
        **options,
    )
    return found


def _quietly(name: str, call: Any, *args: Any, **options: Any) -> Any:
    """Call a library that prints; say in one line what went wrong."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return call(*args, **options)
    except Exception as error:  # whatever a failed download or a set too small makes it raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{name}: {reason}") from error


def _reference(name: str, given: str) -> Path:
    folder = Path(given)
    if not given or not folder.is_dir() or not _count(folder):
        what = f"no pictures in {given!r}" if given else "compared with which pictures"
        raise ValueError(f"{name}: {what}; give --score {name}:reference=DIR")
    return folder


def _count(folder: Path) -> int:
    return sum(path.suffix.lower() in _PICTURES for path in folder.iterdir())
