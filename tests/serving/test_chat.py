"""The chat endpoint by OpenAI's own client: answers, streams, settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import NAME, QUESTION, data_url, expected, joined, pictures, shows

from regaze.evals.asking.models import Loaded
from regaze.interventions import parse

openai = pytest.importorskip("openai", reason="the client of OpenAI isn't installed")

PICTURE = pictures(1)[0]
ASKED = shows(data_url(PICTURE))


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
    ) as found:
        yield found


def test_the_model_is_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="did you mean sandbox"):
        client.models.retrieve("sandbx")


@pytest.mark.parametrize("specs", ["none", "vhr:alpha=3", "vaf+pai", "vcd"])
def test_an_answer_is_what_generate_gives(client: Any, loaded: Loaded, specs: str) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=ASKED, extra_body={"regaze": specs}
    )
    assert answer.choices[0].message.content == expected(loaded, PICTURE, specs)
    assert answer.choices[0].finish_reason == "stop"
    assert (
        answer.regaze["with"] == "+".join(parse(one).label for one in specs.split("+"))
        if (specs != "none")
        else answer.regaze == {"with": "none", "batch": 1}
    )
    assert specs == "none" or answer.regaze["fired"] is True


def test_interventions_differ_here_so_that_the_test_above_tells_them_apart(loaded: Loaded) -> None:
    answers = {specs: expected(loaded, PICTURE, specs) for specs in ("none", "vhr:alpha=3", "vcd")}
    assert len(set(answers.values())) > 1


def test_a_stream_adds_up_to_the_answer(client: Any, loaded: Loaded) -> None:
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert joined(chunks) == expected(loaded, PICTURE)
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"] and len(reasons) > 5
    whole = client.chat.completions.create(model=NAME, messages=ASKED)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_an_answer_ends_where_it_is_told_to(client: Any, loaded: Loaded) -> None:
    text = expected(loaded, PICTURE)
    create = client.chat.completions.create
    cut = create(model=NAME, messages=ASKED, max_tokens=3).choices[0]
    assert (cut.finish_reason, cut.message.content) == (
        "length",
        expected(loaded, PICTURE, max_new_tokens=3),
    )
    stop = text[6:9]
    before = text[: text.index(stop)]
    stopped = create(model=NAME, messages=ASKED, stop=["never said", stop]).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", before)
    chunks = list(create(model=NAME, messages=ASKED, stop=stop, stream=True))
    assert joined(chunks) == before


def test_a_seed_draws_what_it_draws_from_generate(client: Any, loaded: Loaded) -> None:
    import torch

    def ask(**more: Any) -> str:
        answer = client.chat.completions.create(model=NAME, messages=ASKED, **more)
        return str(answer.choices[0].message.content)

    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = expected(loaded, PICTURE, do_sample=True, temperature=1.5, top_p=0.95, top_k=0)
    before = torch.get_rng_state()
    assert ask(temperature=1.5, top_p=0.95, seed=5) == drawn != expected(loaded, PICTURE)
    assert len({ask(temperature=2.0) for _ in range(6)}) > 1
    assert torch.equal(torch.get_rng_state(), before)
    assert ask(temperature=0, top_p=1, seed=5) == expected(loaded, PICTURE)


def test_a_conversation_and_a_prompt_without_a_picture(client: Any, loaded: Loaded) -> None:
    text = "is there a red circle?"
    create = client.chat.completions.create
    turns = [{"role": "user", "content": text}]
    answer = create(model=NAME, messages=turns, extra_body={"regaze": "vhr"})
    assert answer.choices[0].message.content == expected(loaded, None, text=text)
    assert answer.regaze["fired"] is False
    first = {"role": "assistant", "content": "yes"}
    longer = [*ASKED, first, {"role": "user", "content": QUESTION}]
    assert create(model=NAME, messages=longer).usage.prompt_tokens > (
        create(model=NAME, messages=ASKED).usage.prompt_tokens
    )


def test_a_report_says_what_fired_where(client: Any) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=ASKED, extra_body={"regaze": {"with": "vaf", "report": True}}
    )
    (one,) = answer.regaze["report"]["interventions"]
    assert one["fired"] and one["prompts"] == 1 and one["layers"]
    (spec,) = answer.regaze["specs"]
    assert spec["name"] == "vaf" and None not in spec.values()
