"""Many requests at once, some of them faulty: each gets its own answer, and nothing stays."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from chat_server import NAME, QUESTION, data_url, expected, joined, pictures, post, serving, shows

from regaze.evals.asking.models import Loaded
from regaze.evals.runs.conditions import Condition
from regaze.hooks import attach
from regaze.interventions.lvlm.turns import Turns
from regaze.serving import engine as engines
from regaze.serving.engine import Engine
from regaze.serving.errors import ApiError
from regaze.serving.jobs import Answer, Event, Job
from regaze.serving.prompts import Prompts
from regaze.serving.settings import Limits

SPECS = ("none", "vhr:alpha=3", "vaf")
SCENES = pictures(5)
URLS = [data_url(scene) for scene in SCENES]
TEXT = shows(text="is there a red circle?")


def test_fifty_at_once_with_faults_among_them(server: tuple[Engine, int], loaded: Loaded) -> None:
    openai = pytest.importorskip("openai", reason="the client of OpenAI isn't installed")
    port = server[1]
    truth = {(s, n): expected(loaded, SCENES[n], s) for s in SPECS for n in range(len(SCENES))}
    assert len(set(truth.values())) > len(SCENES)
    inputs = Turns(loaded.processor).model_inputs(loaded.model, QUESTION, SCENES[:1])
    with torch.inference_mode():
        before = loaded.model(**inputs).logits
    batches = []

    async def ask(client: Any, number: int) -> None:
        specs, scene = SPECS[number % 3], number // 3 % len(SCENES)
        create = client.chat.completions.create
        more = {"regaze": specs}
        if number % 2:
            stream = await create(
                model=NAME, messages=shows(URLS[scene]), extra_body=more, stream=True
            )
            chunks = [chunk async for chunk in stream]
            text, told = joined(chunks), chunks[-1].regaze
        else:
            answer = await create(model=NAME, messages=shows(URLS[scene]), extra_body=more)
            text, told = answer.choices[0].message.content, answer.regaze
        assert text == truth[specs, scene], (specs, scene)
        batches.append(told["batch"])

    async def hang_up(client: Any) -> None:
        body = json.dumps({"model": NAME, "messages": shows(URLS[0]), "stream": True}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async def fail(client: Any, kind: int) -> None:
        create, post = client.chat.completions.create, client.post
        with pytest.raises(openai.BadRequestError):
            if kind == 0:
                await create(model=NAME, messages=TEXT, extra_body={"regaze": "vrh"})
            elif kind == 1:
                await create(model=NAME, messages=shows(URLS[0][:-40]))
            elif kind == 2:
                await create(model=NAME, messages=shows(*URLS[:4]))  # Longer than the model reads.
            else:
                await post("/chat/completions", content=b"{", cast_to=object)

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        ) as client:
            work: list[Any] = [ask(client, number) for number in range(34)]
            work += [fail(client, number % 4) for number in range(8)]
            work += [hang_up(client) for _ in range(8)]
            random.Random(0).shuffle(work)
            await asyncio.gather(*work)

    asyncio.run(all_of_them())
    assert len(batches) == 34 and max(batches) > 1
    assert post(port, b"", method="GET", path="/health") == (200, {"status": "ok"})
    with torch.inference_mode():
        assert torch.equal(loaded.model(**inputs).logits, before)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, int, list[int]]]:
    """A server whose answers go on to 180 tokens, slowly; and how many rows each step had."""
    steps: list[int] = []
    stock = engines._Rows.__call__

    def slow(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        done = stock(self, *args, **options)
        steps.append(int((~done).sum()))
        threading.Event().wait(0.01)
        return done

    monkeypatch.setattr(engines._Rows, "__call__", slow)
    with serving(limits=Limits(waiting=2, new_tokens=180)) as (engine, port):
        engine.prompts.ends = frozenset()
        monkeypatch.setattr(engine.loaded.model.generation_config, "eos_token_id", None)
        yield engine, port, steps


def begin(port: int, **fields: Any) -> http.client.HTTPConnection:
    """Send a request, and don't wait for its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": NAME, "messages": TEXT, **fields})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_stops_when_its_client_is_gone(
    endless: tuple[Engine, int, list[int]], stream: bool
) -> None:
    _, port, steps = endless
    connection = begin(port, stream=stream)
    if stream:
        assert connection.getresponse().read1(10)
    while len(steps) < 3:
        threading.Event().wait(0.01)
    connection.sock.shutdown(2)
    connection.close()
    # Answered when the other is over, which takes no 180 steps.
    status, answer = post(
        port, {"model": NAME, "messages": TEXT, "max_tokens": 4, "temperature": 1}
    )
    assert status == 200 and answer["usage"]["completion_tokens"] == 4
    assert steps.index(0) < 100


def test_those_who_wait_are_few_and_one_who_leaves_makes_room(
    endless: tuple[Engine, int, list[int]],
) -> None:
    engine, port, steps = endless
    first = begin(port)
    while not steps:
        threading.Event().wait(0.01)
    others = [begin(port) for _ in range(2)]
    while len(engine._waiting._jobs) < 2:
        threading.Event().wait(0.01)
    status, answer = post(port, {"model": NAME, "messages": TEXT})
    assert status == 429 and "2 requests wait already" in answer["error"]["message"]
    others[0].close()
    while not all(job.gone.is_set() for job in [*engine._waiting._jobs][:1]):
        threading.Event().wait(0.01)
    for connection in (first, others[1]):
        connection.close()
    body = {"model": NAME, "messages": TEXT, "max_tokens": 1}
    assert post(port, body)[0] == 200


def jobs_of(*texts: str, **fields: Any) -> list[Job]:
    """Jobs of one kind; only inside an event loop."""
    from regaze.serving.asked import read

    return [
        Job(read({"model": NAME, "messages": shows(text=text)}).messages, [], Condition(), **fields)
        for text in texts
    ]


def run(engine: Engine, *texts: str, **fields: Any) -> list[Event]:
    """The results of jobs that wait together."""

    async def ask() -> list[Event]:
        jobs = jobs_of(*texts, **fields)
        for job in jobs:
            engine.submit(job)
        engine.start()
        found = [await job.events.get() for job in jobs]
        await asyncio.to_thread(engine.stop)
        return found

    return asyncio.run(ask())


def batches_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """The batches that an engine goes on to make."""
    made: list[Sequence[Any]] = []
    stock = Prompts.inputs

    def inputs(self: Prompts, prompts: Any) -> Any:
        made.append([one.text for one in prompts])
        return stock(self, prompts)

    monkeypatch.setattr(Prompts, "inputs", inputs)
    return made


def test_jobs_like_each_other_go_together_the_longest_waiting_first(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, Limits(batch=3))
    made = batches_of(engine, monkeypatch)
    texts = [f"is there a {word} circle?" for word in ("red", "blue", "green", "white", "yellow")]

    async def ask() -> list[Event]:
        jobs = jobs_of(*texts)
        (odd,) = jobs_of("is there a star?", new_tokens=1)
        odd.condition = Condition.parse("vaf")
        for job in (jobs[0], odd, *jobs[1:]):
            engine.submit(job)
        engine.start()
        found = [await job.events.get() for job in (*jobs, odd)]
        await asyncio.to_thread(engine.stop)
        return found

    found = asyncio.run(ask())
    assert [len(one) for one in made] == [3, 1, 2]
    answers = [one for one in found if isinstance(one, Answer)]
    assert [one.text for one in answers[:5]] == [expected(loaded, None, text=t) for t in texts]
    assert [one.regaze["batch"] for one in answers] == [3, 3, 3, 2, 2, 1]


@pytest.mark.parametrize("fields", [{"seed": 1}, {"report": True}])
def test_what_is_drawn_or_counted_for_one_goes_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    engine = Engine(loaded, Limits())
    made = batches_of(engine, monkeypatch)
    run(engine, "is there a star?", "is there a ring?", **fields)
    assert [len(one) for one in made] == [1, 1]


def test_one_that_fails_takes_no_other_with_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(loaded, Limits())
    stock = Prompts.inputs

    def inputs(self: Prompts, prompts: Any) -> Any:
        for one in prompts:
            if "star" in one.text:
                raise torch.OutOfMemoryError("out of memory")
            if "moon" in one.text:
                raise RuntimeError("internal: /secret/path")
        return stock(self, prompts)

    monkeypatch.setattr(Prompts, "inputs", inputs)
    texts = [f"is there a {word}?" for word in ("ring", "star", "moon", "heart")]
    ring, star, moon, heart = run(engine, *texts)
    for answer, text in ((ring, texts[0]), (heart, texts[3])):
        assert isinstance(answer, Answer) and answer.text == expected(loaded, None, text=text)
    assert isinstance(star, ApiError) and (star.status, star.code) == (503, "out_of_memory")
    assert isinstance(moon, ApiError) and moon.status == 500 and "secret" not in moon.message


def test_a_batch_that_holds_one_too_long_answers_the_others(loaded: Loaded) -> None:
    engine = Engine(loaded, Limits())
    fine, long = run(engine, "is there a star?", "yes " * 300)
    assert isinstance(fine, Answer)
    assert isinstance(long, ApiError) and long.code == "context_length_exceeded"


def test_a_server_that_goes_down_says_so_and_leaves_the_model_plain(
    endless: tuple[Engine, int, list[int]],
) -> None:
    engine, port, steps = endless
    with attach(engine.loaded.model):
        keys = set(engine.loaded.model.__dict__)
    connections = [begin(port, regaze="vaf", messages=shows(URLS[0])) for _ in range(2)]
    while not steps:
        threading.Event().wait(0.01)
    engine.stop()
    for connection in connections:
        answer = connection.getresponse()
        assert (
            answer.status == 503 and "going down" in json.loads(answer.read())["error"]["message"]
        )
    assert not engine.alive and len(steps) < 100
    assert post(port, b"", method="GET", path="/health") == (503, {"status": "failed"})
    assert set(engine.loaded.model.__dict__) == keys
    assert "regaze" not in str(engine.loaded.model.config.text_config._attn_implementation)
