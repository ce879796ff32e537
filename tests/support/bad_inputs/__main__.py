"""Try all bad inputs, or a share of them, and count how many got one clear line."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from bad_inputs import calls, files, folders, options, specs
from bad_inputs.case import Case
from bad_inputs.workspace import workspace

SOURCES = (specs, options, files, folders, calls)


def all_cases() -> Iterator[Case]:
    """Every bad input, kind by kind."""
    return chain.from_iterable(source.cases() for source in SOURCES)


class _TooLong(BaseException):
    """Nobody catches it on the way."""


def _stop(number: int, frame: object) -> None:
    raise _TooLong


def main() -> None:
    """Run as a command."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every so many-th")
    parser.add_argument("--first", type=int, default=0, help="begin with this one")
    parser.add_argument("--kind", default="", help="only kinds that hold this text")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a case")
    parser.add_argument("--slow", type=float, default=3.0, help="name what takes longer, seconds")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    tried, failed = Counter[str](), Counter[str]()
    with workspace() as folder:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        for case in islice(all_cases(), given.first, None, given.every):
            if given.kind not in case.kind:
                continue
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, given.limit)
            try:
                wrong = case.act()
            except _TooLong:
                wrong = f"not refused within {given.limit:g} s"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.monotonic() - began
            tried[case.kind] += 1
            if wrong:
                failed[case.kind] += 1
                print(f"{case.kind} | {case.name} | {wrong[:300]}", flush=True)
            if took > given.slow:
                print(f"{case.kind} | {case.name} | took {took:.1f} s", flush=True)
            shutil.rmtree(folder / "runs", ignore_errors=True)
    for kind, count in tried.items():
        print(f"{kind:24} {count:5} tried, {count - failed[kind]:5} got one clear line")
    total = sum(tried.values())
    print(f"{'all':24} {total:5} tried, {total - sum(failed.values()):5} got one clear line")


if __name__ == "__main__":
    main()
