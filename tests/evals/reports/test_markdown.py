from __future__ import annotations

from scored import pope_scores, toy_scores

from regaze.evals.reports.markdown import markdown


def test_a_table_has_a_row_per_condition_and_equally_many_cells() -> None:
    text = markdown([pope_scores(), toy_scores()])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    pope, toy = rows[:7], rows[7:]
    assert len({row.count("|") for row in pope}) == 1
    assert pope[0] == "|  | accuracy | F1 | yes ratio | accuracy at best threshold | AUC |"
    assert [row.split(" | ")[0] for row in pope[2:]] == [
        "| `none`",
        "| `vhr`",
        "| `pai`",
        "| control, blank image: `none@blank`",
        "| control, random heads: `vhr:heads=random`",
    ]
    assert len(toy) == 4


def test_values_first_then_changes_with_intervals_and_marks() -> None:
    text = markdown([toy_scores()])
    assert "| `none` | 0.0 |" in text
    assert r"| `vhr:alpha=4` | +100.0 [+100.0, +100.0]\* |" in text


def test_the_profile_the_sizes_and_the_findings_stand_with_it() -> None:
    text = markdown([pope_scores()])
    assert "**POPE** (`pope/official`; 240 items about 60 images, mean of the 2 groups)" in text
    assert "may be no more than a moved yes/no threshold" in text
    assert "other rows: change in points with 95 % interval" in text
