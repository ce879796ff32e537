"""Methods to choose from, and the parts of the page for the fields of one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from regaze.evals.play.controls import Control, controls
from regaze.evals.play.models import methods
from regaze.interventions.base import Intervention, describe, get, presets

NOTHING = "none"
_UNSAID = "(the method's choice)"


def choices(paints: bool) -> list[tuple[str, str]]:
    """The methods for a kind of model and their published settings: what is shown, and the value.

    Args:
        paints: True for pipelines, False for vision-language models.
    """
    found = [NOTHING]
    for name in methods(paints):
        found += [name, *(f"{name}@{preset}" for preset in presets(name))]
    return [(shown_as(choice), choice) for choice in found]


def shown_as(choice: str) -> str:
    """A choice as the list shows it."""
    plain = choice == NOTHING or "@" in choice
    return choice if plain else f"{choice}: {describe(choice)[0]}"


def named(choice: str) -> Intervention | None:
    """The method of a choice, with its defaults or a preset's settings; None for none.

    Raises:
        ValueError: No such method.
    """
    name, _, preset = choice.partition("@")
    if name == NOTHING:
        return None
    cls = get(name)
    return cls.preset(preset) if preset else cls()


def draw(spec: Intervention, key: str) -> list[Any]:
    """Draw a part for each field, holding a spec's values.

    Args:
        spec: The method.
        key: Tells these parts from others: those drawn again under it keep what they hold.
    """
    cls = type(spec)
    with gr.Accordion(f"{cls.name} ({cls.paper})" if cls.paper else cls.name, open=True):
        return [
            _part(one, one.shown(getattr(spec, one.field)), f"{key}-{one.field}")
            for one in controls(cls)
        ]


def _part(control: Control, value: Any, key: str) -> Any:
    shared: dict[str, Any] = {
        "label": control.field,
        "info": f"{control.info} {_domain(control)}".strip() or None,
        "key": key,
        "interactive": True,
        "elem_id": f"field-{key.partition('-')[0]}-{control.field}",
    }
    if control.kind == "flag":
        return gr.Checkbox(value, **shared)
    if control.kind == "choice":
        offered = [(one or _UNSAID, one) for one in control.choices]
        return gr.Dropdown(offered, value=value, **shared)
    if control.kind == "slider":
        return gr.Slider(control.low or 0, control.high or 0, value, step=control.step, **shared)
    if control.kind == "number":
        whole = {"precision": 0} if control.whole else {"step": 0.1}
        # No limits here: what is out of its domain is said by the method, in its own words.
        return gr.Number(value, **whole, **shared)
    hint = _UNSAID if control.default is None else str(control.default)
    return gr.Textbox(value, placeholder=hint, lines=1, **shared)


def _domain(control: Control) -> str:
    """The numbers that a field takes, in words."""
    low, high = control.low, control.high
    if control.kind != "number" or low is high is None:
        return ""
    if low is None or high is None:
        return f"(At most {high:g}.)" if low is None else f"(At least {low:g}.)"
    return f"({low:g} to {high:g}.)"
