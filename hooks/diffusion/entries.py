"""A work that is attached, with its counters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.tally import Tally
from regaze.hooks.diffusion.works import Work
from regaze.hooks.report import InterventionReport, LayerReport
from regaze.hooks.tally import due


class Entry:
    """A work that is attached, with its counters.

    Attributes:
        work: The work.
        tally: The work's counters.
        doubt: Set once the work is taken off: which facts about its calls nothing confirmed.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tally = Tally()
        self.doubt = ""

    def refuse_doubt(self) -> None:
        """Check that all that it acted in was confirmed.

        Raises:
            ValueError: Which rows of a call were conditional is a guess.
        """
        if self.doubt:
            raise ValueError(self.doubt)

    @property
    def idle(self) -> bool:
        """True if the work is a no-op by its settings."""
        return self.work.idle

    def attend(self, work: Work, call: Call) -> Tensor:
        """Edit a call, count it, and now and then measure the change."""
        before = len(call.factors)
        changed = work.attend(call)
        if not work.counted:
            return changed
        if due(self.tally.count(call.site.name)) and work.measured:
            moved = work.moved(call, changed)
            for factor in call.factors[before:]:
                moved = moved + (factor.float() - 1).abs()[:, None]
            self.tally.add(call.site.name, moved)
        return changed

    def report(self, label: str, doubt: str = "") -> InterventionReport:
        """Report what the work did, under a label, and a doubt of it; waits for the device."""
        note = self.tally.note
        notes = (note if isinstance(note, str) else note(), self.work.told(), doubt)
        return InterventionReport(
            label,
            prompts=0,
            layers=tuple(
                LayerReport(
                    -1 if site.layer is None else site.layer,
                    self.tally.calls[site.name],
                    *self.tally.measured(site.name),
                    site.name,
                    self.work.measured,
                )
                for site in self.work.sites
            ),
            exempt=self.idle,
            steps=self.tally.runs,
            note="; ".join(filter(None, notes)),
        )


def refuse_clashes(entries: Sequence[Entry]) -> None:
    """Check that no attention call is edited twice.

    Raises:
        ValueError: Two main edits act on one layer in the same steps: what the second one would
            make of the first one's output isn't defined.
    """
    edits = [entry.work for entry in entries if entry.work.edits]
    for number, one in enumerate(edits):
        for other in edits[:number]:
            both = {site.name for site in one.sites} & {site.name for site in other.sites}
            if both and _meet(one, other):
                raise ValueError(
                    f"two interventions edit the attention of {min(both)} in the same steps; give "
                    "them other layers or other steps"
                )
    works = [entry.work for entry in entries if not entry.idle]
    for one in works:
        for other in works:
            both = {site.name for site in one.sites} & {site.name for site in other.sites}
            if one.reads_more and one is not other and both and _meet(one, other):
                raise ValueError(
                    f"one intervention gives {min(both)} more text than the prompt's, and another "
                    "acts there on the prompt's own; give them other layers or other steps"
                )


def _meet(one: Work, other: Work) -> bool:
    """True if two works may act in the same step."""
    return one.start < other.stop and other.start < one.stop
