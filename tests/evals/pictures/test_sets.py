from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regaze.evals.pictures import scorers
from regaze.evals.pictures.scorers import SetScorer


def pictures(folder: Path, seed: int, n: int = 12) -> Path:
    folder.mkdir()
    values = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (n, 16, 16, 3))
    for number, value in enumerate(values.astype(np.uint8)):
        Image.fromarray(value).save(folder / f"{number}.png")
    return folder


def scorer(text: str) -> SetScorer:
    found = scorers.parse(text)
    assert isinstance(found, SetScorer)
    return found


def loads(module: str) -> None:
    """Skip where a library isn't installed, or its torchvision doesn't fit torch."""
    try:
        __import__(module)
    except Exception as error:
        pytest.skip(f"{module} doesn't load: {str(error).splitlines()[0]}")


def test_fid_is_the_frechet_distance_of_the_features(tmp_path: Path) -> None:
    loads("cleanfid.fid")
    one, two = pictures(tmp_path / "one", 0), pictures(tmp_path / "two", 1)

    def features(batch: Any) -> Any:
        return batch.float().mean((2, 3)) / 255

    def moments(folder: Path) -> tuple[Any, Any]:
        # clean-fid resizes to 299 pixels first, which moves means by next to nothing.
        values = np.stack([np.asarray(Image.open(folder / f"{i}.png")) for i in range(12)])
        means = values.mean((1, 2)) / 255
        return means.mean(0), np.cov(means, rowvar=False)

    found = scorer(f"fid:reference={two}").measure(one, "cpu", features)
    (mu1, s1), (mu2, s2) = moments(one), moments(two)
    eigenvalues = np.linalg.eigvals(s1 @ s2).astype(complex)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.sqrt(eigenvalues).real.sum()
    assert found.value == pytest.approx(expected, rel=0.25)
    assert (found.n, found.n_reference, found.rules) == (12, 12, "clean-fid clean, inception_v3")
    same = scorer(f"fid:reference={one}").measure(one, "cpu", features)
    assert same.value == pytest.approx(0, abs=1e-6)


def test_kid_and_inception_score_come_with_the_spread_over_subsets(tmp_path: Path) -> None:
    loads("torch_fidelity")
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Means(FeatureExtractorBase):  # type: ignore[misc,no-any-unimported]
        def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
            super().__init__(name, features_list)

        def forward(self, batch: Any) -> Any:
            means = batch.float().mean((2, 3)) / 255
            features = {"2048": means, "logits_unbiased": 10 * means}
            return tuple(features[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("2048", "logits_unbiased")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits_unbiased" if metric == "isc" else "2048"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> None:
            return None

    torch_fidelity.register_feature_extractor("means", Means)
    one, two = pictures(tmp_path / "one", 0), pictures(tmp_path / "two", 1)
    kid = scorer(f"kid:reference={two}").measure(one, "cpu", "means")
    assert kid.sd is not None
    assert abs(kid.value) < 0.1
    assert kid.rules == "torch-fidelity, 100 subsets of 12"
    score = scorer("is").measure(one, "cpu", "means")
    assert score.value >= 1
    assert score.n_reference is None


@pytest.mark.parametrize("name", ["fid", "kid"])
def test_without_reference_pictures_they_say_what_to_give(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}: compared with which pictures; give --score"):
        scorer(name).measure(tmp_path, "cpu")
    with pytest.raises(ValueError, match=rf"{name}: no pictures in"):
        scorer(f"{name}:reference={tmp_path}").measure(tmp_path, "cpu")


def test_an_unknown_mode_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean clean"):
        scorer("fid:mode=clen").measure(tmp_path, "cpu")
