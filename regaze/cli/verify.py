"""verify: methods proved on a model of your own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from regaze.cli.options import Json, Model, spread
from regaze.cli.pipelines import Source
from regaze.cli.terminal import err, fail, out
from regaze.evals import sandbox
from regaze.evals.outputs import check_place
from regaze.evals.reports.whole_words import WholeWords
from regaze.evals.sandbox.video import PIPELINES

if TYPE_CHECKING:
    from regaze.evals.asking.models import Loaded
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.verify import Certificate
    from regaze.interventions import Intervention

_MARKS = {
    "passed": ("passed", "green"),
    "failed": ("FAILED", "bold red"),
    "skipped": ("skipped", "yellow"),
    "info": ("", "dim"),
}


@dataclass(frozen=True)
class Target(Model):
    """The model or pipeline, and how to hold it."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=f"The model: sandbox, smol, {', '.join(PIPELINES)}, a folder or a Hub id.",
        ),
    ] = sandbox.MODELS[0]


@spread
def verify(
    target: Target,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            "-w",
            help="What to verify: var, vhr:alpha=2, or var+pai together. Repeatable; default: "
            "every method for this kind of model.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="File to write the certificate to, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove on your own model that each method does what its formula says, and leaves no trace.

    Exit code 1: a promise failed, or none could be checked, be it of one method that --with names.
    """
    from regaze.evals.pictures.pipelines import is_pipeline
    from regaze.evals.runs.conditions import Condition
    from regaze.interventions import Intervention, get, names

    if file is not None:
        check_place(file)
    conditions = [Condition.parse(text) for text in with_ or ()]
    for condition, text in zip(conditions, with_ or (), strict=True):
        if not condition.specs or condition.image != "given":
            raise ValueError(f"--with {text}: there is no method in it to verify")
        condition.check_given()
    stacks: list[tuple[Intervention, ...]] = [condition.specs for condition in conditions]
    paints = is_pipeline(target.model)
    if paints and (target.device_map or target.attn_implementation):
        raise ValueError("--device-map and --attn-implementation are for vision-language models")
    model: Any
    options: dict[str, Any]
    if paints:
        painter = Source(model=target.model, dtype=target.dtype, device=target.device).load()
        model, identity = painter.pipeline, painter.identity
        # How many steps are enough depends on the method.
        given = dict(painter.arguments)
        given.pop("num_inference_steps", None)
        options = {"call": given}
    else:
        loaded = target.load()
        model, identity = loaded.model, loaded.identity
        options = {"processor": loaded.processor}
    if not stacks:
        kind = "diffusers pipelines" if paints else Intervention.acts_on
        stacks = [(get(name)(),) for name in names(kind) if get(name).stage == "attention"]
    certificate = _verified(model, stacks, identity=identity, **options)
    if file is not None:
        certificate.save(file)
    if as_json:
        typer.echo(json.dumps(certificate.to_dict(), allow_nan=False, ensure_ascii=False))
    else:
        show(certificate, target.model)
    if with_ and certificate.unchecked:
        fail(f"nothing could be checked of {', '.join(certificate.unchecked)}", 1)
    raise typer.Exit(0 if certificate.passed else 1)


def certified(loaded: Loaded, conditions: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """Verify what some conditions attach to a model; a promise that fails ends the command.

    Returns:
        The certificates as JSON, by the conditions' labels.
    """
    found = {
        condition.label: tuple(spec for spec in condition.specs if spec.stage == "attention")
        for condition in conditions
    }
    stacks = {label: stack for label, stack in found.items() if stack}
    if not stacks:
        return {}
    # A condition's controls show other images; what is attached is the same.
    different = list(dict.fromkeys(stacks.values()))
    certificate = _verified(
        loaded.model, different, processor=loaded.processor, identity=loaded.identity
    )
    if not certificate.passed:
        show(certificate, str(loaded.identity["name"]))
        fail("a promise failed on this model, so nothing was asked of it", 1)
    return {
        label: certificate.only("+".join(spec.label for spec in stack)).to_dict()
        for label, stack in stacks.items()
    }


def _verified(target: Any, stacks: Sequence[Sequence[Intervention]], **options: Any) -> Certificate:
    from regaze.evals.verify import verify as verify_model

    with err.status("verifying") as status:
        return verify_model(
            target,
            *stacks,
            progress=lambda text: status.update(Text(f"verifying {text}")),
            **options,
        )


def show(certificate: Certificate, name: str) -> None:
    """Print a certificate as a table, and what it comes to."""
    about = certificate.model
    out.print(
        Text(
            f"{name}: {about['class']}, {about['dtype']} on {about['device']}, {about['attention']}"
        ),
        Text(f"Asked: {certificate.inputs}."),
        Text("Differences are the largest ones, in standard deviations of the plain output."),
        sep="\n",
        soft_wrap=True,
    )
    table = WholeWords("promise", "", "measured")
    before = None
    for line in certificate.lines:
        if line.method != before:
            table.add_section()
            table.add_row(Text(line.method or "the plain model", "bold"))
        word, style = _MARKS[line.verdict]
        table.add_row(Text(f"  {line.says}"), Text(word, style), Text(line.detail))
        before = line.method
    out.print(table)
    verdicts = [line.verdict for line in certificate.lines]
    counted = [
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in ("passed", "failed", "skipped")
        if verdict in verdicts
    ]
    sums = f"{', '.join(counted)} in {certificate.seconds:.1f} s"
    but = ", but for what was skipped" if "skipped" in verdicts else ""
    word = f"Verified{but}" if certificate.passed else "NOT verified"
    out.print(Text(f"{word}: {sums}.", "green" if certificate.passed else "bold red"))
