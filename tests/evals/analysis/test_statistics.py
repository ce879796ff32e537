"""The statistics of heads on known numbers."""

from __future__ import annotations

from math import comb

import pytest
import torch

from regaze.evals.analysis.ablation import effects, standard_errors
from regaze.evals.analysis.asked import pick
from regaze.evals.analysis.distance import distances, places
from regaze.evals.analysis.maps import HeadMap, Means
from regaze.evals.analysis.mass import answer_lengths, answer_rows
from regaze.evals.analysis.overlap import overlap
from regaze.evals.analysis.page import spec, table
from regaze.evals.runs.conditions import Condition
from regaze.evals.task import Item
from regaze.interventions import HeadAblate

NAN = float("nan")


def a_map(values: list[list[float]], name: str = "mass") -> HeadMap:
    return HeadMap(name, "Mass", "share", torch.tensor(values, dtype=torch.float64))


def test_distance_is_over_the_rows_own_picture() -> None:
    # Column 0 is text, 1 to 6 a picture of 2 x 3, 7 and 8 one of 1 x 2.
    grids = [torch.arange(1, 7).view(2, 3), torch.tensor([[7, 8]])]
    where = places([grids], 9)
    weights = torch.zeros(1, 2, 4, 9)
    weights[0, 0, 0] = torch.tensor([0.5, 0.1, 0, 0.3, 0, 0, 0.1, 0, 0])  # of column 1
    weights[0, 1, 0, 6] = 1.0
    weights[0, 0, 1, 1:9] = 0.125  # of column 8
    weights[0, 0, 2, 0] = 1.0  # of column 2
    weights[0, :, 3] = 1 / 9  # of column 0
    rows = torch.tensor([[1, 8, 2, 0]])
    found, share = distances(weights, rows, where)
    assert found[0, 0, 0] == pytest.approx((0.3 * 2 + 0.1 * 5**0.5) / 0.5)
    assert found[0, 1, 0] == pytest.approx(5**0.5)
    assert share[0, 1, 0] == pytest.approx(1.0)
    assert found[0, 0, 1] == pytest.approx(0.5) and share[0, 0, 1] == pytest.approx(0.5)
    assert found[0, :, 2:].isnan().all()  # Nothing on its picture; no patch.
    with pytest.raises(ValueError, match="one patch"):
        places([[torch.tensor([[3]])]], 9)
    # A window that begins at column 2, of a sample that is shorter than the window.
    cut = where.cut([0], 2, 9)
    assert cut.picture[0].tolist() == [0, 0, 0, 0, 0, 1, 1, -1, -1]


def test_answers_count_up_to_the_token_that_ends_them() -> None:
    new = torch.tensor([[5, 2, 0, 0], [2, 0, 0, 0], [5, 6, 7, 8]])
    counts = answer_lengths(new, {2, None})
    assert counts.tolist() == [1, 0, 4]
    steps = torch.arange(4.0)[:, None, None].expand(4, 3, 1)
    rows = answer_rows(steps, counts)[..., 0].T
    assert torch.equal(rows[0].nan_to_num(-1), torch.tensor([1.0, -1, -1]))
    assert rows[1].isnan().all()
    assert rows[2].tolist() == [1, 2, 3]
    means = Means()
    means.add(1, answer_rows(steps, counts))
    assert means.table(2, 1)[1, 0] == pytest.approx((1 + 1 + 2 + 3) / 4)
    assert means.table(2, 1)[0].isnan().all()


def test_the_error_of_an_effect_counts_images_and_not_questions() -> None:
    effect = effects(torch.tensor([1.0, 2.0]), torch.tensor([[0.5, 3.0], [2.0, 2.0]]))
    assert effect.tolist() == [[0.5, -2.0], [0.0, 0.0]]
    values = torch.tensor([[1.0], [1.0], [3.0], [3.0]], dtype=torch.float64)
    # Two images: as two numbers, 1 and 3, whose mean has the error sqrt(2) / sqrt(2).
    assert standard_errors(values, ["a", "a", "b", "b"]).item() == pytest.approx(1.0)
    assert standard_errors(values, list("abcd")).item() == pytest.approx((4 / 3) ** 0.5 / 2)
    assert standard_errors(values, ["a"] * 4).isnan().all()


def test_overlap_is_set_beside_what_chance_gives() -> None:
    first = a_map([[9, 8, 7, 0], [0, 0, 0, NAN]])
    second = a_map([[9, 0, 7, 8], [0, 0, 0, NAN]])
    found = overlap(first, second, 3)
    assert found.shared == ((0, 0), (0, 2)) and found.heads == 7
    assert found.jaccard == pytest.approx(2 / 4)
    ways = [comb(3, m) * comb(4, 3 - m) / comb(7, 3) for m in range(4)]
    assert found.p == pytest.approx(ways[2] + ways[3])
    assert found.chance == pytest.approx(sum(w * m / (6 - m) for m, w in enumerate(ways)))
    with pytest.raises(ValueError, match="different sizes"):
        overlap(first, a_map([[1.0, 2.0]]), 1)
    with pytest.raises(ValueError, match="different heads"):
        overlap(first, a_map([[9, 0, 7, NAN], [0, 0, 0, 0]]), 1)


def test_the_best_heads_are_what_methods_take() -> None:
    found = a_map([[0.1, 0.9, NAN], [0.9, -0.5, 0.3]])
    assert found.top(3) == ((0, 1), (1, 0), (1, 2))
    with pytest.raises(ValueError, match="measured of 5"):
        found.top(6)
    parsed = Condition.parse(spec(found.top(2))).specs
    assert parsed == (HeadAblate(heads=((0, 1), (1, 0))),)
    again = HeadMap.from_dict(found.to_dict())
    assert torch.equal(again.values.nan_to_num(7), found.values.nan_to_num(7))
    seen = HeadMap("far", "Far", "patches", torch.tensor([[0.25]]), tower="vision")
    lines = table([found, seen]).splitlines()
    assert lines[0] == "tower,layer,head,mass,far"
    assert lines[1:3] == ["text,0,0,0.1,", "text,0,1,0.9,"] and lines[-1] == "vision,0,0,,0.25"
    assert len(lines) == 1 + 5 + 1


def test_few_items_are_about_many_images_and_of_all_kinds() -> None:
    items = [
        Item(f"{image}-{number}", str(image), "?", target="no" if number % 2 else "yes")
        for image in range(4)
        for number in range(2)
    ]
    assert [item.id for item in pick(items, 4)] == ["0-0", "1-1", "2-0", "3-1"]
    assert [item.id for item in pick(items, 5)] == ["0-0", "0-1", "1-1", "2-0", "3-1"]
    assert pick(items, 99) == items
