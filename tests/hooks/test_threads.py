"""One attached model, several threads: each gets what it would get alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from flash import use_flash
from matrix import EDITS, MAIN
from threads import together
from tiny import Tiny, tiny

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.interventions import PAI, VAR
from regaze.interventions.lvlm.sinks import discover_sinks

ROWS: list[Row] = [(SHORT, [0]), (LONG, [1]), (SHORT, [])]


@pytest.fixture(params=[1e-6, 5e-3], ids=["often", "seldom"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interval at which Python changes threads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


def sayers(model: Tiny, rows: Sequence[Row], **options: Any) -> list[Callable[[], list[int]]]:
    def sayer(inputs: dict[str, Any]) -> Callable[[], list[int]]:
        def say() -> list[int]:
            made = model.model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
            found: list[int] = made[0].tolist()
            return found

        return say

    return [sayer(ask(model, row)) for row in rows]


@pytest.mark.parametrize("switching", [1e-6], ids=["often"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", MAIN)
def test_threads_get_what_they_would_get_alone(
    name: str, options: dict[str, Any], switching: None
) -> None:
    model = tiny("llava", fresh=True)
    jobs = sayers(model, ROWS, **options)
    with attach(model.model, EDITS[name].acts) as run:
        want = [job() for job in jobs]
        alone = run.report().interventions[0]
    with attach(model.model, EDITS[name].acts) as run:
        for _ in range(2):
            assert together(*jobs) == want
        report = run.report().interventions[0]
    assert report.prompts == 2 * alone.prompts
    assert [x.calls for x in report.layers] == [2 * x.calls for x in alone.layers]
    assert [x.effect for x in report.layers] == pytest.approx([x.effect for x in alone.layers])


@pytest.mark.usefixtures("switching")
def test_all_methods_together_in_threads() -> None:
    model = tiny("qwen2_vl", fresh=True)
    jobs = sayers(model, ROWS)
    with attach(model.model, *(EDITS[name].acts for name in MAIN)):
        want = [job() for job in jobs]
        for _ in range(3):
            assert together(*jobs) == want


@pytest.mark.usefixtures("switching")
def test_threads_with_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llava", fresh=True)
    use_flash(model.model, monkeypatch)
    jobs = sayers(model, ROWS)
    with attach(model.model, EDITS["vhr"].acts, EDITS["var"].acts):
        want = [job() for job in jobs]
        for _ in range(3):
            assert together(*jobs) == want


@torch.no_grad()
def test_a_partial_prompt_is_that_of_its_own_thread() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    inside, done = threading.Event(), threading.Event()

    with attach(model.model, EDITS["pai"].acts) as run:
        want = model.model(**inputs).logits

        def hold() -> None:
            with run.partial_prompt():
                inside.set()
                done.wait()

        def look() -> Any:
            inside.wait()
            try:
                return model.model(**inputs).logits
            finally:
                done.set()

        got = together(hold, look)[1]
    assert torch.equal(got, want)


@pytest.mark.usefixtures("switching")
def test_looking_for_sinks_pauses_no_other_thread() -> None:
    model = tiny("llava", fresh=True)
    (say,) = sayers(model, ROWS[:1])
    with attach(model.model, PAI(0.5, layers=(0, 1, 2))):
        want = say()
        got = together(
            say, *(lambda tau=tau: discover_sinks(model.model, tau=tau) for tau in (0.2, 0.25, 0.3))
        )
    assert got[0] == want
    assert [one for one in got if isinstance(one, Exception)] == []


@torch.no_grad()
def test_a_pass_that_begins_while_another_thread_detaches_is_a_plain_one() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    want = model.model(**inputs).logits
    run = attach(model.model, PAI(0.5, layers=(0, 1, 2)))
    tower: Any = find_host(model.model).tower
    # torch has listed the hooks by now, and calls those that are gone without keyword arguments.
    tower.register_forward_pre_hook(lambda *_: run.detach(), prepend=True)
    assert torch.equal(model.model(**inputs).logits, want)


@torch.no_grad()
def test_a_look_for_sinks_that_ends_within_a_pass_leaves_that_pass_alone() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    want = model.model(**inputs).logits
    tower: Any = find_host(model.model).tower
    looker = threading.Thread(target=discover_sinks, args=(model.model,), kwargs={"tau": 0.21})
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        if threading.current_thread() is looker:
            inside.set()
            go_on.wait()

    def let_it_end(*_: Any) -> None:
        if threading.current_thread() is not looker:
            go_on.set()
            looker.join()

    tower.get_input_embeddings().register_forward_pre_hook(hold)
    tower.layers[2].register_forward_pre_hook(let_it_end, prepend=True)
    looker.start()
    inside.wait()
    assert torch.equal(model.model(**inputs).logits, want)


def test_pausing_restores_what_was() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS["pai"].acts), torch.no_grad():
        want = model.model(**inputs).logits
        with attach(model.model, VAR(tau=0.2)):
            pass
        assert torch.equal(model.model(**inputs).logits, want)
