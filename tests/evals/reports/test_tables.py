from __future__ import annotations

import io
import re
from dataclasses import replace

from rich.console import Console, RenderableType
from scored import pope_scores, toy_scores

from regaze.evals.reports import tables


def text(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_the_table_shows_values_changes_flips_and_firing_within_80_columns() -> None:
    shown = text(tables.render(toy_scores()))
    assert max(map(len, shown.splitlines())) <= 80
    for part in (
        "Toy questions  toy/toy/plain, 18 items, 3 images",
        "easy",
        "mean of the 2",
        "100.0 +100.0▲",
        "[+100.0, +100.0]",
        "−0 +9",
        "fired in 1 of 2 layers, mean effect 0.125",
    ):
        assert part in shown


def test_the_summary_has_a_column_per_condition() -> None:
    shown = text(tables.summary([toy_scores(), toy_scores()]))
    assert shown.count("vhr:alpha=4") == 2
    assert "100.0 +100.0▲" in shown


def test_five_conditions_stand_side_by_side_in_an_ordinary_terminal() -> None:
    scores = pope_scores()
    none, vhr, pai = (c for c in scores.conditions if c.control is None)
    others = [replace(pai, label=label) for label in ("var", "vaf")]
    given = (none, replace(vhr, label="vhr:layers=[2,3]"), pai, *others)
    lines = text(tables.summary([replace(scores, conditions=given)]), 80).splitlines()
    header = next(line for line in lines if line.split()[:1] == ["none"])
    assert header.split() == ["none", "layers=[2,3]", "pai", "var", "vaf"]


def test_controls_stand_apart_at_the_end() -> None:
    shown = text(tables.render(pope_scores()), 110)
    compared, _, controls = shown.partition("controls, mean of the 2")
    assert "vhr:heads=random" not in compared.partition("Only a moved")[0]
    assert "vhr:heads=random" in controls
    assert compared.count("all items pooled") == 0


def test_a_moved_threshold_is_told() -> None:
    shown = text(tables.render(pope_scores()), 110)
    assert "Only a moved yes/no threshold?" in shown
    assert "at best threshold" in shown
    assert "may be no more than a moved yes/no threshold" in " ".join(shown.split())
    assert "Only a moved" not in text(tables.render(toy_scores()))


def test_p_values_stand_beside_the_adjusted_ones() -> None:
    shown = text(tables.render(pope_scores()), 110)
    assert re.search(r"\.005/\.010", shown)


def test_seeds_show_their_spread() -> None:
    shown = text(tables.render(pope_scores(seeds=3)), 140)
    assert "means over 3 seeds" in " ".join(shown.split())
    assert re.search(r"sd \d+\.\d, \d+\.\d to \d+\.\d", shown)


def test_a_table_fits_a_narrow_terminal_uncut() -> None:
    shown = text(tables.render(pope_scores()), 80)
    assert "…" not in shown
    # A fourth metric, as CHAIR has, would leave little room for labels.
    wide = replace(pope_scores(), headline=("accuracy", "f1", "precision", "yes_ratio"))
    narrow = text(tables.render(wide), 80)
    for part in (
        "p/Holm",
        "[+17.9, +27.5]",
        "−16 +38",
        ".005/.",
        "popular",
        "also shows yes ratio",
    ):
        assert part in narrow
    assert "p/Holm" in shown
    assert re.search(r"\.005/\.010\s", shown)
