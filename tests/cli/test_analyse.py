"""The commands that analyse heads, on the built-in model and a few scenes."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import call, one_line
from PIL import Image
from typer.testing import Result

from regaze.evals.analysis.analyse import RANKS
from regaze.evals.runs.conditions import Condition
from regaze.interventions import HeadAblate

FEW = ("--limit", "3", "--n-images", "3")


def heads(*args: str) -> Result:
    return call("analyse", "heads", *args)


class Pictures(HTMLParser):
    """The sources of a page's pictures, and everything that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href")]


def test_heads_are_measured_drawn_and_named(tmp_path: Path) -> None:
    done = heads(*FEW, "--layer", "4", "--layer", "5", "--top", "3", "--out", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "heads.json").read_text())
    by_name = {one["name"]: one for one in found["maps"]}
    assert set(by_name) == {
        *("mass", "answer_mass", "divergence", "direct", "direct_yes", "distance"),
        *("distance_share", "vision_distance", "vision_distance_share"),
        *("ablation", "ablation_yes", "ablation_error"),
    }
    assert {one["name"] for one in found["maps"] if one["tower"] == "text"} == set(RANKS)
    assert found["items"] == 3 and not found["left_out"]
    assert [v is None for v in by_name["ablation"]["values"][3]] == [True] * 8
    assert len(by_name["vision_distance"]["values"]) == 4
    # The heads that are named are those with the largest effects, as a method takes them.
    text = done.stdout.strip().splitlines()[-1]
    (spec,) = Condition.parse(text.removeprefix("--with '").removesuffix("'")).specs
    assert isinstance(spec, HeadAblate)
    effects = {
        (layer, head): value
        for layer, row in enumerate(by_name["ablation"]["values"])
        for head, value in enumerate(row)
        if value is not None
    }
    assert list(spec.heads) == sorted(effects, key=lambda head: -effects[head])[:3]
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 8 + 4 * 4
    first = rows[0]
    assert float(first["mass"]) == pytest.approx(by_name["mass"]["values"][0][0], rel=1e-5)
    assert first["vision_distance"] == "" and first["ablation"] == ""
    for picture in ("heads.png", *(f"{name}.png" for name in by_name)):
        assert min(Image.open(tmp_path / picture).size) > 200
    page = (tmp_path / "heads.html").read_text()
    sources = Pictures(page).found
    assert len(sources) == len(by_name)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert spec.label in page.replace("&#39;", "'")
    # What was ablated is on the disk: other settings in that folder are refused.
    again = heads(*FEW, "--layer", "5", "--out", str(tmp_path))
    assert again.exit_code == 2 and "heads" in one_line(again)


def test_two_tasks_are_compared_by_their_best_heads(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in "ab"]
    for folder, split in zip(folders, ("validation", "test"), strict=True):
        few = ("--measure", "mass", "--measure", "divergence", "--split", split)
        done = heads(*FEW, *few, "--out", folder, "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["by"] == "divergence" and len(found["top"]) == 10
    done = call("analyse", "overlap", *folders, "--top", "6", "--json")
    assert done.exit_code == 0, done.stderr
    overlap = json.loads(done.stdout)
    assert overlap["heads"] == 48 and overlap["measure"] == "divergence"
    assert overlap["jaccard"] == len(overlap["shared"]) / (12 - len(overlap["shared"]))
    said = call("analyse", "overlap", *folders, "--by", "mass", "--top", "6").stdout
    assert "Top 6 of 48 heads by mass" in said and "by chance 0.0" in said
    wrong = call("analyse", "overlap", folders[0], str(tmp_path))
    assert wrong.exit_code == 2 and "holds no analysis" in one_line(wrong)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--measure", "masss"), "mass"),
        (("--to", "mean"), "--to must be zero or uniform"),
        (("--heads", "4"), "[layer,head] pairs"),
        (("--heads", "[]"), "names no heads"),
        (("--heads", "[[0,0]]", "--layer", "1"), "not both"),
        (("--heads", "[[9,0]]", "--measure", "ablation"), "[9,0]"),
        (("chair", "--measure", "direct"), "yes or no"),
        (("pope", "--measure", "mass", "--by", "direct"), "direct isn't among the measures"),
        (("--by", "massive"), "did you mean mass"),
        (("--by", "vision_distance"), "unknown measure to rank by 'vision_distance'"),
        (("--model", "other"), "unknown model 'other'"),
    ],
)
def test_mistakes_are_told_in_one_line(args: tuple[str, ...], why: str, tmp_path: Path) -> None:
    done = heads(*args, *FEW, "--out", str(tmp_path / "run"))
    assert done.exit_code == 2
    assert why in one_line(done)
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_what_can_t_be_taken_is_left_out_and_said(tmp_path: Path) -> None:
    done = heads("chair", *FEW, "--out", str(tmp_path), "--batch-size", "2")
    assert done.exit_code == 0, done.stderr
    said = one_line(done)
    assert "direct is left out" in said and "ablation is left out" in said
    found = json.loads((tmp_path / "heads.json").read_text())
    assert set(found["left_out"]) == {"direct", "ablation"}
    assert "is left out" in (tmp_path / "heads.html").read_text()
