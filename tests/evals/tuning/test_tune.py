from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy import TOY_IDENTITY, toy_model

from regaze.evals.asking import runner
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.source import Source
from regaze.evals.sandbox import scenes
from regaze.evals.tuning import tune as tuning
from regaze.evals.tuning.tune import tune, tune_each
from regaze.evals.tuning.tuned import Tuned, read_tuned
from regaze.interventions import parse

pytest.importorskip("optuna", reason="tuning needs the extra tune")
VALIDATION = Source("pope", split="validation", n_images=4)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    model, processor = toy_model()
    return Loaded(model, processor, TOY_IDENTITY)


def labels(found: Tuned) -> list[str]:
    return [trial.spec.label for trial in found.trials]


def test_a_broken_off_search_ends_as_one_in_one_go_and_sees_no_test_scene(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = set()
    real_phrases, real_run = scenes.phrases, runner.run

    def phrases(split: str, index: int) -> list[str]:
        drawn.add(split)
        return real_phrases(split, index)

    calls = 0

    def run(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:  # Within the third trial.
            raise KeyboardInterrupt
        return real_run(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("regaze.evals.sandbox.tasks.phrases", phrases)
    spec = parse("vhr:layers=[1]")
    whole = tune(loaded, spec, VALIDATION, out=tmp_path / "whole", trials=6)
    monkeypatch.setattr(tuning, "run", run)
    with pytest.raises(KeyboardInterrupt):
        tune(loaded, spec, VALIDATION, out=tmp_path / "parts", trials=3)
    tune(loaded, spec, VALIDATION, out=tmp_path / "parts", trials=4)
    seen: list[tuple[str, int, int]] = []
    parts = tune(
        loaded,
        spec,
        VALIDATION,
        out=tmp_path / "parts",
        trials=6,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [("vhr:layers=[1]", done, 6) for done in (4, 5, 6)]
    assert parts == whole
    assert len(set(labels(whole))) == 6
    # Popularity is counted over training scenes.
    assert drawn - {"train"} == {"validation"}
    files = list((tmp_path / "parts").rglob("predictions.jsonl"))
    assert len(files) == 8
    for line in (line for file in files for line in file.read_text().splitlines()):
        assert json.loads(line)["cluster"].startswith("validation/")

    # What is finished is read, not asked.
    monkeypatch.setattr(loaded.model, "generate", None)
    assert tune(loaded, spec, VALIDATION, out=tmp_path / "whole", trials=6) == whole
    assert read_tuned(tmp_path / "whole") == whole
    assert whole.objective == "auc"
    best = whole.best
    assert best is not None
    assert best.metrics["auc"] == max(t.metrics["auc"] for t in (whole.usual, *whole.trials))
    with pytest.raises(ValueError, match="holds another search .*'auc'.*'f1'"):
        tune(loaded, spec, VALIDATION, out=tmp_path / "whole", trials=6, objective="f1")
    with pytest.raises(ValueError, match="whole holds a search of vhr: give another --out"):
        tune(loaded, parse("pai"), VALIDATION, out=tmp_path / "whole", trials=1)
    assert read_tuned(tmp_path / "whole") == whole


@pytest.mark.parametrize("split", ["test", "test-prior", "clutter"])
def test_test_scenes_are_refused(loaded: Loaded, tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match=f"on validation scenes, never on those of '{split}'"):
        tune(loaded, parse("vhr"), Source("pope", split=split), out=tmp_path, trials=1)
    assert not list(tmp_path.iterdir())


def test_a_setting_that_does_nothing_is_never_the_best(loaded: Loaded, tmp_path: Path) -> None:
    # No crop of 336 pixels fits into the sandbox's pictures.
    found = tune(loaded, parse("vicrop"), VALIDATION, out=tmp_path, trials=0)
    assert (found.usual.why_not, found.usual.metrics, found.best) == ("never fired", {}, None)


def test_captions_are_searched_by_f1_and_mistaken_objectives_are_named(
    loaded: Loaded, tmp_path: Path
) -> None:
    captions = Source("chair", split="validation", n_images=2)
    out = tmp_path / "captions"
    assert tune(loaded, parse("pai"), captions, out=out, trials=0).objective == "f1"
    for name in ("acuracy", "yes_ratio"):
        with pytest.raises(ValueError, match=f"unknown objective of pope '{name}'"):
            tune(loaded, parse("pai"), VALIDATION, out=tmp_path / name, objective=name)


def test_several_methods_are_searched_each_in_a_directory_of_its_own(
    loaded: Loaded, tmp_path: Path
) -> None:
    specs = [parse("vhr:layers=[1]"), parse("pai:layers=[1]")]
    found = tune_each(loaded, specs, VALIDATION, out=tmp_path, trials=1)
    assert list(found) == ["vhr", "pai"]
    for name, search in found.items():
        assert read_tuned(tmp_path / name) == search
        assert search.usual.spec.name == name and len(search.trials) == 1
        assert search.outcome()["baseline"] == search.baseline["auc"]
