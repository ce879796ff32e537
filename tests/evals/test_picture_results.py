"""Settings chosen on validation prompts, painted once on the test split, and the page of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_painter

from regaze.evals import picture_results
from regaze.evals.picture_results import Sizes, results, timed
from regaze.evals.pictures.kept_studies import of_methods
from regaze.evals.pictures.studies import STUDIES, Study
from regaze.evals.reports.picture_page import page
from regaze.evals.runs import files
from regaze.evals.sandbox.painting import NEGATION, PAINTERS
from regaze.interventions import NAG, PAG

SIZES = Sizes(validation=4, test=6, steps=2)
STUDY = Study(
    "tiny", "tiny", NEGATION, 1, {"nag": [NAG(phi=1.0), NAG(phi=2.0)], "pag": [PAG(scale=1.0)]}
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("study")
    first = results(STUDY, tiny_painter.shared(), out, SIZES)
    painted = {path: path.stat().st_mtime_ns for path in out.rglob("images/*.png")}
    assert results(STUDY, tiny_painter.shared(), out, SIZES) == first  # Nothing is done again.
    assert painted == {path: path.stat().st_mtime_ns for path in out.rglob("images/*.png")}
    return first


def test_what_did_best_on_validation_is_painted_on_test_with_its_control(
    done: dict[str, Any],
) -> None:
    validation, test = done["tables"]["validation"], done["tables"]["test"]
    assert list(validation["rows"]) == ["none", "nag:phi=1.0", "nag:phi=2.0"]
    assert done["best"]["pag"] == "pag:scale=1.0"  # A single setting isn't tried.
    rights = {label: row["metrics"]["right"] for label, row in validation["rows"].items()}
    best = done["best"]["nag"]
    assert rights[best] == max(rights[label] for label in ("nag:phi=1.0", "nag:phi=2.0"))
    control = "nag:negative=," + best.removeprefix("nag:")
    assert list(test["rows"]) == ["none", best, "pag:scale=1.0", control, "pag:scale=-1.0"]
    assert test["rows"][control]["control"] == "empty"
    assert test["rows"]["pag:scale=-1.0"]["control"] == "towards"
    assert test["rows"][best]["control"] is None
    assert set(done["times"]) == {best, "pag:scale=1.0"}
    assert test["prompts"] == 6 and validation["prompts"] == 4


def test_methods_can_be_added_to_a_study_later(done: dict[str, Any], tmp_path: Path) -> None:
    some = of_methods(STUDY, ["pag"])
    first = results(some, tiny_painter.shared(), tmp_path, SIZES)
    assert list(first["best"]) == list(some.grids) == ["pag"]
    assert list(first["times"]) == ["pag:scale=1.0"]
    assert list(first["tables"]["validation"]["rows"]) == ["none"]
    whole = results(of_methods(STUDY, None), tiny_painter.shared(), tmp_path, SIZES)
    assert (whole["tables"], whole["best"]) == (done["tables"], done["best"])
    assert set(whole["times"]) == set(done["times"])
    assert whole["times"].items() >= first["times"].items()


def test_the_page_is_made_of_what_is_stored(done: dict[str, Any], tmp_path: Path) -> None:
    study = copy.deepcopy(done)
    rows = study["tables"]["test"]["rows"]
    best = study["best"]["nag"]
    changed = {"delta": 0.125, "low": 0.05, "high": 0.2, "p": 0.01, "p_holm": 0.02}
    rows[best]["changes"]["right"] = changed
    rows[best]["changes"]["extra"] = {**changed, "delta": 0.5, "p_holm": 0.2}
    rows["pag:scale=1.0"]["changes"]["right"] = {**changed, "delta": -0.1, "low": -0.3}
    stored = {"sizes": {"steps": 2}, "dtype": "bfloat16", "studies": [study]}
    files.write_json(tmp_path / "picture-results.json", stored)
    picture_results.main(["--page", "--docs", str(tmp_path)])
    text = (tmp_path / "results-diffusion.md").read_text()
    assert text == page(stored)
    helps, _, rest = text.partition("Helps:")[2].partition("Shows nothing:")
    assert "`nag` (tiny, negation, no guidance) +12.5 [+5.0, +20.0]; its control, empty," in helps
    assert "`pag` (tiny, negation, no guidance) -10.0 [-30.0, +20.0]" in rest.partition("Harms")[0]
    (row,) = [one for one in text.splitlines() if one.startswith(f"| `{best}`")][:1]
    assert ", +12.5 [+5.0, +20.0]▲**" in row
    assert ", +0.50 [+0.05, +0.20]▼ |" in row
    assert row.endswith(f"| {study['times'][best]:g} |")
    assert "### Validation: tiny, negation, no guidance" in text


def test_studies_that_are_not_done_again_stay_on_the_page(
    done: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(name: str) -> Study:
        return replace(STUDY, name=name)

    def painted(study: Study, *rest: Any) -> dict[str, Any]:
        return {**done, "name": study.name, "best": {}}

    monkeypatch.setattr(picture_results, "STUDIES", [study(name) for name in "abc"])
    monkeypatch.setattr(picture_results, "results", painted)
    monkeypatch.setattr(picture_results, "load", lambda model, dtype: None)
    path = tmp_path / "picture-results.json"
    stored = [{**done, "name": name} for name in "cb"]
    whole = {"sizes": asdict(Sizes()), "dtype": "bfloat16", "studies": stored}
    files.write_json(path, whole)
    again = ["--docs", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "b"]
    picture_results.main([*again, "--keep"])
    now = files.read_json(path)
    assert now == {**whole, "studies": [painted(study("b")), {**done, "name": "c"}]}
    picture_results.main(["--docs", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "a"])
    assert [one["name"] for one in files.read_json(path)["studies"]] == ["a", "b"]


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command on the tiny painter, with a name of ``--out``; it gives the stored study."""
    monkeypatch.setattr(picture_results, "STUDIES", [STUDY])
    monkeypatch.setattr(picture_results, "load", lambda model, dtype: tiny_painter.shared())
    sizes = [word for name, count in asdict(SIZES).items() for word in (f"--{name}", str(count))]

    def once(out: str, *asked: str) -> dict[str, Any]:
        folders = ["--docs", str(tmp_path), "--out", str(tmp_path / out)]
        picture_results.main([*folders, *sizes, *asked])
        (study,) = files.read_json(tmp_path / "picture-results.json")["studies"]
        return dict(study)

    return once


def test_methods_join_those_that_the_directory_holds(run: Run, done: dict[str, Any]) -> None:
    assert list(run("out", "--methods", "pag")["best"]) == ["pag"]
    both = run("out", "--methods", "nag")
    assert (both["best"], both["tables"]) == (done["best"], done["tables"])


def _keep(stored: dict[str, Any], folder: Path) -> bytes:
    """Store a study as the command does."""
    path = folder / "picture-results.json"
    whole = {"sizes": asdict(SIZES), "dtype": "bfloat16", "studies": [stored]}
    files.write_json(path, whole)
    return path.read_bytes()


def _paint_nothing(monkeypatch: pytest.MonkeyPatch, done: dict[str, Any]) -> None:
    def painted(study: Study, *rest: Any) -> dict[str, Any]:
        best = {name: done["best"][name] for name in study.grids}
        return {**done, "name": study.name, "best": best}

    monkeypatch.setattr(picture_results, "results", painted)


def test_a_study_that_is_kept_loses_no_method(
    run: Run,
    done: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = _keep(done, tmp_path)
    with pytest.raises(SystemExit):
        run("fresh", "--methods", "pag", "--keep")
    path = tmp_path / "picture-results.json"
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"tiny would lose nag, which {path} holds" in said
    assert said.endswith("first paint these too, with --only tiny --methods pag nag")
    assert path.read_bytes() == before and not (tmp_path / "fresh").exists()
    _paint_nothing(monkeypatch, done)
    # What it says to do works, and so does painting everything.
    named = ["--only", "tiny", "--methods", "pag", "nag"]
    assert run("fresh", *named, "--keep")["best"] == done["best"]
    assert run("other", "--keep")["best"] == done["best"]
    # Without --keep the page is of what is done.
    assert list(run("fourth", "--methods", "pag")["best"]) == ["pag"]


def test_a_study_of_the_directory_that_is_not_painted_again_loses_none_either(
    run: Run,
    done: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _paint_nothing(monkeypatch, done)
    run("some", "--methods", "pag")
    _keep(done, tmp_path)
    monkeypatch.setattr(picture_results, "STUDIES", [STUDY, replace(STUDY, name="second")])
    with pytest.raises(SystemExit):
        run("some", "--only", "second", "--keep")
    said = capsys.readouterr().err.splitlines()[-1]
    assert "tiny would lose nag" in said and said.endswith("--only tiny --methods pag nag")


def test_a_method_that_the_study_has_no_more_goes(
    run: Run, done: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _paint_nothing(monkeypatch, done)
    _keep(done, tmp_path)
    monkeypatch.setattr(picture_results, "STUDIES", [of_methods(STUDY, ["pag"])])
    assert list(run("second", "--keep")["best"]) == ["pag"]


def test_times_are_measured_anew_of_the_stored_settings_of_the_methods_asked_for(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each method: a round to warm up, then plain and edited by turns, which take three times
    # and, once the machine is slow, twice as long.
    took = iter([9.0, 1.0, 3.0, 1.0, 3.0, 2.0, 4.0])
    clock = (at for seconds in took for at in (0.0, seconds))
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    best = done["best"]["nag"]
    stored = {**done, "times": {best: 9.9, "pag:scale=1.0": 7.7}}
    found = timed(of_methods(STUDY, ["nag"]), stored, tiny_painter.shared(), SIZES)
    assert found == {**done, "times": {best: 3.0, "pag:scale=1.0": 7.7}}
    assert next(clock, None) is None


def test_times_alone_leave_all_else_of_the_page_and_want_the_study_in_it(
    done: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(picture_results, "STUDIES", [replace(STUDY, name=name) for name in "abc"])
    monkeypatch.setattr(picture_results, "load", lambda model, dtype: None)
    measured = []

    def anew(study: Study, stored: dict[str, Any], *rest: Any) -> dict[str, Any]:
        measured.append(study.name)
        return {**stored, "times": {}}

    monkeypatch.setattr(picture_results, "timed", anew)
    stored = [{**done, "name": name, "best": {}} for name in "bc"]
    whole = {"sizes": asdict(Sizes()), "dtype": "bfloat16", "studies": stored}
    path = tmp_path / "picture-results.json"
    files.write_json(path, whole)
    asked = ["--times", "--docs", str(tmp_path), "--out", str(tmp_path / "out"), "--only"]
    picture_results.main([*asked, "b"])
    now = files.read_json(path)
    assert now == {**whole, "studies": [{**stored[0], "times": {}}, stored[1]]}
    with pytest.raises(SystemExit):
        picture_results.main([*asked, "c", "a"])
    assert "holds no a: paint it first" in capsys.readouterr().err
    assert measured == ["b"]
    assert files.read_json(path) == now and not (tmp_path / "out").exists()


def test_a_method_that_no_such_study_is_of_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--only", "mmdit-negation-1", "--methods", "slg", "tpg"]
    with pytest.raises(SystemExit):
        picture_results.main([*asked, "--docs", str(tmp_path), "--out", str(tmp_path)])
    assert "none of these studies is of slg or tpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "study", "why"),
    [
        ({"dtype": "float32"}, {}, "is of dtype float32, not bfloat16"),
        ({"sizes": asdict(Sizes(test=6))}, {}, "'test': 6"),
        ({}, {"guidance": 2}, "isn't studied so now"),
        ({}, {"name": "gone"}, "holds gone"),
    ],
)
def test_what_was_made_otherwise_is_not_kept(
    fields: dict[str, Any],
    study: dict[str, Any],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = STUDIES[0]
    one = {key: getattr(first, key) for key in ("name", "model", "subset", "guidance")} | study
    whole = {"sizes": asdict(Sizes()), "dtype": "bfloat16", "studies": [one], **fields}
    path = tmp_path / "picture-results.json"
    files.write_json(path, whole)
    with pytest.raises(SystemExit):
        picture_results.main(["--docs", str(tmp_path), "--out", str(tmp_path / "out"), "--keep"])
    assert why in capsys.readouterr().err
    assert files.read_json(path) == whole and not (tmp_path / "out").exists()


def test_every_study_is_of_a_painter_and_names_settings_that_it_can_read() -> None:
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    assert {study.model for study in STUDIES} == set(PAINTERS)
    for study in STUDIES:
        assert all(spec.name == name for name, specs in study.grids.items() for spec in specs)
