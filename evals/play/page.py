"""The page of the playground, drawn with gradio: what is asked on the left, what came of it beside.

Whatever a run holds belongs to its call; a page keeps nothing between two runs but which one its
visitor may stop. Runs of one model wait for each other: two that attach methods would meet in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from regaze.evals.play import cards, controls, recipes
from regaze.evals.play.fields import NOTHING, choices, draw, named, shown_as
from regaze.evals.play.following import Ended, Job, follow, one_line
from regaze.evals.play.models import Shelf
from regaze.evals.play.parts import Asked, Shown, draw_asked, draw_shown
from regaze.evals.play.running import PLAIN, Request, Result, run
from regaze.evals.play.samples import sample
from regaze.evals.reports.viewer import SCRIPT
from regaze.interventions.base import Intervention

_HERE = Path(__file__).parent
HEAD = f"<script>{SCRIPT}\n{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>"
CSS = (_HERE / "page.css").read_text(encoding="utf-8")
_PRIVATE: Any = {"api_visibility": "private", "show_progress": "hidden"}


def theme() -> Any:
    """The page's looks; its fonts are the reader's own, so that none is fetched."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    looks = gr.themes.Default(primary_hue="orange", font=fonts, font_mono=mono)
    return looks.set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400"
    )


class Page:
    """A playground.

    Args:
        shelf: The models that it offers.
        model: Name of the model that is chosen at first.
        load: Python files that registered methods, for scripts and commands.
    """

    def __init__(self, shelf: Shelf, model: str, load: Sequence[Path] = ()) -> None:
        self._shelf, self._model, self._load = shelf, model, tuple(load)
        self._jobs: dict[str, Job] = {}
        self._files = tempfile.TemporaryDirectory(prefix="regaze-play-")

    def draw(self) -> gr.Blocks:
        """The page, to be served."""
        page: gr.Blocks = gr.Blocks(
            title="regaze play", analytics_enabled=False, delete_cache=(600, 3600)
        )
        with page:
            gr.Markdown("# regaze play\nA model as it is, and with its attention re-aimed.")
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    asked, another = draw_asked(self._shelf, self._model)
                    fields = gr.Column()
                with gr.Column(scale=3, min_width=300):
                    with gr.Row():
                        go = gr.Button("Run", variant="primary", elem_id="run", min_width=90)
                        stop = gr.Button("Stop", elem_id="stop", min_width=90)
                    shown = draw_shown()
            counter = gr.State(0)
            with fields:
                self._fields(asked, shown, go)
            examples = [asked.picture, asked.prompt, counter, shown.status]
            another.click(self._another, [asked.model, counter], examples, **_PRIVATE)
            kinds = [asked.first, asked.second, asked.words, asked.painting, asked.picture]
            asked.model.change(
                self._chosen,
                [asked.model, asked.picture, asked.prompt],
                [*kinds, asked.prompt, shown.status],
                **_PRIVATE,
            )
            stop.click(self._stop, None, None, queue=False, **_PRIVATE)
            page.unload(self._stop)
        return page

    def _fields(self, asked: Asked, shown: Shown, go: Any) -> None:
        def fields(first: str, second: str) -> None:
            kinds, parts = [], []
            for slot, choice in enumerate((first, second)):
                spec = named(choice)
                kinds.append(None if spec is None else type(spec))
                parts += [] if spec is None else draw(spec, f"{slot}-{choice}")

            def begin(request: gr.Request, *given: Any) -> Iterator[dict[Any, Any]]:
                yield from self._run(shown, str(request.session_hash), kinds, given)

            go.click(begin, [*asked.fixed, *parts], shown.all, concurrency_limit=None, **_PRIVATE)
            # For page.js: a run that began before they are drawn would use old fields.
            gr.HTML(cards.drawn(shown_as(first), shown_as(second)), elem_id="drawn", padding=False)

        gr.render(inputs=[asked.first, asked.second], show_progress="hidden")(fields)

    def _run(
        self,
        shown: Shown,
        session: str,
        kinds: Sequence[type[Intervention] | None],
        given: Sequence[Any],
    ) -> Iterator[dict[Any, Any]]:
        """Changes of the page during a run, and at its end."""
        empty = {shown.answers: "", shown.viewer: "", shown.report: ""}
        yield {
            **empty,
            shown.status: cards.status("starting", 0),
            shown.elsewhere: gr.update(visible=False),
        }
        try:
            request = self._request(kinds, given)
        except (TypeError, ValueError) as error:
            yield {shown.status: cards.status(one_line(error), failed=True)}
            return

        def started(job: Job) -> None:
            self._jobs[session] = job

        try:
            for news in follow(lambda job: run(self._shelf, request, job), started):
                if not isinstance(news, Ended):
                    texts = cards.under_way((PLAIN, request.edited), news.answers)
                    yield {
                        shown.status: cards.status(news.says, news.share),
                        **({shown.answers: texts} if texts else {}),
                    }
                elif news.result is None:
                    yield {shown.status: cards.status(news.error, failed=True)}
                else:
                    yield self._result(shown, request, news.result)
        finally:
            self._jobs.pop(session, None)

    def _result(self, shown: Shown, request: Request, result: Result) -> dict[Any, Any]:
        silent = not result.report.fired
        says = "Done, but a method never fired: this is the plain model." if silent else "Done."
        paints = self._shelf.paints(request.model)
        try:
            command = recipes.command(request, paints, self._load)
        except ValueError as error:
            command = f"# {error}"
        return {
            shown.status: cards.status(says, failed=silent),
            shown.answers: cards.answers(result.answers),
            shown.viewer: result.viewer,
            shown.report: cards.below(result),
            shown.elsewhere: gr.update(visible=True),
            shown.script: recipes.python(request, paints, self._load),
            shown.command: command,
            shown.picture: gr.update(
                visible=request.picture is not None, value=self._saved(request.picture)
            ),
        }

    def _request(self, kinds: Sequence[type[Intervention] | None], given: Sequence[Any]) -> Request:
        """The request in the page's parts.

        Raises:
            ValueError: A field is out of its domain, or a number is missing.
        """
        model, picture, prompt, tokens, seed, steps, guidance, negative, *values = given
        specs = []
        for kind in kinds:
            if kind is not None:
                n = len(controls.controls(kind))
                specs.append(controls.read(kind, values[:n]))
                values = values[n:]
        arguments = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "negative_prompt": negative or None,
        }
        paints = self._shelf.paints(str(model or ""))
        shown: Image.Image | None = None if paints or picture is None else picture.convert("RGB")
        return Request(
            str(model),
            str(prompt or ""),
            tuple(specs),
            shown,
            max_new_tokens=_whole("the longest answer", tokens, 1),
            seed=_whole("the number of the picture", seed, 0),
            arguments={k: v for k, v in arguments.items() if v is not None} if paints else {},
        )

    def _saved(self, picture: Image.Image | None) -> str | None:
        """The path of a picture as a file, in a folder of its own."""
        if picture is None:
            return None
        path = Path(tempfile.mkdtemp(dir=self._files.name)) / recipes.PICTURE
        picture.save(path)
        return str(path)

    def _another(self, model: str, number: int) -> tuple[Any, ...]:
        """Another example for the chosen model."""
        try:
            found = sample(self._shelf.paints(model), number + 1)
        except (OSError, ValueError) as error:
            return gr.skip(), gr.skip(), number, cards.status(one_line(error), failed=True)
        return found.picture, found.prompt, number + 1, gr.skip()

    def _chosen(self, model: str, picture: Any, prompt: str) -> tuple[Any, ...]:
        """Choices and an example that fit a model just chosen."""
        try:
            paints = self._shelf.paints(model)
        except (OSError, ValueError) as error:
            return *[gr.skip()] * 6, cards.status(one_line(error), failed=True)
        offered = gr.update(choices=choices(paints), value=NOTHING)
        first = sample(paints, 0)
        changed = paints == (picture is not None)
        return (
            offered,
            offered,
            gr.update(visible=not paints),
            gr.update(visible=paints),
            gr.update(visible=not paints, value=first.picture) if changed else gr.skip(),
            first.prompt if changed else gr.skip(),
            cards.status("Ready."),
        )

    def _stop(self, request: gr.Request) -> None:
        """Stop the run of the visitor's page."""
        if job := self._jobs.get(str(request.session_hash)):
            job.stop()


def _whole(what: str, given: Any, low: int) -> int:
    if given is None or int(given) != given or given < low:
        raise ValueError(f"{what} must be a whole number of at least {low}")
    return int(given)
