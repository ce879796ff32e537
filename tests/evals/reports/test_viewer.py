"""The attention viewer: its data, what a reader sees, what the keys reach."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser
from PIL import Image

from regaze.evals.reports.seen import within
from regaze.evals.reports.viewer import Heads, Side, element, page

HEADS = Heads(("layer 2", "layer 5"), (2, 1))
PICTURE = Image.new("RGB", (64, 32), (200, 30, 30))


def side(title: str, scale: float = 1.0) -> Side:
    maps = np.zeros((2, 3, 2, 4), np.float32)
    maps[0, 0, 0, 0] = 0.5 * scale
    maps[0, 1, 1, 3] = 0.002 * scale
    maps[0, 2] = 0.05 * scale
    maps[1, 2, 1, 1] = 0.25 * scale
    return Side(title, PICTURE, ("whole answer", "<b>yes"), maps, maps.sum((2, 3)))


def held(text: str) -> Any:
    return json.loads(html.unescape(text.split('about="')[1].split('"')[0]))


def test_numbers_come_back_within_a_step_of_their_heads_own_scale() -> None:
    one = side('a "quoted" <i>')
    about = held(element(HEADS, [one], "here"))
    assert (about["layers"], about["heads"]) == (["layer 2", "layer 5"], [2, 1])
    found = about["sides"][0]
    assert (found["title"], found["looks"]) == ('a "quoted" <i>', ["whole answer", "<b>yes"])
    levels = np.frombuffer(base64.b64decode(found["levels"]), np.uint8).reshape(one.maps.shape)
    tops = np.array(found["tops"])[..., None, None]
    assert (abs(levels * tops / 255 - one.maps) <= tops / 500).all()
    np.testing.assert_allclose(found["shares"], one.shares, rtol=1e-3)


def test_maps_of_other_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"plain: maps .* are not 2 looks of 4 heads"):
        element(Heads(("a",), (4,)), [side("plain")], "here")


def test_rows_beyond_the_budget_are_left_out_and_the_mean_stays() -> None:
    maps = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    names, kept = within(10**6, maps, ["a", "b", "c"])
    assert names == ("whole answer", "a", "b", "c") and kept.shape == (4, 2, 2, 2)
    np.testing.assert_array_equal(kept[0], maps.mean(0))
    names, kept = within(16, maps, ["a", "b", "c"])
    assert names == ("whole answer", "a") and kept.shape[0] == 2
    names, kept = within(1, maps, ["a", "b", "c"])
    assert names == ("whole answer",) and kept.shape[0] == 1


def test_a_reader_points_clicks_and_types(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    both = element(HEADS, [side("plain"), side("edited", 0.5)], "on the picture")
    file.write_text(page("Two <sides>", [both]), encoding="utf-8")
    with browser() as chromium:
        shown = chromium.new_page(viewport={"width": 900, "height": 900})
        errors: list[str] = []
        asked: list[str] = []
        shown.on("pageerror", lambda one: errors.append(str(one)))
        shown.on("request", lambda one: asked.append(one.url))
        shown.goto(file.as_uri())
        said, heads = shown.locator(".said"), shown.locator(".heads").first
        assert said.inner_text() == "All heads: plain 30 %, edited 15 % on the picture."
        heads.focus()
        shown.keyboard.press("ArrowRight")
        assert said.inner_text() == "layer 2, head 0: plain 50 %, edited 25 % on the picture."
        shown.keyboard.press("ArrowRight")
        assert said.inner_text() == "layer 2, head 1: plain 0.2 %, edited 0.1 % on the picture."
        shown.keyboard.press("ArrowDown")
        assert said.inner_text() == "layer 5, head 0: plain 40 %, edited 20 % on the picture."
        shown.get_by_role("button", name="<b>yes").first.click()
        assert said.inner_text() == "layer 5, head 0: plain 25 %, edited 13 % on the picture."
        picture = shown.locator(".seen").first
        box = picture.bounding_box()
        picture.hover(position={"x": 0.3 * box["width"], "y": 0.75 * box["height"]})
        assert "Patch in row 2, column 2: plain 25 %, edited 13 %." in said.inner_text()
        picture.hover(position={"x": 0.3 * box["width"], "y": 0.25 * box["height"]})
        assert "Patch in row 1, column 2: plain 0 %, edited 0 %." in said.inner_text()
        shown.keyboard.press("Escape")
        assert said.inner_text().startswith("layer 5")  # The keys are the heads' own.
        heads.press("Escape")
        assert said.inner_text().startswith("All heads: plain 8.3 %")
        heads.click(position={"x": 3, "y": 3})
        assert said.inner_text().startswith("layer 2, head 0")
        shown.get_by_role("button", name="Hide attention").click()
        assert shown.locator(".seen.bare").count() == 2
        assert shown.locator("h1").inner_text() == "Two <sides>"
        assert errors == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
