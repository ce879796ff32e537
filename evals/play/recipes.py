"""The same run elsewhere: as a Python script, and as a command."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from regaze import interventions
from regaze.evals.play.controls import written
from regaze.evals.play.running import Request
from regaze.evals.runs.conditions import Condition
from regaze.interventions.base import Intervention

PICTURE = "picture.png"
"""The name under which both read the picture of a question."""


def python(request: Request, paints: bool, load: Sequence[Path] = ()) -> str:
    """A script that prints or saves the edited answer and what the methods did.

    Args:
        request: The request.
        paints: True for pipelines, False for vision-language models.
        load: Python files that registered methods.
    """
    files = [str(path.resolve()) for path in load]
    calls = [_call(spec) for spec in request.specs]
    lines = ["from pathlib import Path", ""] if files else []
    lines += (_painting if paints else _asking)(request, calls)
    if not files:
        return "\n".join(lines) + "\n"
    at = lines.index("import regaze") + 1
    loads = [f"load_file(Path({path!r}))" for path in files]
    last = max(n for n, line in enumerate(lines) if re.match(r"(from|import) ", line)) + 1
    lines[last:last] = ["", *loads]
    lines.insert(at, "from regaze.interventions.plugins import load_file")
    return "\n".join(lines) + "\n"


def command(request: Request, paints: bool, load: Sequence[Path] = ()) -> str:
    """The command line that does the same, for a POSIX shell.

    Raises:
        ValueError: A setting can't be written there.
    """
    words = ["regaze"]
    for path in load:
        words += ["--load", str(path.resolve())]
    words += ["compare" if paints else "ask", "--model", request.model]
    if paints:
        words += ["--prompt", request.prompt, "--seeds", f"{request.seed},"]
        words += _settings(request)
    else:
        words += ["--image", PICTURE] if request.picture is not None else []
        words += ["--max-new-tokens", str(request.max_new_tokens), "--prompt", request.prompt]
    words += ["--with", "none"] if paints else []
    if request.specs:
        words += ["--with", condition(request.specs)]
    return shlex.join(words)


def condition(specs: Sequence[Intervention]) -> str:
    """Methods as ``--with`` reads them.

    Raises:
        ValueError: A setting can't be written there.
    """
    text = "+".join(map(_label, specs))
    try:
        same = Condition.parse(text).specs == tuple(specs)
    except ValueError:
        same = False
    if not same:
        raise ValueError("a setting of this method can't be written in a command; use Python")
    return text


def _label(spec: Intervention) -> str:
    changed = ",".join(f"{name}={written(value)}" for name, value in _changed(spec).items())
    return spec.name + (f":{changed}" if changed else "")


def _changed(spec: Intervention) -> dict[str, Any]:
    return {
        field.name: getattr(spec, field.name)
        for field in fields(spec)
        if getattr(spec, field.name) != field.default
    }


def _call(spec: Intervention) -> str:
    """A method as Python writes it: its class, where `regaze` exports it, else by its name."""
    given = ", ".join(f"{name}={value!r}" for name, value in _changed(spec).items())
    kind = type(spec)
    if getattr(interventions, kind.__name__, None) is kind:
        return f"regaze.{kind.__name__}({given})"
    return f'regaze.get("{spec.name}")({given})'


def _settings(request: Request) -> list[str]:
    """Arguments of a pipeline's call as options."""
    names = {"num_inference_steps": "--steps", "guidance_scale": "--guidance"}
    words = []
    for name, value in request.arguments.items():
        if name in names:
            words += [names[name], str(value)]
        elif name == "negative_prompt":
            words += ["--negative", str(value)]
        else:
            words += ["--set", f"{name}={json.dumps(value)}"]
    return words


def _asking(request: Request, calls: Sequence[str]) -> list[str]:
    pictures = request.picture is not None
    picture = f'Image.open("{PICTURE}").convert("RGB")' if pictures else "None"
    lines = ["from PIL import Image", ""] if pictures else []
    lines += ["import regaze"]
    if any(spec.stage == "question" for spec in request.specs):
        return [
            *lines,
            "from regaze.evals.asking.models import load",
            "from regaze.evals.asking.once import ask",
            "",
            f"loaded = load({request.model!r})",
            f"picture = {picture}",
            f"specs = [{', '.join(calls)}]",
            f"asked = ask(loaded, {request.prompt!r}, picture, specs,"
            f" max_new_tokens={request.max_new_tokens})",
            "print(asked.answer.text)",
            "print(asked.report)",
        ]
    return [
        *lines,
        "from regaze.evals.asking.generation import Answerer",
        "from regaze.evals.asking.models import load",
        "",
        f"loaded = load({request.model!r})",
        f"picture = {picture}",
        f"answerer = Answerer(loaded.model, loaded.processor, {request.max_new_tokens})",
        f"with regaze.attach({', '.join(['loaded.model', *calls])},"
        " processor=loaded.processor) as run:",
        f"    (answer,) = answerer([{request.prompt!r}], [picture])",
        "print(answer.text)",
        "print(run.report())",
    ]


def _painting(request: Request, calls: Sequence[str]) -> list[str]:
    given = "".join(f", {name!r}: {value!r}" for name, value in request.arguments.items())
    return [
        "import regaze",
        "from regaze.evals.pictures.pipelines import load",
        "from regaze.evals.pictures.render import Painter, Shot",
        "",
        f"loaded = load({request.model!r})",
        f"painter = Painter(loaded.pipeline, {{**loaded.arguments{given}}})",
        f"with regaze.attach({', '.join(['loaded.pipeline', *calls])}) as run:",
        f"    (painted,) = painter.paint([Shot({request.prompt!r}, {request.seed})])",
        'painted.image.save("edited.png")',
        "print(run.report())",
    ]
