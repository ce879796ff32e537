"""Proof at real sizes: 30 layers, nine heads for three pairs, long prompts, other weights.

All of it needs `smol`, which `regaze sandbox fetch smol` assembles; none depends on what it learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded, load
from regaze.evals.asking.prompts import Prompter, Question
from regaze.evals.sandbox.scenes import scene
from regaze.evals.verify import choices, language
from regaze.evals.verify.language import Language
from regaze.interventions import GIFT, PAI, VAF, VAR, VHR, DoLa, Intervention

# Its literal form runs the model twice a layer.
SHORT = VHR(layers=(1, 17, 29))
STACKS: dict[str, tuple[Intervention, ...]] = {
    "pai+vaf": (PAI(), VAF()),
    # Two of the text sink's dimensions, with a threshold that leaves other tokens alone.
    "var": (VAR(sink_dims=(507, 302), tau=0.64, floor=0.0),),
    "vhr": (SHORT,),
    "gift": (GIFT(),),
    "dola": (DoLa(),),
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode two tokens: a first one, and one that attends to it."""
    monkeypatch.setattr(language, "_STEPS", 2)


@pytest.fixture(scope="module")
def smol() -> Loaded:
    try:
        return load("smol")
    except ValueError as error:
        pytest.skip(str(error))


class Asked(Language):
    """The model under prompts of the test's own.

    Args:
        model: The model.
        processor: The model's processor.
        questions: A text each, with its number of pictures.
    """

    def __init__(self, model: Any, processor: Any, questions: Sequence[tuple[str, int]]) -> None:
        self.questions = questions
        super().__init__(model, processor)

    def _asked(self) -> list[dict[str, Any]]:
        prompter = Prompter(self.processor)
        pictures = [scene("test", number).image for number in range(4)]
        texts = [prompter.text(text, images=count) for text, count in self.questions]
        shown = [pictures[:count] for _, count in self.questions]
        rows = [[0], [len(texts) - 1], [*range(len(texts))]]
        made = [prompter.inputs([texts[i] for i in r], [shown[i] for i in r]) for r in rows]
        dtype = next(self.model.parameters()).dtype
        return [
            {k: x.to(dtype) if x.is_floating_point() else x for k, x in one.items()} for one in made
        ]


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference of two outputs in standard deviations; what is cut must be cut in both."""
    found = 0.0
    for part, want in other.items():
        cut = want == -torch.inf
        assert torch.equal(one[part] == -torch.inf, cut), part
        gap = (one[part] - want)[~cut].abs().max() / want[~cut].std()
        found = max(found, float(gap))
    return found


def check(subject: Language, specs: Sequence[Intervention]) -> None:
    """Hold attached methods against their literal forms, and what is detached against the model."""
    plain = subject.run(0)[0]
    with subject.attach(specs) as attached:
        got = subject.run(0)[0]
    assert attached.report().fired, attached.report()
    with subject.literally([form for spec in attached.specs for form in _forms(spec)]):
        want = subject.run(0)[0]
    assert apart(got, want) <= subject.tolerance
    moved = {part: got[part] - plain[part] for part in got}
    assert any(float(x[x.isfinite()].abs().max()) > 0 for x in moved.values())
    again = subject.run(0)[0]
    assert all(torch.equal(again[part], plain[part]) for part in plain)


def _forms(spec: Any) -> Sequence[Any]:
    form = spec.literal()
    return form if isinstance(form, tuple) else (form,)


@pytest.mark.parametrize("name", STACKS)
def test_a_method_is_its_literal_form_at_thirty_layers(smol: Loaded, name: str) -> None:
    check(Language(smol.model, smol.processor), STACKS[name])


def test_vhr_is_its_literal_form_in_bfloat16_given_the_same_heads(smol: Loaded) -> None:
    model: Any = copy.deepcopy(smol.model).bfloat16()  # type: ignore[no-untyped-call]
    subject = Language(model, smol.processor)
    with subject.attach([SHORT]) as run:
        spec: Any = run.specs[0]
    got = choices.attached(subject, spec, 0)
    want = choices.literally(subject, spec, got.factors)
    # The heads are doubled, and so is the rounding of their outputs.
    assert apart(got.outputs[0], want.outputs[0]) <= 2 * subject.tolerance


def test_four_pictures_and_a_long_question(smol: Loaded) -> None:
    text = "One of these shapes is larger than it looks. " * 7 + "Which one?"
    subject = Asked(smol.model, smol.processor, [(text, 4)])
    assert subject.run(0)[0]["prefill"].shape[0] > 250
    check(subject, (PAI(),))


def test_rows_of_a_left_padded_batch_of_sixteen_are_what_they_are_alone(smol: Loaded) -> None:
    asked = [("Is there a circle" + " or a square" * (number % 4) + "?", 1) for number in range(16)]
    subject = Asked(smol.model, smol.processor, asked)
    with subject.attach((PAI(), SHORT)):
        batch = subject.run("both")
        first, last = subject.run(0)[0], subject.run(1)[0]
    assert apart(batch[0], first) <= subject.tolerance
    assert apart(batch[15], last) <= subject.tolerance


def test_a_lora_on_top_is_part_of_the_model(smol: Loaded) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft torchao)")
    model = copy.deepcopy(smol.model)
    settings = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q_proj|v_proj|o_proj)", init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, settings).eval()
    base = Language(smol.model, smol.processor).run(0)[0]
    subject = Language(wrapped.base_model.model, smol.processor)
    assert apart(subject.run(0)[0], base) > subject.tolerance
    check(subject, (PAI(), SHORT))


def test_weights_of_eight_bits_are_edited_like_others(smol: Loaded) -> None:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="torchao is not installed (pip install peft torchao)"
    )
    model: Any = copy.deepcopy(smol.model)
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    subject = Language(model, smol.processor)
    base = Language(smol.model, smol.processor).run(0)[0]
    assert apart(subject.run(0)[0], base) > subject.tolerance
    check(subject, (PAI(), SHORT))


def test_questions_about_a_picture_share_its_prefix(smol: Loaded) -> None:
    picture = scene("test", 0).image
    asked = [Question(f"Is there a {word} in the image?", picture, "0") for word in ("cow", "dog")]
    assert Answerer(smol.model, smol.processor, 2).why_apart(asked) is None
