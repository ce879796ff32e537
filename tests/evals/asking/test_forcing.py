from __future__ import annotations

import pytest
import torch
from asking import LONG, SHORT, ask
from tiny import FAMILIES, tiny

from regaze.evals.asking.forcing import forced
from regaze.hooks.attach import attach
from regaze.interventions import PAI, VHR, Intervention

CANNOT = {"instructblip": "no columns", "mllama": "its image enters by cross-attention"}
CAN = [family for family in FAMILIES if family not in CANNOT]


@pytest.mark.parametrize(
    "specs", [(), (PAI(alpha=1.0), VHR(null_image="mask"))], ids=["none", "pai+vhr"]
)
@pytest.mark.parametrize("family", CAN)
def test_the_greedy_answer_costs_what_it_cost_when_it_was_generated(
    family: str, specs: tuple[Intervention, ...]
) -> None:
    one = tiny(family)
    inputs = ask(one, (SHORT, [0]), (LONG, [1]))
    with attach(one.model, *specs, processor=one.processor):
        made = one.model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        said = made.sequences[:, -4:]
        logs = torch.stack(made.logits, 1).float().log_softmax(-1)
        losses = -logs.gather(-1, said[..., None])[..., 0]
        both = forced(one.model, inputs, [said[0].tolist(), said[1, :2].tolist()])
    assert [greedy for _, greedy in both] == [True, True]
    assert [loss for loss, _ in both] == pytest.approx(
        [losses[0].mean().item(), losses[1, :2].mean().item()], abs=1e-5
    )


def test_other_answers_cost_more_and_are_not_greedy() -> None:
    one = tiny("llava")
    inputs = ask(one, (SHORT, [0]), (SHORT, [0]))
    best = one.model(**inputs).logits[0, -1].argmax().item()
    (cheap, greedy), (dear, other) = forced(one.model, inputs, [[best], [best + 1]])
    assert (greedy, other) == (True, False)
    assert cheap < dear


@torch.no_grad()
def test_an_answer_is_greedy_only_if_each_of_its_tokens_is() -> None:
    one = tiny("llava")
    inputs = ask(one, (SHORT, [0]))
    best = one.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    first, second, third = best[0, -3:].tolist()
    ids = torch.cat([inputs["input_ids"], torch.tensor([[first + 1]])], 1)
    other = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    after = int(one.model(**other).logits[0, -1].argmax())

    def greedy(*answer: int) -> bool:
        return forced(one.model, inputs, [answer])[0][1]

    assert greedy(first) and greedy(first, second) and greedy(first, second, third)
    assert not greedy(first, second, third + 1)
    assert not greedy(first, second + 1)
    # The likeliest token after a wrong one doesn't make up for it.
    assert not greedy(first + 1, after)


def test_an_end_token_within_an_answer_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tiny("llava")
    inputs = ask(one, (SHORT, [0]))
    end = one.processor.tokenizer.eos_token_id
    monkeypatch.setattr(one.model.generation_config, "eos_token_id", end)
    answer = [6, end, 9]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logs = one.model(**whole).logits[0, -4:-1].log_softmax(-1)
    expected = -logs[range(3), answer].mean().item()
    assert forced(one.model, inputs, [answer])[0][0] == pytest.approx(expected, abs=1e-4)


def test_an_empty_answer_is_refused() -> None:
    one = tiny("llava")
    with pytest.raises(ValueError, match="has no tokens"):
        forced(one.model, ask(one, (SHORT, [0])), [[]])
