"""Pages that are made of the code: what Python offers, the commands, the examples."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from builder.specs import ROOT
from regaze.hooks.lazy import exports
from regaze.interventions.shipped import outlines

_MODULES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "evals": (
        "Runs and scores",
        (
            "regaze.evals.task",
            "regaze.evals.study",
            "regaze.evals.benchmarks.registry",
            "regaze.evals.benchmarks.source",
            "regaze.evals.asking.models",
            "regaze.evals.scoring.compare",
            "regaze.evals.scoring.statistics",
            "regaze.evals.tuning.tune",
            "regaze.evals.tuning.tuned",
            "regaze.evals.reports.report",
        ),
    ),
    "pictures": (
        "Pictures and clips",
        (
            "regaze.evals.pictures.comparison",
            "regaze.evals.pictures.render",
            "regaze.evals.pictures.grid",
            "regaze.evals.pictures.head_hunter",
            "regaze.evals.edits.editing",
            "regaze.evals.clips.measures",
        ),
    ),
    "sandbox": (
        "The built-in models",
        ("regaze.evals.sandbox", "regaze.evals.sandbox.scenes", "regaze.evals.sandbox.painting"),
    ),
}


def pages() -> dict[str, str]:
    """Pages of the reference, by their place on the site."""
    methods = {outline.module for outline in outlines().values()}
    found = {
        "reference/regaze.md": _exported("regaze", "Attach and verify", set()),
        "reference/interventions.md": _exported(
            "interventions", "Specs, registry, search of heads", methods
        ),
        "reference/hooks.md": _exported("hooks", "Edits of language models", set()),
        "reference/diffusion.md": _exported("hooks/diffusion", "Edits of diffusion models", set()),
        "commands.md": commands(),
        "examples.md": examples(),
    }
    for name, (title, modules) in _MODULES.items():
        parts = [f"# {title}\n", *(f"::: {module}\n" for module in modules)]
        found[f"reference/{name}.md"] = "\n".join(parts)
    return found


def examples() -> str:
    """A page of all examples, each described by its own docstring."""
    lines = ["# Examples", "", "Each runs on the built-in models, without a download.", ""]
    for path in sorted((ROOT / "examples").glob("*.py")):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first, _, rest = about.partition("\n\n")
        lines += [f"## {path.name}", "", first, ""]
        told, _, run = rest.partition("Run:  ")
        if told.strip():
            lines += [told.strip(), ""]
        command, _, more = run.partition("\n\n")
        if command:
            lines += ["```", command.strip().replace("\n          ", " \\\n    "), "```", ""]
        if more:
            lines += [more, ""]
        lines += [f"[Read it](code/examples/{path.name}.md)", ""]
    return "\n".join(lines)


def commands() -> str:
    """Every command with its options."""
    import typer

    from regaze.cli.commands import app

    lines = ["# Commands", "", "What `regaze COMMAND --help` prints, on one page.", ""]
    for words, command in _walk(typer.main.get_command(app), ["regaze"]):
        lines += [f"## {' '.join(words)}", "", _plain(command.help or ""), ""]
        rows = [_option(param) for param in command.params if not getattr(param, "hidden", False)]
        if rows:
            lines += ["| option | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    inside = getattr(command, "commands", None)
    if inside is None:
        yield words, command
        return
    for name, one in inside.items():
        yield from _walk(one, [*words, name])


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    if param.param_type_name == "argument":
        names = f"`{str(param.name).upper()}`"
    said = _plain(getattr(param, "help", None) or "").replace("|", "\\|").replace("\n", " ")
    default = getattr(param, "default", None)
    if default not in (None, False, (), "") and not callable(default):
        said += f" Default: `{default}`."
    return f"| {names} | {said} |"


def _plain(text: str) -> str:
    """Help as Markdown: no angle brackets that would be taken for tags."""
    return text.replace("\b", "").replace("<", "&lt;").replace("[/", "[&#47;")


def _exported(folder: str, title: str, left_out: set[str]) -> str:
    """A page of a package's exports, less those of some modules."""
    package = "regaze" if folder == "regaze" else "regaze." + folder.replace("/", ".")
    lines = [f"# {title}", "", f"What `{package}` offers.", ""]
    inside = set(exports(ROOT / "interventions" / "__init__.py")) if folder == "regaze" else set()
    for name, module in sorted(exports(ROOT / folder / "__init__.py").items()):
        if module not in left_out and name not in inside:
            lines += [f"::: {module}.{name}", ""]
    if folder == "interventions":
        lines += ["The methods themselves are on [cards](../methods.md).", ""]
    return "\n".join(lines)
