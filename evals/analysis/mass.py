"""Visual mass: how much of a head's attention lies on image columns.

Of the row that predicts the answer (the prompt's last one), and of the rows of the answer's own
tokens, those that end it left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regaze.evals.analysis.asked import Batch, Subject
from regaze.evals.analysis.maps import HeadMap, Means
from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.edits import Edit
from regaze.hooks.passes import Columns, Pass, RowPlan


class VisualMass:
    """Attention on image columns, at the prompt's last row and at the answer's rows."""

    name = "mass"

    def __init__(self, subject: Subject) -> None:
        host = subject.host
        if not (host.has_images and host.image_columns):
            raise ValueError(
                f"{host.model_type} has no image columns, so no head has visual mass there"
            )
        self._subject, self._host = subject, host
        self._last, self._answers = Means(), Means()

    @torch.inference_mode()
    def add(self, batch: Batch) -> None:
        """Answer a batch, and look on."""
        reader = _Masses([site.layer for site in self._host.sites])
        answerer = self._subject.answerer
        with Capturing(seat_of(self._host), reader, reader):
            made = self._subject.model.generate(**batch.inputs, generation_config=answerer.config)
        new = made[:, batch.inputs["input_ids"].shape[1] :]
        counts = answer_lengths(new, answerer.ends)
        for layer in reader.steps[0]:
            steps = torch.stack([step[layer] for step in reader.steps])
            self._last.add(layer, steps[0])
            self._answers.add(layer, answer_rows(steps, counts))

    def maps(self) -> list[HeadMap]:
        """Both maps; of the answer's rows only if there were any."""
        sizes = self._host.n_layers, self._host.n_heads
        about = "share of the row's attention on image columns, mean over prompts"
        found = [
            HeadMap(
                "mass",
                "Visual mass, last prompt row",
                "share",
                self._last.table(*sizes),
                about=f"{about.capitalize()}.",
            )
        ]
        if not self._answers.empty:
            values = self._answers.table(*sizes)
            about = f"At the rows of the answer's tokens: {about} and tokens."
            found.append(
                HeadMap("answer_mass", "Visual mass, answer rows", "share", values, about=about)
            )
        return found


def answer_lengths(new: Tensor, ends: Iterable[int | None]) -> Tensor:
    """Tokens of each answer before the one that ends it: "B" of new tokens "B N".

    A model without a token that ends answers has None among ``ends``.
    """
    known = [one for one in ends if one is not None]
    ended = torch.isin(new.cpu(), torch.tensor(known, dtype=torch.long))
    return (ended.cumsum(1) == 0).sum(1)


def answer_rows(steps: Tensor, counts: Tensor) -> Tensor:
    """The steps that hold answer tokens; NaN elsewhere.

    Args:
        steps: "S B H" of the prompt's last row and of each new token that was fed back.
        counts: "B" answer tokens of each row.

    Returns:
        "S-1 B H".
    """
    fed = torch.arange(steps.shape[0] - 1)[:, None] < counts  # "S-1 B"
    return steps[1:].masked_fill(~fed[..., None], torch.nan)


class _Masses(Edit):
    """Image mass of predicting rows, step by step."""

    rows = "last"
    reads_only = True

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.steps: list[dict[int, Tensor]] = []

    def fork(self) -> _Masses:
        return self

    def select(self, rows: Tensor) -> _Masses:
        return self

    def begin(self, pass_: Pass) -> None:
        self.steps.append({})

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        mass = (logits[:, :, -1].softmax(-1) * columns.image[:, :, 0]).sum(-1)
        self.steps[-1][layer] = mass.double().cpu()
