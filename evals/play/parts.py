"""The parts of the page: those that make a request, and those that show a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from regaze.evals.play import cards, recipes
from regaze.evals.play.fields import NOTHING, choices
from regaze.evals.play.models import Shelf
from regaze.evals.play.samples import sample


@dataclass(frozen=True)
class Asked:
    """The parts of the page that make a request."""

    model: Any
    picture: Any
    prompt: Any
    first: Any
    second: Any
    words: Any
    painting: Any
    tokens: Any
    seed: Any
    steps: Any
    guidance: Any
    negative: Any

    @property
    def fixed(self) -> list[Any]:
        """The inputs that a run reads, but for the methods and their fields."""
        settings = [self.tokens, self.seed, self.steps, self.guidance, self.negative]
        return [self.model, self.picture, self.prompt, *settings]


@dataclass(frozen=True)
class Shown:
    """The parts of the page that show a result."""

    status: Any
    answers: Any
    viewer: Any
    report: Any
    elsewhere: Any
    script: Any
    command: Any
    picture: Any

    @property
    def all(self) -> list[Any]:
        """Every one of them."""
        return [*vars(self).values()]


def draw_asked(shelf: Shelf, chosen: str) -> tuple[Asked, Any]:
    """Draw what makes a request, and a button for another example.

    Args:
        shelf: The models that are offered.
        chosen: Name of the one that is chosen at first.
    """
    paints = shelf.paints(chosen)
    first = sample(paints, 0)
    model = gr.Dropdown(
        list(shelf.offered),
        value=chosen,
        label="Model",
        info="Built in" + (", a folder or a Hub id" if shelf.any_model else ""),
        allow_custom_value=shelf.any_model,
        elem_id="model",
    )
    picture = gr.Image(
        value=first.picture,
        visible=not paints,
        type="pil",
        format="png",  # Lossless: what is drawn here is what the model is shown.
        label="Picture",
        height=220,
        sources=["upload", "clipboard"],
        elem_id="picture",
    )
    prompt = gr.Textbox(first.prompt, label="Question or prompt", lines=2, elem_id="prompt")
    another = gr.Button("Another example", size="sm", elem_id="another")
    methods = [
        gr.Dropdown(choices(paints), value=NOTHING, label=label, elem_id=elem_id)
        for label, elem_id in (("Method", "first"), ("And a second one", "second"))
    ]
    with gr.Accordion("Settings", open=False):
        with gr.Group(visible=not paints) as words:
            tokens = gr.Number(64, label="Longest answer, in tokens", precision=0)
        with gr.Group(visible=paints) as painting:
            seed = gr.Number(0, label="Number of the picture", precision=0)
            steps = gr.Number(None, label="Denoising steps", precision=0)
            guidance = gr.Number(None, label="Guidance scale")
            negative = gr.Textbox("", label="Negative prompt")
    found = Asked(
        model,
        picture,
        prompt,
        methods[0],
        methods[1],
        words,
        painting,
        tokens,
        seed,
        steps,
        guidance,
        negative,
    )
    return found, another


def draw_shown() -> Shown:
    """Draw what shows a result."""
    status = gr.HTML(cards.status("Ready."), elem_id="status")
    answers = gr.HTML(elem_id="answers")
    viewer = gr.HTML(elem_id="viewer")
    report = gr.HTML(elem_id="report")
    with gr.Accordion("The same elsewhere", open=True, visible=False) as elsewhere:
        script = gr.Code(language="python", label="As Python", elem_id="python", interactive=False)
        command = gr.Code(
            language="shell",
            label="As a command",
            elem_id="command",
            interactive=False,
            wrap_lines=True,
            lines=2,
        )
        picture = gr.DownloadButton(
            f"Save the picture as {recipes.PICTURE}, which both read", elem_id="save", size="sm"
        )
    return Shown(status, answers, viewer, report, elsewhere, script, command, picture)
