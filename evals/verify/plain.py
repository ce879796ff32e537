"""The unedited model under test: its outputs, and whether it can be compared with at all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from regaze.evals.verify.subject import Outputs, Subject, Which

_ROUNDS = 2
"""The number of times that each of two threads runs its input."""


class Plain:
    """Outputs of the unedited model, and a check that it gives them twice.

    Args:
        subject: The model, with nothing attached.
    """

    def __init__(self, subject: Subject) -> None:
        self.outputs: dict[Which, list[Outputs]] = {w: subject.run(w) for w in (0, 1)}
        self.spread = {
            part: max(float(self.outputs[0][0][part].std()), 1e-12) for part in subject.parts
        }
        again = subject.run(0)[0]
        self.repeats = all(torch.equal(again[k], v) for k, v in self.outputs[0][0].items())
        self.batch = ""
        if subject.one_batch:
            self.batch = subject.one_batch
        else:
            both = subject.run("both")
            apart = max(self.apart(both[i], self.outputs[i][0]) for i in (0, 1))
            if not apart <= subject.tolerance:
                self.batch = (
                    "the plain model itself gives something else in a padded batch (by "
                    f"{apart:.1e} of its outputs' spread)"
                )
        self.threads = ""
        together = at_once(subject)
        if isinstance(together, BaseException):
            self.threads = f"the plain model itself can't serve two threads: {first_line(together)}"
        elif not all(
            self.apart(one, self.outputs[i][0]) <= subject.tolerance
            for i in (0, 1)
            for one in together[i]
        ):
            self.threads = "the plain model itself mixes two threads up"

    def apart(self, one: Outputs, other: Outputs, part: str | None = None) -> float:
        """Largest difference of two outputs, as a share of their spread in the plain model."""
        parts = [part] if part else list(self.spread)
        found = []
        for name in parts:
            a, b = one[name].double(), other[name].double()
            # Tokens that are ruled out in both are alike.
            off = torch.where(a == b, 0.0, (a - b).abs())
            found.append(float(off.max()) / self.spread[name])
        return max(found) if all(x == x for x in found) else float("nan")


def at_once(subject: Subject) -> Sequence[Sequence[Outputs]] | BaseException:
    """Outputs of two threads at once, each with its own input; or an error that one raised."""
    found: list[list[Outputs]] = [[], []]
    raised: list[BaseException] = []
    start = threading.Barrier(2)
    threads = torch.get_num_threads()

    def work(number: Any) -> None:
        try:
            for _ in range(_ROUNDS):
                start.wait(timeout=600)
                found[number].append(subject.run(number)[0])
        except BaseException as error:
            raised.append(error)
            start.abort()

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in (0, 1)]
    with subject.shared():
        for one in workers:
            one.start()
        for one in workers:
            one.join()
    torch.set_num_threads(threads)
    causes = [error for error in raised if not isinstance(error, threading.BrokenBarrierError)]
    return causes[0] if causes else found


def first_line(error: BaseException) -> str:
    """The message of an error in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
