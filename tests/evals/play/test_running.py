"""Runs: their answers, their maps, what stops them, and several at once."""

from __future__ import annotations

import base64
import html
import json
import threading
from typing import Any

import numpy as np
import pytest
import torch

import regaze
from regaze.evals.asking.generation import Answerer
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.play import following
from regaze.evals.play.following import Ended, Job, News, Stopped, follow, one_line
from regaze.evals.play.models import Shelf, methods
from regaze.evals.play.running import PLAIN, Request, run
from regaze.evals.sandbox.scenes import scene
from regaze.hooks import capture

SHELF = Shelf()
PICTURE = scene("test", 5).image
ASK = Request("sandbox", "Describe the image.", (regaze.PAI(alpha=0.9),), PICTURE, 20)
PAINT = Request(
    "painter-unet", "a red circle", (regaze.PAG(),), arguments={"num_inference_steps": 3}
)


def hooks(module: torch.nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


def held(viewer: str) -> Any:
    data = viewer.split('about="')[1].split('"')[0]
    return json.loads(html.unescape(data))


def test_a_question_is_answered_as_the_model_does() -> None:
    news: list[News] = []
    result = run(SHELF, ASK, Job(news.append))
    loaded: Any = SHELF.open("sandbox").loaded
    answerer = Answerer(loaded.model, loaded.processor, 20)
    (plain,) = answerer([ASK.prompt], [PICTURE])
    with (
        regaze.attach(loaded.model, *ASK.specs, processor=loaded.processor) as attached,
        capture(loaded.model, processor=loaded.processor) as seen,
        answerer.meter.running(),
    ):
        (edited,) = answerer([ASK.prompt], [PICTURE])
    assert [one.text for one in result.answers] == [plain.text, edited.text]
    assert result.answers[1].margin == edited.margin
    assert result.report == attached.report()
    assert news[-1].answers == (plain.text, edited.text)
    assert [one.share for one in news] == sorted(one.share for one in news)

    about = held(result.viewer)
    assert [side["title"] for side in about["sides"]] == [PLAIN, "pai"]
    assert sum(about["heads"]) == 48 and about["layers"][0] == "layer 0"
    side = about["sides"][1]
    assert side["looks"][0] == "whole answer" and side["looks"][1] == edited.text.split()[0]
    levels = np.frombuffer(base64.b64decode(side["levels"]), np.uint8)
    levels = levels.reshape(len(side["looks"]), 48, side["rows"], side["cols"])
    maps = levels * np.array(side["tops"])[..., None, None] / 255
    expected = seen.heat(before=edited.n_prompt_tokens - 1 + edited.n_new_tokens)
    np.testing.assert_allclose(maps[0].mean(0), expected, atol=2e-3)
    np.testing.assert_allclose(np.mean(side["shares"][0]), expected.sum(), rtol=1e-3)


def test_a_painting_is_the_pipelines_and_its_words_have_maps() -> None:
    result = run(SHELF, PAINT, Job())
    loaded: Any = SHELF.open("painter-unet").loaded
    painter = Painter(loaded.pipeline, {**loaded.arguments, **PAINT.arguments})
    (plain,) = painter.paint([Shot("a red circle", 0)])
    with regaze.attach(loaded.pipeline, *PAINT.specs):
        (edited,) = painter.paint([Shot("a red circle", 0)])
    found = [one.picture and one.picture.tobytes() for one in result.answers]
    assert found == [plain.image.tobytes(), edited.image.tobytes()]
    about = held(result.viewer)
    assert about["sides"][0]["looks"] == ["all words", "a", "red", "circle"]
    assert about["heads"] == [2, 4, 4, 4, 4, 2, 2]
    assert (about["sides"][0]["rows"], about["sides"][0]["cols"]) == (16, 16)
    assert result.unseen == ""


def test_a_method_whose_text_is_not_the_prompts_shows_no_maps_and_says_why() -> None:
    request = Request(
        "painter-mmdit", "a red circle", (regaze.NAG(negative="a star"),), arguments=PAINT.arguments
    )
    result = run(SHELF, request, Job())
    assert result.answers[1].picture is not None
    if result.unseen:
        assert result.unseen.startswith("nag: ")
    assert [side["title"] for side in held(result.viewer)["sides"]][0] == PLAIN


@pytest.mark.parametrize("request_", [ASK, PAINT], ids=["question", "painting"])
def test_stopping_ends_within_a_token_or_a_pass_and_leaves_nothing(request_: Request) -> None:
    job: Job
    said: list[News] = []

    def tell(news: News) -> None:
        said.append(news)
        if len(said) == 4:
            job.stop()

    opened: Any = SHELF.open(request_.model)
    model = getattr(opened.loaded, "pipeline", None) or opened.loaded.model
    run(SHELF, request_, Job())  # Libraries put hooks of their own on a model once.
    before = hooks(getattr(model, "unet", model))
    job = Job(tell)
    with pytest.raises(Stopped):
        run(SHELF, request_, job)
    assert len(said) == 4
    assert not opened.lock.locked()
    assert hooks(getattr(model, "unet", model)) == before


def test_stopping_between_passes() -> None:
    job = Job()
    passes = []

    def hook(module: Any, args: Any) -> None:
        passes.append(1)
        job.stop()

    pipeline: Any = SHELF.open("painter-unet").loaded
    handle = pipeline.pipeline.unet.register_forward_pre_hook(hook)
    try:
        with pytest.raises(Stopped):
            run(SHELF, PAINT, job)
    finally:
        handle.remove()
    assert passes == [1]  # It ends before it computes anything.


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("sandbox", "  "), "nothing is asked"),
        (Request("no/such model", "a"), "can't be a Hub id"),
        (Request("sandbox", "a", (regaze.PAG(),), PICTURE), "pag"),
        (Request("sandbox", "a", (regaze.PAI(layers=(77,)),), PICTURE), "layers holds 77"),
        (Request("painter-unet", "a", (regaze.PAI(),)), "pai"),
        (Request("painter-unet", "a", arguments={"num_inference_steps": 0}), "num_inference_steps"),
    ],
)
def test_mistakes_are_one_line(request_: Request, message: str) -> None:
    *_, last = follow(lambda job: run(SHELF, request_, job), lambda job: None)
    assert isinstance(last, Ended) and last.result is None
    assert message in last.error.lower() or message in last.error
    assert "\n" not in last.error and "Traceback" not in last.error


def test_two_users_of_one_model_get_what_each_alone_gets() -> None:
    requests = [
        Request("sandbox", "Describe the image.", (regaze.VHR(alpha=4.0),), PICTURE, 16),
        Request("sandbox", "Is there a red star?", (regaze.PAI(alpha=0.9),), PICTURE, 16),
    ]
    alone = [run(SHELF, one, Job()) for one in requests]
    found: dict[int, Any] = {}
    waited: list[str] = []

    def one(number: int) -> None:
        for item in follow(lambda job: run(SHELF, requests[number], job), lambda job: None):
            if isinstance(item, Ended):
                found[number] = item.result
            else:
                waited.append(item.says)

    lock = SHELF.open("sandbox").lock
    with lock:
        threads = [threading.Thread(target=one, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        while sum(says.startswith("waiting") for says in waited) < 2:
            torch.empty(0)
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == alone


def test_a_job_that_waits_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LOOK_S", 0.01)
    lock = threading.Lock()
    job: Job
    job = Job(lambda news: job.stop())
    with lock, pytest.raises(Stopped):
        job.turn(lock)


def test_who_stops_listening_stops_the_work() -> None:
    ended = threading.Event()

    def work(job: Job) -> None:
        try:
            while True:
                job.tell(News("working"))
        finally:
            ended.set()

    listening = follow(work, lambda job: None)
    assert next(listening) == News("working")
    listening.close()  # type: ignore[attr-defined]
    assert ended.is_set()


def test_errors_of_all_kinds_are_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line(torch.OutOfMemoryError("full")).startswith("out of memory: take")


def test_a_shelf_keeps_two_and_opens_what_it_may() -> None:
    shelf = Shelf(("sandbox",), any_model=False)
    with pytest.raises(ValueError, match="opens only sandbox"):
        shelf.paints("/etc")
    assert shelf.open("sandbox") is shelf.open("sandbox")
    assert not shelf.paints("sandbox") and Shelf().paints("painter-unet")
    assert "pai" in methods(False) and "pai" not in methods(True) and "pag" in methods(True)


def test_a_method_that_changes_nothing_as_given_is_refused_before_a_model_is_opened() -> None:
    news: list[News] = []
    asked = Request("sandbox", "Describe the image.", (regaze.get("headscale")(),), PICTURE)
    with pytest.raises(ValueError, match="headscale changes nothing as it is given: set factor"):
        run(Shelf(), asked, Job(news.append))
    assert not news
