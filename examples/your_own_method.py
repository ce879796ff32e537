"""Write a method of your own: here, keep the last row from looking at image columns at all.

Run:  python examples/your_own_method.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

import regaze
from regaze.evals.asking.models import load
from regaze.evals.sandbox.scenes import scene
from regaze.hooks import Columns, Edit, Host, Map, MapForm
from regaze.interventions import Intervention, register


@register
@dataclass(frozen=True)
class Blindfold(Intervention):
    """Subtract ``strength`` from the last row's logits on image columns."""

    name: ClassVar[str] = "blindfold"
    summary: ClassVar[str] = "look away from the image"
    paper: ClassVar[str] = "none"

    strength: float = 4.0
    layers: tuple[int, ...] | None = None

    def resolve(self, host: Host) -> Blindfold:
        return replace(self, layers=self.layers or tuple(range(host.n_layers)))

    def idle(self) -> Blindfold:
        return replace(self, strength=0.0)

    def literal(self) -> MapForm:
        """The formula on a whole map "B H Q K" of scaled logits; `regaze.verify` runs it."""

        def edit(z: Tensor, m: Map) -> Tensor:
            return torch.where(m.last & m.image, z - self.strength, z)

        return MapForm(self.layers or (), edit)

    def bind(self, host: Host) -> Edit:
        return BlindfoldEdit(self)


class BlindfoldEdit(Edit):
    rows = "last"

    def __init__(self, spec: Blindfold) -> None:
        super().__init__(spec.layers or () if spec.strength else ())
        self.strength = spec.strength

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image, logits - self.strength, logits)


def main() -> None:
    loaded = load("sandbox")
    model, processor = loaded.model, loaded.processor
    picture = scene("test", 5)
    turn = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True
    )
    inputs = processor(images=[picture.image], text=[text], return_tensors="pt")
    for spec in (None, regaze.parse("blindfold"), regaze.parse("blindfold:strength=8")):
        with regaze.attach(model, *([spec] if spec else [])) as run:
            ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{spec.label if spec else 'none':24} {answer}")
    print("truth".ljust(24), ", ".join(thing.phrase for thing in picture.objects))
    print(run.report())
    print(regaze.verify(model, regaze.parse("blindfold"), processor=processor))


if __name__ == "__main__":
    main()
