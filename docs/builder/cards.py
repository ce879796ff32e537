"""A card for each method: ``python -m builder.cards`` (or ``make cards``) writes docs/methods.

All that a card says comes from the method's spec, docs/methods.md, benchmarks/README.md, the page
of supported models and the stored results, so that it can't drift from them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from builder import costs, pages, results, specs
from builder.drawings import drawing
from regaze.interventions import Intervention, get

FOLDER = specs.ROOT / "docs" / "methods"
_SANDBOX = "../../evals/sandbox/models/sandbox/README.md"
_LONG = 45


def card(name: str) -> str:
    """A method's card as Markdown."""
    cls = get(name)
    parts = [*_top(cls), *_formula(cls), *_settings(cls), *_cost(cls), *_measured(cls)]
    return "\n".join([*parts, *_avoid(cls), *_notes(cls), *_literal(cls)]).rstrip() + "\n"


def _top(cls: type[Intervention]) -> Iterator[str]:
    source = specs.source_of(cls).as_posix()
    yield f"# {cls.__name__}"
    yield ""
    yield f"**{_caption(cls)}.**"
    yield ""
    yield f"![{_caption(cls)}]({cls.name}.svg)"
    yield ""
    if said := pages.does(cls):
        yield moved(f"*{said[0][0].upper()}{said[0][1:]}*: {said[1].rstrip('.')}.", "docs")
        yield ""
    yield f"For {cls.acts_on}. Paper: {_paper(cls)}. Code: [{source}](../../{source})."
    yield ""
    yield "```python"
    if cls.stage == "question":
        yield f"spec = regaze.{cls.__name__}()"
        yield "closer = regaze.look_closer(model, processor, image, question, spec)"
    else:
        target = "pipe" if "diffusers" in cls.acts_on else "model"
        yield f"with regaze.attach({target}, regaze.{cls.__name__}({_example(cls)})) as run:"
        yield '    pipe("a red fox")' if target == "pipe" else "    model.generate(**inputs)"
        yield "print(run.report())"
    yield "```"
    yield ""


def _formula(cls: type[Intervention]) -> Iterator[str]:
    yield "## How it works"
    yield ""
    yield specs.explained(cls)
    yield ""


def _settings(cls: type[Intervention]) -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield "| field | default | domain | |"
    yield "|---|---|---|---|"
    for field in specs.fields(cls):
        yield _row(
            f"`{field.name}`", f"`{field.default}`", _domain(field.domain), _roles(field.text)
        )
    yield ""
    if cls.presets:
        yield f"Published settings: `--with {cls.name}@NAME`, or `{cls.__name__}.preset(NAME)`."
        yield ""
        yield "| preset | sets | source |"
        yield "|---|---|---|"
        for name, preset in cls.presets.items():
            sets = json.dumps(dict(preset.fields), default=list)
            yield _row(
                f"`{name}`", f"`{sets if len(sets) < 90 else sets[:80] + ' ...'}`", preset.source
            )
        yield ""
    if controls := (made.controls() if (made := _spec(cls)) else {}):
        yield f"`regaze eval --controls` also runs: {', '.join(controls)}."
        yield ""


def _cost(cls: type[Intervention]) -> Iterator[str]:
    measured = costs.costs(cls)
    lines = [*measured, *(f"On the built-in models, {t}." for t in results.times(cls.name))]
    yield "## Cost"
    yield ""
    yield from [f"- {line}" for line in lines] or ["Not measured by itself yet."]
    yield ""
    if results.language(cls.name) and (made := _spec(cls)) and not made.shares_prefix:
        yield "Much of POPE's time is the picture's: the unedited model reads a picture once for"
        yield "its six questions, and with this method it is read again for each."
        yield ""
    if measured:
        yield f"How and where these were measured: [benchmarks](../../{costs.PAGE})."
        yield ""


def _measured(cls: type[Intervention]) -> Iterator[str]:
    yield "## What it did on our models"
    yield ""
    language, diffusion = results.language(cls.name), results.diffusion(cls.name)
    if language:
        yield f"On the [built-in model]({_SANDBOX}); an interval with * excludes zero:"
        yield ""
        yield from language
        yield "All methods side by side: [results](../results.md)."
        yield ""
    if diffusion:
        yield "Share of right pictures on test prompts, in points; * excludes zero:"
        yield ""
        yield from diffusion
        yield ""
        yield "All of them: [results](../results-diffusion.md)."
        yield ""
    if found := pages.cards(cls):
        links = [f"[{Path(page).parent.name}](../../{page})" for page in found]
        yield f"Also measured in the cards of {', '.join(links)}."
        yield ""
    if pages.beside_pictures(cls):
        yield "Measured beside its pictures: [pictures](../pictures.md)."
        yield ""
    elif not (language or diffusion or found):
        yield "Not measured yet; the built-in models may have nothing for it to act on."
        yield ""


def _avoid(cls: type[Intervention]) -> Iterator[str]:
    lines = [f"Not for {pages.avoid(cls)}"] if pages.avoid(cls) else []
    for reason, models in pages.refusals(cls).items():
        lines.append(f"On {models}: {reason[0].lower()}{reason[1:].rstrip('.')}. It raises there.")
    if lost := results.losses(cls.name):
        lines.append(f"Its defaults lowered scores of the built-in model: {'; '.join(lost)}.")
    yield "## When not to use it"
    yield ""
    yield from [f"- {line}" for line in lines] or [
        "No case is known beyond what it refuses by itself."
    ]
    yield ""


def _notes(cls: type[Intervention]) -> Iterator[str]:
    if note := pages.notes(cls):
        yield "## Where paper and code differ"
        yield ""
        yield moved(note, "docs")
        yield ""


def _literal(cls: type[Intervention]) -> Iterator[str]:
    yield "## Literal form"
    yield ""
    code = specs.literal_source(cls)
    if not code:
        yield "None: it changes what is shown, not how the model attends."
        return
    yield "What `regaze verify` holds the edit against, on explicit attention maps:"
    yield ""
    if code.count("\n") > _LONG:
        source = specs.source_of(cls).as_posix()
        yield f"see `literal` in [{source}](../../{source})."
        return
    yield "```python"
    yield code.rstrip()
    yield "```"


def _spec(cls: type[Intervention]) -> Intervention | None:
    return specs.spec(cls, *results.labels(cls.name))


def _example(cls: type[Intervention]) -> str:
    """Arguments without which the method does nothing, as a call shows them."""
    wanted = {"words": '{"red": 1.4}', "tokens": '["cat", "frog"]', "spans": '["the red bird"]'}
    shown = [
        f"{f.name}={wanted[f.name]}"
        for f in specs.fields(cls)
        if f.name in wanted and f.default == "[]"
    ]
    return ", ".join(shown)


def _caption(cls: type[Intervention]) -> str:
    return cls.summary[0].upper() + cls.summary[1:]


def _paper(cls: type[Intervention]) -> str:
    if found := re.search(r"(\d{4}\.\d{5})", cls.paper):
        return f"[{cls.paper}](https://arxiv.org/abs/{found[1]})"
    return cls.paper


def _row(*cells: str) -> str:
    plain = [re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells]
    # Outside of code, a name in angle brackets would be a tag.
    shown = [re.sub(r"(`[^`]*`)|<(?=\w+>)", lambda m: m[1] or "&lt;", cell) for cell in plain]
    return "| " + " | ".join(shown) + " |"


def _domain(text: str) -> str:
    said = re.sub(r"^a finite number", "any number", text)
    said = re.sub(r"^\[(\S+), inf\]", r"\1 or more", said)
    return re.sub(r"^\[(\S+), (\S+)\]", r"\1 to \2", said)


def _roles(text: str) -> str:
    return text.replace("``", "`")


def moved(text: str, folder: str) -> str:
    """Links of a page in another folder, as a card has to write them."""

    def again(match: re.Match[str]) -> str:
        if re.match(r"[a-z]+:|#", match[1]):
            return match[0]
        path = os.path.relpath(specs.ROOT / folder / match[1], FOLDER)
        return f"]({Path(path).as_posix()})"

    return re.sub(r"\]\(([^)\s]+)\)", again, text)


def main() -> None:
    """Write all cards and drawings."""
    FOLDER.mkdir(exist_ok=True)
    for name in specs.methods():
        (FOLDER / f"{name}.md").write_text(card(name), encoding="utf-8")
        cls = get(name)
        picture = drawing(name, cls.acts_on, _caption(cls))
        (FOLDER / f"{name}.svg").write_text(picture, encoding="utf-8")
    known = set(specs.methods())
    for path in FOLDER.iterdir():
        if path.stem not in known:
            path.unlink()


if __name__ == "__main__":
    main()
