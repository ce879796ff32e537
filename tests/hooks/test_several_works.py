"""Methods of several works: one reads the picture in the vision tower, one edits the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask
from threads import together
from tiny import tiny
from torch import Tensor
from traces import trace

from regaze.hooks import Branch, Edit, Handover, attach, capture
from regaze.hooks.passes import Columns, GrowingMask, Pass, RowPlan
from regaze.hooks.second_runs import without_images
from regaze.interventions import PAI

LAYER = 1


class Read(Edit):
    """The attention of each picture's class token."""

    tower, rows, reads_only = "vision", "class", True

    def __init__(self, seen: Handover[list[Tensor]]) -> None:
        super().__init__((LAYER,))
        self.seen = seen

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        self.seen.put(list(logits.softmax(-1).mean(1)[:, 0, 1:]))


class Prefer(Edit):
    """Raises the patches that were looked at more than the average one."""

    rows = "last"

    def __init__(self, seen: Handover[list[Tensor]] | list[Tensor], layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.seen = seen

    def fork(self) -> Edit:
        twin = super().fork()
        assert isinstance(twin, Prefer)
        twin.seen = self.seen  # Lists are copied.
        return twin

    def begin(self, pass_: Pass) -> None:
        if pass_.prompt_start and self.layers and bool(pass_.tokens.has_image.any()):
            found = self.seen.take() if isinstance(self.seen, Handover) else self.seen
            mask = torch.zeros(pass_.batch, 1, 1, pass_.tokens.length, dtype=torch.bool)
            number = 0
            for row in range(pass_.batch):
                for image in range(pass_.tokens.n_images(row)):
                    columns = pass_.tokens.image_columns(row, image)
                    seen = found[number]
                    mask[row, 0, 0, columns[seen > seen.mean()]] = True
                    number += 1
            assert number == len(found)
            self.mask = GrowingMask(mask)

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.of(self.mask), logits + 2.0, logits)


@dataclass(frozen=True)
class Method:
    """Both; or a text edit of what was read beforehand."""

    read: tuple[Tensor, ...] = ()
    layers: tuple[int, ...] = (0, 1, 2)
    vision: tuple[Edit, ...] = ()
    label: str = "several"
    acts_on: str = "vision-language models"

    def resolve(self, host: Any) -> Method:
        return self

    def bind(self, host: Any) -> Any:
        if self.read:
            return Prefer(list(self.read), self.layers)
        seen: Handover[list[Tensor]] = Handover()
        return Read(seen), *self.vision, Prefer(seen, self.layers)


@torch.no_grad()
def say(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    made = model.model.generate(**inputs, **settings, **options)
    return torch.stack([*made.logits])


def looked(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    with capture(model.model, "class", layers=[LAYER], tower="vision", heads="mean") as seen:
        model.model(**inputs)
    return tuple(one.weights[0, 0, 1:] for one in seen.captured)


def test_a_text_edit_gets_what_was_read_in_the_picture() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    plain, before = say(model, inputs), trace(model.model)
    with attach(model.model, Method(read=looked(model, inputs))):
        want = say(model, inputs)
    with attach(model.model, Method(), PAI(0.5, layers=(1,))) as run:
        say(model, inputs)
        both = run.report()
    with attach(model.model, Method()) as run:
        found = say(model, inputs)
        again = say(model, inputs)
        report = run.report()
    assert not torch.equal(want, plain)
    assert torch.equal(found, want)
    assert torch.equal(again, want)
    (one,) = report.interventions
    assert report.fired
    assert (one.label, one.prompts) == ("several", 4)
    assert [(x.layer, x.name) for x in one.layers] == [(i, "text tower") for i in (0, 1, 2)]
    assert [x.label for x in both.interventions] == ["several", PAI(0.5, layers=(1,)).label]
    assert both.fired
    assert trace(model.model) == before
    assert torch.equal(say(model, inputs), plain)


def test_threads_get_what_each_gets_alone() -> None:
    model = tiny("llava")
    asked = [ask(model, (SHORT, [0])), ask(model, (LONG, [1])), ask(model, (SHORT, [1]))]
    with attach(model.model, Method()):
        want = [say(model, inputs) for inputs in asked]
        found = together(*(lambda i=i: [say(model, i) for _ in range(4)] for i in asked))
    for outs, one in zip(found, want, strict=True):
        assert not isinstance(outs, Exception), outs
        assert all(torch.equal(out, one) for out in outs)


def test_features_of_another_call_are_refused() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    pixels = inputs["pixel_values"]
    spans = {"image": [(3, 12)]}
    with attach(model.model, Method(), spans=spans), torch.no_grad():
        want = model.model(**inputs).logits
        features = model.model.get_image_features(pixels)
        features = getattr(features, "pooler_output", features)
        ids = inputs["input_ids"]
        embeds = model.model.get_input_embeddings()(ids)
        where = ids == model.model.config.image_token_id
        embeds[where] = torch.cat(list(features)).view(-1, embeds.shape[-1])
        with pytest.raises(RuntimeError, match="didn't run in this call"):
            model.model(inputs_embeds=embeds)
        assert torch.equal(model.model(**inputs).logits, want)


class Idle(Edit):
    tower = "vision"
    rows = "class"

    def __init__(self) -> None:
        super().__init__((0,))

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return logits


def test_a_work_that_never_changed_anything_is_named() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, Method(vision=(Idle(),))) as run:
        say(model, inputs)
        report = run.report()
    assert not report.fired
    assert report.interventions[0].silent == ("Idle",)
    assert "NEVER FIRED (Idle)" in str(report)
    assert "layer   0  calls      1  heads   0.0%  effect 0.0000  vision tower" in str(report)
    with attach(model.model, Method(layers=())) as run:
        say(model, inputs)
        report = run.report()
    assert report.interventions[0].exempt
    assert report.fired


def test_a_second_run_reads_no_picture() -> None:
    class Doubt(Edit):
        branches = (Branch(lambda g, p: without_images(g, p), lambda a, b, _: 1.2 * a - 0.2 * b),)

        def __init__(self) -> None:
            super().__init__(())

    @dataclass(frozen=True)
    class Contrasting(Method):
        def bind(self, host: Any) -> Any:
            bound = super().bind(host)
            return (*bound, Doubt()) if isinstance(bound, tuple) else (bound, Doubt())

    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, Contrasting(read=looked(model, inputs))):
        want = say(model, inputs)
    with attach(model.model, Contrasting()):
        assert torch.equal(say(model, inputs), want)


@pytest.mark.parametrize("bound", [(), None, (Idle(), 3)], ids=["nothing", "None", "a number"])
def test_bind_gives_works(bound: Any) -> None:
    @dataclass(frozen=True)
    class Wrong(Method):
        def bind(self, host: Any) -> Any:
            return bound

    model = tiny("llava", fresh=True)
    before = trace(model.model)
    with pytest.raises(TypeError, match="several: bind must give an Edit or a tuple of Edits"):
        attach(model.model, Wrong())
    assert trace(model.model) == before


def test_a_work_that_cannot_act_takes_the_others_off() -> None:
    model = tiny("llava", fresh=True)
    before = trace(model.model)
    wrong = Idle()
    wrong.rows = "last"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="rows are of a text tower"):
        attach(model.model, Method(vision=(wrong,)))
    assert trace(model.model) == before
