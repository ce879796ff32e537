"""A run's answers, its progress and what fired, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from regaze.evals.play.running import Answer, Result
from regaze.evals.reports.plots import data_uri
from regaze.hooks.report import InterventionReport, LayerReport, Report

_MOST = 40
_TINY = 128


def status(says: str, share: float | None = None, failed: bool = False) -> str:
    """A line about the work under way, over a bar; or about its failure.

    Args:
        says: In one line.
        share: Share of it that is done; None for no bar.
        failed: Show it as an error.
    """
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    kind, role = ("failed", "alert") if failed else ("", "status")
    return f'<div class="rg-status {kind}" role="{role}"><span>{escape(says)}</span>{bar}</div>'


def drawn(first: str, second: str) -> str:
    """A mark, not to be seen, of the methods whose fields are drawn.

    Args:
        first: The choice, as its list shows it.
        second: The second choice, in the same form.
    """
    return f'<i data-first="{escape(first)}" data-second="{escape(second)}"></i>'


def answers(given: Sequence[Answer]) -> str:
    """The answers side by side."""
    return f'<div class="rg-answers">{"".join(map(_answer, given))}</div>' if given else ""


def under_way(titles: Sequence[str], texts: Sequence[str]) -> str:
    """The answers as far as they go."""
    pairs = zip(titles, texts, strict=False)
    return answers([Answer(title, text) for title, text in pairs if text])


def below(result: Result) -> str:
    """The methods' firings, and the reason why there is no attention to see, if any."""
    why = f'<p class="rg-note">No attention maps: {escape(result.unseen)}</p>'
    return (why if result.unseen else "") + firing(result.report)


def firing(report: Report) -> str:
    """A line for each method, and a bar for each layer at which it was called.

    Args:
        report: The report of the methods.
    """
    return "".join(map(_method, report.interventions))


def _answer(one: Answer) -> str:
    picture = ""
    if one.picture is not None:
        tiny = ' class="tiny"' if max(one.picture.size) < _TINY else ""
        picture = f'<img src="{data_uri(one.picture)}" alt="{escape(one.title)}"{tiny}>'
    margin = ""
    if one.margin is not None:
        leans = "yes" if one.margin > 0 else "no"
        margin = (
            f'<p class="rg-margin" title="log of the odds of yes to no at the first token">'
            f"yes over no: {one.margin:+.2f} ({leans})</p>"
        )
    text = "" if one.picture is not None else f"<p>{escape(one.text) or '(empty)'}</p>"
    return f"<section><h3>{escape(one.title)}</h3>{picture}{text}{margin}</section>"


def _method(one: InterventionReport) -> str:
    acted = sum(layer.effect > 0 for layer in one.layers)
    state = "fired" if one.fired else "off by its settings" if one.exempt else "NEVER FIRED"
    where = f" in {acted} of {len(one.layers)} layers" if one.layers else ""
    over = "" if one.steps is None else f" over {one.steps} steps"
    note = f" <small>{escape(one.note)}</small>" if one.note else ""
    kind = "fired" if one.fired or one.exempt else "silent"
    head = (
        f'<p class="rg-firing {kind}"><b>{escape(one.label)}</b>: {state}{where}{over}, '
        f"mean effect {one.effect:.3f}{note}</p>"
    )
    called = [layer for layer in one.layers if layer.calls]
    most = max((layer.effect for layer in called), default=0.0)
    rows = "".join(_layer(layer, most) for layer in called[:_MOST])
    more = f"<p>and {len(called) - _MOST} more layers</p>" if len(called) > _MOST else ""
    return head + (f'<table class="rg-layers">{rows}</table>{more}' if rows else "")


def _layer(layer: LayerReport, most: float) -> str:
    width = 100 * layer.effect / most if most else 0
    name = f"layer {layer.layer}" if layer.layer >= 0 else layer.name
    effect = f"{layer.effect:.4f}" if layer.measured else "not measured"
    return (
        f'<tr><th scope="row" title="{escape(layer.name)}">{escape(name)}</th>'
        f'<td class="bar"><i style="width:{width:.0f}%"></i></td><td>{effect}</td>'
        f"<td>{layer.heads:.0%} of heads</td><td>{layer.calls} calls</td></tr>"
    )
