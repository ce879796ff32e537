from __future__ import annotations

import pytest
import torch
from toy import toy_model

from regaze.evals.asking.decoding import Decoding

MODEL, _ = toy_model()


@pytest.mark.parametrize(
    ("text", "decoding"),
    [
        ("greedy", Decoding()),
        ("beams=3", Decoding(beams=3)),
        ("temperature=0.7", Decoding(temperature=0.7)),
        (
            "temperature=0.7, top_p=0.9,top_k=5,seeds=3",
            Decoding(temperature=0.7, top_p=0.9, top_k=5, seeds=(0, 1, 2)),
        ),
    ],
)
def test_decodings_are_read_and_written(text: str, decoding: Decoding) -> None:
    assert Decoding.parse(text) == decoding
    assert Decoding.parse(decoding.label) == decoding


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam=3", "did you mean beams"),
        ("beams=many", "beams needs a number, got 'many'"),
        ("beams=0", "beams must be"),
        ("temperature=0", "temperature must be"),
        ("seeds=3", "several seeds only differ"),
        ("temperature=1,seeds=0", "seeds must be different numbers"),
        ("beams=2,temperature=1", "exclude each other"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding.parse(text)


def test_settings_are_the_models_own_but_for_these() -> None:
    greedy = Decoding().config(MODEL, 7)
    assert (greedy.do_sample, greedy.num_beams, greedy.max_new_tokens) == (False, 1, 7)
    drawn = Decoding(temperature=0.5, top_p=0.9).config(MODEL, 7)
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.top_k) == (True, 0.5, 0.9, 0)
    assert MODEL.generation_config.max_new_tokens != 7


def test_draws_depend_on_seed_and_batch_alone() -> None:
    decoding = Decoding(temperature=1.0, seeds=(0, 1))

    def draw(seed: int, *ids: str) -> list[float]:
        torch.rand(3)
        with decoding.drawing(seed, ids):
            return torch.rand(4).tolist()

    assert draw(0, "a", "b") == draw(0, "a", "b")
    assert draw(0, "a", "b") != draw(1, "a", "b")
    assert draw(0, "a", "b") != draw(0, "a", "c")


def test_drawing_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    with Decoding(temperature=1.0).drawing(0, ["a"]):
        torch.rand(9)
    assert torch.equal(torch.rand(1), want)
