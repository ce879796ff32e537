"""The options that commands share, in groups, and how a command takes a group."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer
from typer.models import OptionInfo

from regaze.cli.noise import hush
from regaze.cli.terminal import fail, note, out
from regaze.evals import sandbox
from regaze.evals.sandbox import smol
from regaze.evals.sandbox.video import PIPELINES
from regaze.hooks.checks import unknown

if TYPE_CHECKING:
    from regaze.evals.asking.models import Loaded
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.scoring.scores import TaskScores

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: cuda, cuda:1, cpu, ... Default: the first GPU, else cpu."),
]
Profile = Annotated[
    list[str] | None,
    typer.Option(help="Scoring rules, e.g. official or opera. Repeatable."),
]

_ALL = "all"


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of those of its parameters that are dataclasses.

    Typer reads options off a signature, and knows no groups of them. Help shows those of a
    dataclass together, under its ``PANEL`` if it has one.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter)
            continue
        groups[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            default = parameter.empty if one.default is MISSING else one.default
            parameters.append(
                parameter.replace(
                    name=one.name,
                    default=default,
                    annotation=_in_panel(hints[one.name], getattr(kind, "PANEL", None)),
                )
            )

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    # By keyword alone, what has a default may come before what has none.
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _in_panel(hint: Any, panel: str | None) -> Any:
    """A field's annotation, with its option shown in a panel of the help."""
    about = getattr(hint, "__metadata__", (None,))[0]
    if panel is None or not isinstance(about, OptionInfo):
        return hint
    about = copy.copy(about)  # Other commands' groups may share it.
    about.rich_help_panel = panel
    return Annotated[hint.__origin__, about]


@dataclass(frozen=True)
class Model:
    """The vision-language model, and how to hold it."""

    PANEL: ClassVar[str] = "Model"

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="The model: sandbox, sandbox-plain, smol, a folder or a Hub id."
        ),
    ] = sandbox.MODELS[0]
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision: auto, float32, bfloat16 or float16. Default: float32 on the CPU, else "
            "auto."
        ),
    ] = None
    device: Device = None
    device_map: Annotated[
        str | None, typer.Option(help="Spread the model over devices, e.g. auto.")
    ] = None
    attn_implementation: Annotated[
        str | None, typer.Option(help="Attention kernel: sdpa, eager, flash_attention_2, ...")
    ] = None

    def load(self) -> Loaded:
        """Load it; the embedded ones run on one thread unless the environment says otherwise."""
        from regaze.evals.asking.models import load

        hush("transformers")
        if sandbox.is_sandbox(self.model):
            on_one_thread()
        loaded = load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            attn_implementation=self.attn_implementation,
        )
        note(*loaded.notes)
        return loaded


def on_one_thread() -> None:
    """Let torch compute on one thread, unless the environment says on how many.

    So small a model only loses by threads that wait for each other, most of all on a busy machine;
    one thread also fixes the order of sums.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


@dataclass(frozen=True)
class Compared:
    """The conditions that a model is run with, beside as it is."""

    PANEL: ClassVar[str] = "Conditions"

    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            "-w",
            help="A condition: none, var, vhr:alpha=2, or var+pai; all: every method that can act "
            "on the model. Repeatable; none always runs.",
        ),
    ] = None
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Run controls too: the wrong and a blank image, random heads, signs flipped.",
        ),
    ] = False

    @property
    def all(self) -> bool:
        """True if every method is asked for."""
        return _ALL in (self.with_ or ())

    @property
    def conditions(self) -> list[Condition]:
        """The conditions that are named, and the controls of each if they are asked for.

        Raises:
            ValueError: An unknown method or field; the message names the nearest. Or a method
                without a field that it needs.
        """
        from regaze.evals.runs.conditions import Condition

        named = [Condition.parse(text) for text in self.with_ or () if text != _ALL]
        for condition in named:
            condition.check_given()
        return self._controlled(named)

    def on(self, loaded: Loaded) -> tuple[list[Condition], dict[str, str]]:
        """The conditions on a model, and which methods ``all`` leaves out, with the reason."""
        from regaze.evals.asking.every import every_method
        from regaze.evals.runs.conditions import Condition

        if not self.all:
            return self.conditions, {}
        found = every_method(loaded)
        every = [Condition((spec,)) for spec in found.specs]
        # One that is named too comes once, in its place among those named.
        return self._controlled([*dict.fromkeys([*self.conditions, *every])]), dict(found.left_out)

    def _controlled(self, conditions: list[Condition]) -> list[Condition]:
        from regaze.evals.runs.controls import with_controls

        return with_controls(conditions) if self.controls else conditions


@dataclass(frozen=True)
class Printed:
    """Settings of how scores are printed."""

    PANEL: ClassVar[str] = "Output"

    as_json: Json = False
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table instead.")
    ] = False

    def __post_init__(self) -> None:
        if self.as_json and self.as_markdown:
            raise ValueError("give --json or --markdown, not both")

    @property
    def plain(self) -> bool:
        """True if the output is for people to read."""
        return not (self.as_json or self.as_markdown)

    def show(self, scores: Sequence[TaskScores], **more: Any) -> None:
        """Print scores.

        Args:
            scores: A table each.
            more: Further keys of the JSON.
        """
        from regaze.evals.reports import tables
        from regaze.evals.reports.markdown import markdown
        from regaze.evals.scoring.scored import as_json

        if self.as_json:
            typer.echo(json.dumps({**as_json(scores), **more}, ensure_ascii=False))
        elif self.as_markdown:
            typer.echo(markdown(scores), nl=False)
        else:
            out.print(*map(tables.render, scores))


def exit_if_silent(scores: Sequence[TaskScores], named: Sequence[str] | None = None) -> None:
    """End with code 1 if a method never fired.

    Args:
        scores: The scores of all tasks.
        named: The conditions that count; default: all.
    """
    silent = sorted({label for one in scores for label in one.silent})
    silent = [label for label in silent if named is None or label in named]
    if silent:
        fail(f"never fired, so not reported: {', '.join(silent)}", 1)


def batch_size(text: str) -> int | Literal["auto"]:
    """The batch size that ``--batch-size`` asks for.

    Raises:
        ValueError: It is neither a number of items nor ``auto``.
    """
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ValueError(f"--batch-size must be a number of items or auto, got {text!r}")
    return int(text)


def check_model(name: str) -> None:
    """Check that a model's name is no slip, before it is blamed for lacking data.

    Raises:
        ValueError: It is empty, or neither a folder nor a Hub id; the message names the nearest.
    """
    check_text("--model", name)
    if "/" in name or Path(name).is_dir() or name in smol.MODELS:
        return
    if Path(name).exists():
        raise ValueError(f"--model {name} is a file: name the folder that it is in")
    if name in PIPELINES:
        raise ValueError(f"--model {name} paints: `regaze eval images` scores pictures")
    raise ValueError("--model: " + unknown("model", name, [*sandbox.MODELS, *smol.MODELS]))


def check_text(option: str, text: str | None) -> None:
    """Check that a text was given, where one was.

    Raises:
        ValueError: It is empty, or nothing but white space.
    """
    if text is not None and not text.strip():
        raise ValueError(f"{option} is empty: give a text, or leave the option out")


def absolute(path: str) -> str:
    """A path as it is found from elsewhere too, if it exists; Hub ids stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path
