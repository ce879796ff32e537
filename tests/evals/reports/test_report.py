from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scored import pope_run
from toy import ToyTask, toy_model

from regaze.evals.asking import runner
from regaze.evals.asking.models import Loaded
from regaze.evals.reports import plots
from regaze.evals.reports.gallery import Flip, Side
from regaze.evals.reports.plots import Whisker
from regaze.evals.reports.report import _title, write_report
from regaze.evals.reports.viewer import SCRIPT
from regaze.evals.runs.conditions import Condition
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scored import Scored
from regaze.evals.task import Item

MODEL, PROCESSOR = toy_model()


class Loud(ToyTask):
    """A task whose questions and truths would break a page that doesn't escape them."""

    name = "loud"

    def __init__(self) -> None:
        super().__init__(images=4)
        self.items = [
            Item(i.id, i.cluster, f"<script>alert('{i.prompt}')</script>", i.group, "star")
            for i in self.items
        ]


def scored(out: Path, *conditions: str, task: ToyTask) -> Scored:
    result = runner.run(
        task, MODEL, PROCESSOR, [Condition.parse(text) for text in conditions], out=out
    )
    return Scored(result, [score_run(result, title="Loud & clear", draws=200)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored(
        tmp_path_factory.mktemp("run"), "vhr:alpha=4", "var:sink_dims=[0],tau=1", task=Loud()
    )


@pytest.fixture(scope="module")
def page(run: Scored, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [run], Loaded(MODEL, PROCESSOR, {"name": "toy"}))
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    linked = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page)
    linked += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", page)
    assert linked
    for target in linked:
        assert "".join(target).strip("'\"").startswith(("data:image/", "#"))
    assert page.count("<script") == 1  # The attention viewer's.
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://", SCRIPT)
    assert "<link" not in page


def test_flipped_items_are_shown_with_both_answers_and_attention_maps(
    run: Scored, page: str
) -> None:
    change = run.scores[0].conditions[1].change
    assert change is not None
    first = (*change.lost, *change.gained)[0]
    card = page[page.index(f"<small>{first}</small>") :].partition("</article>")[0]
    texts = [a.records[first].text for a in run.result.answers[:2]]
    for text in texts:
        assert text.strip() in card or not text.strip()
    assert card.count('class="heat"') == 2
    assert card.count("<regaze-attention ") == 1
    assert "truth: star" in card


def test_one_flip_per_image_and_direction_is_shown(run: Scored, page: str) -> None:
    change = run.scores[0].conditions[1].change
    assert change is not None
    clusters = {item.id: item.cluster for item in run.result.items}
    expected = sum(len({clusters[key] for key in ids}) for ids in (change.lost, change.gained))
    assert page.count("<article") == expected


def test_texts_are_escaped(page: str) -> None:
    assert "&lt;script&gt;alert(" in page
    assert "Loud &amp; clear" in page


def test_a_silent_condition_is_called_so_and_has_no_numbers(page: str) -> None:
    assert "NEVER FIRED" in page
    assert "not reported" in page


def test_the_page_names_profile_sizes_intervals_and_manifest(page: str) -> None:
    for part in ("loud/toy/plain", "24 items about 4 images", "95&nbsp;% intervals"):
        assert part in page
    assert "&#34;weights_sha256&#34;" in page


@pytest.fixture(scope="module")
def yes_no_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Controls, margins, seeds and costs, without a model."""
    result = pope_run(seeds=2, images=20)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, [Scored(result, [score_run(result, title="POPE", draws=200)])])
    return path.read_text(encoding="utf-8")


def part(page: str, heading: str) -> str:
    """The text under a heading."""
    return page[page.index(f"<h3>{heading}") :].partition("<h3>")[2].partition("<h3>")[0]


def test_controls_have_a_table_of_their_own(yes_no_page: str) -> None:
    controls = part(yes_no_page, "Controls")
    assert re.findall(r"control: ([\w ]+)<", controls) == ["blank image", "random heads"]
    summary = yes_no_page.partition("<h2>Summary</h2>")[2].partition("</section>")[0]
    assert "none@blank" not in summary


def test_plots_leave_out_what_was_shown_another_image(yes_no_page: str) -> None:
    plots = " ".join(re.findall(r"<svg.*?</svg>", yes_no_page, flags=re.DOTALL))
    assert "vhr random heads" in plots
    assert "blank" not in plots


def test_a_moved_threshold_is_shown_and_said(yes_no_page: str) -> None:
    panel = part(yes_no_page, "Only a moved yes/no threshold?")
    assert "at best threshold" in panel
    assert "may be no more than a moved yes/no threshold" in panel
    assert "Forest plot: POPE official AUC" in panel


def test_shifts_of_yes_ratio_stand_apart_from_scores(yes_no_page: str) -> None:
    assert "yes ratio, neither is better" in part(yes_no_page, "What moves a score by itself")


def test_categories_are_shown_with_their_sizes(yes_no_page: str) -> None:
    panel = part(yes_no_page, "By category")
    assert "random (40)" in panel
    assert "var(--series-0)" in panel


def test_all_numbers_hold_adjusted_and_mid_p_pooled_items_and_seeds(yes_no_page: str) -> None:
    numbers = yes_no_page.partition("All numbers</summary>")[2].partition("</details>")[0]
    for text in ("all items pooled", ", Holm ", "mid-p ", "<small>sd ", "80 items"):
        assert text in numbers


def test_costs_and_what_was_asked_apart_are_told(yes_no_page: str) -> None:
    panel = part(yes_no_page, "Did the interventions act").replace("\n", "")
    assert "<td>20</td><td>1 ×</td><td>1,000</td><td>–</td><td>0.5</td>" in panel
    assert "asked without prefix sharing: it has its reasons" in panel


def test_all_flips_are_listed_by_id(yes_no_page: str) -> None:
    listed = yes_no_page.partition("All flipped items by id</summary>")[2].partition("</details>")[
        0
    ]
    assert re.search(r"wrong → right:</b> \w+/\d+, \w+/\d+", listed)


def test_a_question_about_no_image_is_shown_without_one(tmp_path: Path) -> None:
    result = pope_run(images=8)
    items = [replace(item, image=None) for item in result.items]
    write_report(
        tmp_path / "report.html",
        [Scored(replace(result, items=items), [score_run(result, draws=100)])],
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<article" in page
    assert "<img" not in page


@pytest.mark.parametrize(
    ("target", "truth"),
    [
        ("yes", "yes"),
        (["red", "crimson"], "red, crimson"),
        ({"objects": ["dog", "cat"], "captions": []}, "dog, cat"),
        ({"answer": "b", "pair": 3}, "answer: b, pair: 3"),
        (None, ""),
    ],
)
def test_truths_of_all_shapes_are_put_into_words(target: Any, truth: str) -> None:
    flip = Flip(Item("x", "i", "?", target=target), True, Side("no"), Side("yes"))
    assert flip.truth == truth


def test_without_a_model_the_page_has_no_maps_but_the_rest(run: Scored, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [run])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<article" in page
    assert 'class="heat"' not in page
    assert "<script" not in page and "regaze-attention" not in page


def test_a_baseline_alone_has_a_page_too(tmp_path: Path) -> None:
    alone = scored(tmp_path, task=ToyTask(images=2))
    write_report(tmp_path / "report.html", [alone])
    assert "<article" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_plot_is_well_formed_and_follows_the_page_colours(page: str) -> None:
    found = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert found
    for svg in found:
        ElementTree.fromstring(svg)
        assert "var(--ink)" in svg
        assert not re.search(r"#0[1-6]0[1-6]0[1-6]", svg)


def plot(**changes: Any) -> str:
    rows = [Whisker("vhr & co", 1.0, 0.5, 1.5, "better"), Whisker("pai", 0.1, -1, 1, "open")]
    return plots.forest("key", "accuracy", "points", rows, **changes)


def test_plots_mark_findings_by_fill_as_well_as_colour() -> None:
    svg = plot()
    assert "fill: var(--better)" in svg
    assert "fill: var(--open)" not in svg
    assert "stroke: var(--open)" in svg
    assert ">vhr &amp; co</text>" in svg


def test_controls_are_squares_below_a_line() -> None:
    rows = [Whisker("vhr", 1.0, 0.5, 1.5, "better"), Whisker("vhr", 0.1, -1, 1, "open", True)]
    assert plots.forest("key", "accuracy", "points", rows).count("stroke-dasharray") > 0
    assert "stroke-dasharray" not in plot()


def test_bars_leave_out_what_is_undefined() -> None:
    series = [[plots.Bar(50, 40, 60), plots.Bar(*[float("nan")] * 3)], [plots.Bar(70, 60, 80)] * 2]
    svg = plots.bars("key", "accuracy", "percent", ["cats", "dogs"], series)
    assert "nan" not in svg.lower()
    for text in ("cats", "dogs", "var(--series-0)", "var(--series-1)"):
        assert text in svg


def test_plots_are_reproducible() -> None:
    assert plot() == plot()


def test_heat_layers_share_one_scale_and_let_the_image_through() -> None:
    strong = np.array([[0.0, 1.0]], dtype=np.float32)
    weak = np.array([[0.0, 0.5]], dtype=np.float32)
    uris = plots.heat_layers({"a": strong, "b": weak})
    assert all(uri.startswith("data:image/png;base64,") for uri in uris.values())
    assert uris["a"] != uris["b"]
    alone = plots.heat_layers({"b": weak})
    assert alone["b"] == uris["a"]


def test_photos_become_small_files() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert plots.data_uri(Image.fromarray(noise)).startswith("data:image/jpeg")
    assert plots.data_uri(Image.fromarray(noise[:64, :64])).startswith("data:image/png")


def test_rows_of_one_method_can_be_told_apart() -> None:
    rows = [Whisker(f"softpag:scale=1,heads=L1H{n}", 1.0, 0.0, 2.0, "open") for n in (3, 4)]
    shown = re.findall(r">(softp…\S+?)<", plots.forest("key", "right", "points", rows))
    assert shown == ["softp…eads=L1H3", "softp…eads=L1H4"]


def test_a_title_names_few_methods_and_counts_many() -> None:
    assert _title([], "toy") == "How toy does"
    assert _title(["var", "vhr"], "toy") == "What var and vhr change in toy"
    assert _title(list("abcde"), "toy") == "What 5 conditions change in toy"
    settings = ":layers=[1,2,3,4,5,6,7,8,9],start=0.1,stop=0.9,weight=0.5"
    assert _title([f"var{settings}", "vhr"], "toy") == "What var and vhr change in toy"
    assert _title([f"var{settings}", "var"], "toy") == "What 2 conditions change in toy"
