"""The works of one method on the stacks of a model's towers, and their report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regaze.hooks.edits import Edit
from regaze.hooks.report import SCORES, InterventionReport, LayerReport
from regaze.hooks.scores import PLACE
from regaze.hooks.stack import LayerEntry, Stack
from regaze.hooks.tally import Entry


class Placed:
    """The works of one spec, each on its tower's stack.

    Args:
        works: The works and their stacks, in the order in which they act.
    """

    def __init__(self, works: Sequence[tuple[Edit, Stack]]) -> None:
        self._entries: list[tuple[LayerEntry, Stack]] = [(Entry(w), stack) for w, stack in works]

    def put_on(self) -> None:
        """Put the works on their stacks."""
        for entry, stack in self._entries:
            stack.push(entry)

    def take_off(self) -> None:
        """Take the works off; those that aren't on are left alone."""
        for entry, stack in reversed(self._entries):
            stack.pop(entry)

    def report(self, label: str) -> InterventionReport:
        """Report what the works did, as one method."""
        several = len({stack.kind for _, stack in self._entries}) > 1
        layers = [
            replace(one, name=one.name or f"{stack.kind} tower") if several else one
            for entry, stack in self._entries
            for one in layer_reports(entry)
        ]
        entries = [entry for entry, _ in self._entries]
        writing = [e for e in entries if not e.work.reads_only] or entries
        changing = [e for e in writing if not e.work.idle]
        silent = [e for e in changing if not any(x.effect > 0 for x in layer_reports(e))]
        # Prompts are the text tower's.
        counted = [e for e, stack in self._entries if stack.kind == "text"] or entries
        return InterventionReport(
            label,
            max((entry.tally.runs for entry in counted), default=0),
            tuple(layers),
            exempt=not changing,
            note="; ".join(
                dict.fromkeys(
                    note
                    for entry, stack in self._entries
                    for note in (stack.note, entry.work.told())
                    if note
                )
            ),
            silent=tuple(type(e.work).__name__ for e in silent) if len(changing) > 1 else (),
        )


def layer_reports(entry: LayerEntry) -> list[LayerReport]:
    """An edit's counters as numbers; waits for the device."""
    return [
        LayerReport(
            layer,
            calls,
            *entry.tally.measured(layer),
            name=SCORES if layer == PLACE else "",
        )
        for layer, calls in sorted(entry.tally.calls.items())
    ]
