"""The report in a real browser: no errors, nothing cut off on a phone, readable in the dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from toy import toy_model

from regaze.evals.asking import runner
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.source import Source
from regaze.evals.reports.report import write_report
from regaze.evals.runs.conditions import Condition
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scored import Scored

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"needs a browser on the path: {', '.join(BROWSERS)}"
)

# A frame has the width of a phone whatever the window's least width; what it shows is measured
# from outside, so the page itself is what readers get.
HARNESS = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
const seen = el => el.getClientRects().length > 0;
window.onload = () => setTimeout(() => {{
  const page = frame.contentDocument, root = page.documentElement;
  const galleries = [...page.querySelectorAll("details.flips")];
  const before = galleries.map(g => seen(g.querySelector(".gallery")));
  for (const summary of page.querySelectorAll("details:not([open]) > summary")) summary.click();
  const images = [...page.images];
  const channel = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
  const style = frame.contentWindow.getComputedStyle(page.body);
  const end = root.clientWidth + 1;
  const wide = [...page.querySelectorAll("body *")].filter(
    el => !el.closest(".scroll, pre, svg") && el.getBoundingClientRect().right > end);
  const result = {{
    overflow: root.scrollWidth - root.clientWidth,
    wide: wide.map(el => el.tagName + "." + el.className),
    before, after: galleries.map(g => seen(g.querySelector(".gallery"))),
    images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    details: page.querySelectorAll("details:not([open])").length,
    ink: channel(style.color), ground: channel(style.backgroundColor),
    plots: [...page.querySelectorAll("svg")].filter(seen).length,
    marks: new Set([...page.querySelectorAll("svg path")].map(
      el => frame.contentWindow.getComputedStyle(el).stroke)).size,
  }};
  document.title = JSON.stringify(result);
}}, 50);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    source = Source(benchmark="pope", n_images=6)
    task, model, processor = source.tasks()[0], *toy_model()
    conditions = [Condition.parse(text) for text in ("vhr:alpha=4", "none@blank")]
    result = runner.run(task, model, processor, conditions, out=out, max_new_tokens=4)
    path = out / "report.html"
    scores = [score_run(result, title=source.title, draws=200)]
    write_report(path, [Scored(result, scores)], Loaded(model, processor, {"name": "toy"}))
    return path


def browse(page: Path, width: int, *flags: str) -> dict[str, Any]:
    """The page as a browser shows it, and the browser's complaints."""
    harness = page.with_name(f"harness-{width}.html")
    harness.write_text(
        HARNESS.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))),
        encoding="utf-8",
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *flags]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    console = re.findall(r"CONSOLE.*", done.stderr)
    return {**json.loads(html.unescape(title[1])), "console": console}


def test_on_a_phone_nothing_overflows_and_the_gallery_opens(page: Path) -> None:
    found = browse(page, 400)
    assert found["console"] == []
    assert (found["overflow"], found["wide"]) == (0, [])
    assert found["after"]
    assert all(found["after"])
    assert found["details"] == 0
    assert found["images"] > 0
    assert found["broken"] == 0
    assert found["plots"] >= 4


def test_in_the_dark_the_page_turns_dark_and_its_plots_with_it(page: Path) -> None:
    light = browse(page, 1000, "--blink-settings=preferredColorScheme=1")
    dark = browse(page, 1000, "--blink-settings=preferredColorScheme=0")
    assert light["ink"] < 150 < 600 < light["ground"]
    assert dark["ground"] < 150 < 600 < dark["ink"]
    for found in (light, dark):
        assert found["console"] == []
        assert found["overflow"] == 0
        assert found["marks"] > 1
