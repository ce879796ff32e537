"""A stranger's method and benchmark work in every command, from a file or an installed package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call, evaluate, one_line
from test_docs import ROOT, code

from regaze.evals.benchmarks import registry
from regaze.evals.sandbox.tasks import load_image
from regaze.interventions import base, get, parse

METHOD = code(ROOT / "docs" / "own-method.md", "python")[0]
BENCHMARK = code(ROOT / "docs" / "own-benchmark.md", "python")[0]


@pytest.fixture(autouse=True)
def nothing_stays(own_methods: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})


@pytest.fixture
def method(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(METHOD)
    return str(tmp_path / "own.py")


def test_a_method_from_a_file_is_listed_asked_compared_and_verified(
    method: str, model: str, tmp_path: Path
) -> None:
    listed = call("--load", method, "list")
    assert listed.exit_code == 0, listed.stderr
    assert "sharpen" in listed.stdout and "look at fewer patches" in listed.stdout
    base._REGISTRY.pop("sharpen")
    out = tmp_path / "run"
    asked = evaluate(model, out, "--load", method, "--with", "sharpen:gain=3", "--json", images=2)
    assert asked.exit_code == 0, asked.stderr
    labels = [c["label"] for c in json.loads(asked.stdout)["tasks"][0]["conditions"]]
    assert labels == ["none", "sharpen:gain=3"]
    base._REGISTRY.pop("sharpen")
    shown = call("show", str(out), "--json")  # What is stored needs no method.
    assert json.loads(shown.stdout) == json.loads(asked.stdout)
    verified = call("verify", f"--load={method}", "--model", "sandbox", "-w", "sharpen:gain=2")
    assert verified.exit_code == 0, verified.output
    assert "Verified" in verified.stdout


def test_a_benchmark_from_a_file_is_listed_asked_and_shown(model: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.py"
    file.write_text(BENCHMARK)
    rows = [
        {"id": f"{n}-{what}", "image": f"{n}.png", "question": f"How many {what}s?", "answer": n}
        for n in range(3)
        for what in ("star", "ring")
    ]
    data = tmp_path / "counting.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for n in range(3):
        load_image(f"test/0000{n}").save(tmp_path / f"{n}.png")
    given = ("--data", str(data), "--images", str(tmp_path), "--model", model)
    out = str(tmp_path / "run")
    asked = call("eval", "counting", "--load", str(file), *given, "--out", out, "--json")
    assert asked.exit_code == 0, asked.stderr
    (task,) = json.loads(asked.stdout)["tasks"]
    assert (task["title"], task["scored"], task["clusters"]) == ("Counting", 6, 3)
    registry._ADDED.clear()
    assert "unknown benchmark 'counting'" in one_line(call("show", out))
    again = call("show", out, "--load", str(file), "--json")
    assert json.loads(again.stdout) == json.loads(asked.stdout)
    registry._ADDED.clear()
    assert "how many there are" in " ".join(call("list", "--load", str(file)).stdout.split())


def installed(folder: Path, **points: str) -> None:
    """Put an installed package into a folder that offers these."""
    info = folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    groups = "".join(f"[regaze.{group}]\n{line}\n" for group, line in points.items())
    (info / "entry_points.txt").write_text(groups)


def test_installed_packages_offer_methods_and_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger_method.py").write_text(METHOD)
    (tmp_path / "stranger_bench.py").write_text(BENCHMARK)
    installed(
        tmp_path,
        interventions="sharpen = stranger_method:Sharpen",
        benchmarks="counting = stranger_bench:COUNTING",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert parse("sharpen:gain=2") == get("sharpen")(gain=2)  # type: ignore[call-arg]
    assert registry.find("counting").title == "Counting"
    assert {"sharpen", "counting"} <= set(" ".join(call("list").stdout.split()).split())
    assert "did you mean sharpen" in one_line(call("eval", "pope", "--with", "sharpn"))


def test_a_package_that_cannot_be_loaded_is_named_and_spoils_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger_broken.py").write_text("import no_such_module\n")
    installed(
        tmp_path,
        interventions="broken = stranger_broken:Broken\nempty = json:loads",
        benchmarks="odd = json:loads",
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = " ".join(call("list").stdout.split())
    assert "stranger offers" in said and "vhr" in said
    for given, message in (
        (("pope", "--with", "broken"), "broken: stranger offers stranger_broken:Broken"),
        (("pope", "--with", "empty"), "json:loads registers no intervention named 'empty'"),
        (("odd",), "json:loads is no Benchmark but a function"),
    ):
        result = call("eval", *given)
        assert result.exit_code == 2
        assert message in one_line(result)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "there is no file"),
        ("own.txt", "", "its name must end in .py"),
        ("own.py", "x = 1\ny = z\n", "own.py, line 2: NameError: name 'z' is not defined"),
        ("own.py", "x = (\n", "SyntaxError"),
        ("own.py", "import sys\nsys.exit(0)\n", "own.py, line 2: SystemExit: 0"),
        (
            "own.py",
            METHOD.replace('"sharpen"', '"vhr"'),
            "an intervention named 'vhr' is already registered",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(
    name: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / name), name):
        result = call("eval", "pope", "--load", path)
        assert result.exit_code == 2
        assert message in one_line(result)
