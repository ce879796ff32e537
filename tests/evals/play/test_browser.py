"""The playground in a real browser: a question, a painting, an error, a stop, two at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import browser

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="gradio isn't installed: pip install regaze[play]")

from regaze.evals.play import serving
from regaze.evals.play.fields import draw
from regaze.evals.play.following import Job
from regaze.evals.play.models import Shelf
from regaze.evals.play.running import Request
from regaze.evals.play.running import run as run_here
from regaze.evals.sandbox.scenes import scene
from regaze.interventions import PAI, VHR
from regaze.interventions.base import Intervention

SHELF = Shelf()
_PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    running = serving.server(serving.application(SHELF, "sandbox", "127.0.0.1"))
    with serving.listen("127.0.0.1", 0) as at:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [at]})
        thread.start()
        yield serving.address(at)
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chromium(address: str) -> Iterator[Any]:  # Closes its pages before the server ends.
    with browser() as found:
        yield found


def opened(chromium: Any, address: str, **looks: Any) -> Any:
    page = chromium.new_page(**looks)
    page.set_default_timeout(_PATIENCE_MS)
    page.foreign, page.errors = [], []
    page.on("request", lambda one: page.foreign.append(one.url))
    page.on("pageerror", lambda one: page.errors.append(str(one)))
    page.goto(address)
    page.wait_for_selector("#run")
    return page


def choose(page: Any, part: str, start: str) -> None:
    page.click(f"#{part} input")
    page.get_by_role("option", name=start).first.click()


def fill(page: Any, field: str, value: str) -> None:
    page.fill(f"#field-0-{field} input[type=number]", value)
    page.keyboard.press("Tab")


def ends(page: Any, said: str) -> None:
    """Wait until the status says something; how it gets there may be too short to see."""
    page.wait_for_function(
        "said => document.querySelector('#status').innerText.trim() === said", arg=said
    )


def run(page: Any, said: str) -> None:
    page.click("#run")
    ends(page, said)


def test_ask_stop_and_paint(chromium: Any, address: str) -> None:
    page = opened(chromium, address, viewport={"width": 1280, "height": 900})
    choose(page, "first", "vhr:")
    fill(page, "alpha", "1000")
    run(page, "vhr: alpha must be a finite number in [0, 100], got 1000.0")
    fill(page, "alpha", "3")
    run(page, "Done.")
    sections = page.locator("#answers section")
    assert sections.locator("h3").all_inner_texts() == ["plain", "vhr"]
    assert "red square" in sections.first.inner_text()
    assert "fired in" in page.locator("#report").inner_text()
    assert "regaze.VHR(alpha=3.0)" in page.locator("#python").inner_text()
    assert "vhr:alpha=3.0" in page.locator("#command").inner_text()

    page.locator("regaze-attention .heads").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    said = page.locator("regaze-attention .said")
    assert said.inner_text().startswith("layer 1, head 1: plain ")
    page.locator("regaze-attention .heads").first.hover(position={"x": 2, "y": 2})
    assert said.inner_text().startswith("layer 0, head 0: plain ")
    page.locator("regaze-attention .seen").first.hover(position={"x": 2, "y": 2})
    assert "Patch in row 1, column 1: plain " in said.inner_text()

    choose(page, "model", "painter-unet")
    page.wait_for_selector("#picture", state="hidden")
    page.wait_for_selector("#field-0-alpha", state="detached")
    page.get_by_role("button", name="Settings").click()
    steps = page.get_by_label("Denoising steps")
    steps.fill("200")  # So that a click on Stop comes in time on a busy machine, too.
    page.click("#run")
    page.wait_for_selector("#status:has-text('step')")
    page.click("#stop")
    ends(page, "stopped")
    steps.fill("3")
    choose(page, "first", "softpag:")
    page.wait_for_selector("#field-0-u")
    run(page, "Done.")
    assert page.locator("#answers img").count() == 2
    words = page.locator("regaze-attention .looks").first.inner_text().split()
    assert words[:2] == ["all", "words"] and "a" in words
    assert page.errors == []
    assert [url for url in page.foreign if not url.startswith((address, "data:", "blob:"))] == []


def test_a_click_on_run_waits_for_the_fields_of_a_method_just_chosen(
    chromium: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(spec: Intervention, key: str) -> list[Any]:
        time.sleep(0.5)
        return draw(spec, key)

    monkeypatch.setattr("regaze.evals.play.page.draw", slowly)
    page = opened(chromium, address)
    choose(page, "first", "pai:")
    run(page, "Done.")
    assert page.locator("#answers h3").all_inner_texts() == ["plain", "pai"]
    assert page.errors == []


def test_two_at_once(chromium: Any, address: str) -> None:
    pages = [opened(chromium, address) for _ in range(2)]
    asked = [
        Request("sandbox", "Is there a red square in the image?", (PAI(),), scene("test", 5).image),
        Request("sandbox", "Describe the image.", (VHR(),), scene("test", 5).image),
    ]
    for page, one in zip(pages, asked, strict=True):
        choose(page, "first", f"{one.edited}:")
        page.wait_for_selector("#field-0-alpha")
        page.fill("#prompt textarea", one.prompt)
    for page in pages:
        page.click("#run")
    for page, one in zip(pages, asked, strict=True):
        page.wait_for_selector("#status:has-text('Done.')")
        assert page.locator("#answers h3").all_inner_texts() == ["plain", one.edited]
        expected = [answer.text for answer in run_here(SHELF, one, Job()).answers]
        assert page.locator("#answers p:not(.rg-margin)").all_inner_texts() == expected
        assert page.errors == []
