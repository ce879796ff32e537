"""Locks that an interrupt can't leave closed for good."""

from __future__ import annotations

import threading
import time

import pytest

from regaze.hooks.locks import BriefLock


def test_one_thread_at_a_time_and_the_same_again() -> None:
    lock, inside, most = BriefLock(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with lock, lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_an_abandoned_lock_is_replaced(depth: int) -> None:
    lock = BriefLock(patience=0.05)
    for _ in range(depth):
        lock.__enter__()  # Never left.
    entered: list[int] = []

    def work(number: int) -> None:
        with lock:
            entered.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(entered) == [0, 1, 2]
    with lock:  # The one that abandoned it goes on, too.
        pass
