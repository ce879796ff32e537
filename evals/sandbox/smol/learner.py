"""The model in training: frozen parts, a trained projector and low-rank updates of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from regaze.evals.sandbox.smol.features import CELLS
from regaze.evals.sandbox.smol.turns import Pack, Writer

RANK = 8
SCALE = 2.0


class Updated(nn.Module):
    """A frozen linear layer with a low-rank update in float32."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator) -> None:
        """Starts with an update of zero.

        Args:
            linear: Stays as it is.
            generator: The source of randomness of the first factor.
        """
        super().__init__()
        self.linear = linear
        first = torch.randn(RANK, linear.in_features, generator=generator)
        self.a = nn.Parameter(first / math.sqrt(linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """``W x + s B A x``."""
        low = functional.linear(x, self.a.to(x.dtype))
        found: Tensor = self.linear(x) + functional.linear(low, (SCALE * self.b).to(x.dtype))
        return found


@dataclass
class Learner:
    """The model in training: frozen bfloat16 weights, trained float32 ones.

    Attributes:
        projector: Trained.
        language: The language model; its attention's linear layers are `Updated`.
        writer: The writer of turns.
        updates: All of them, by layer and target.
    """

    projector: nn.Module
    language: nn.Module
    writer: Writer
    updates: dict[str, Updated] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.embeddings: Tensor = self.language.get_parameter("embed_tokens.weight")
        self.before = self.embeddings[self.writer.before]

    def hidden(self, features: Tensor, pack: Pack) -> Tensor:
        """Last hidden values at the rows that predict labels: ``(n, width)``."""
        count = len(features)
        image = self.projector(features.float()).to(self.before.dtype)
        before = self.before.expand(count, -1, -1)
        x = torch.cat([before, image, self.embeddings[pack.tokens]], 1)
        # A padded row sees nothing but itself, or its softmax would have nothing to sum.
        visible = pack.visible | torch.eye(x.shape[1], dtype=torch.bool)
        hidden = torch.zeros(visible.shape, dtype=x.dtype)
        mask = hidden.masked_fill(~visible, torch.finfo(x.dtype).min)
        out = self.language(
            inputs_embeds=x, attention_mask=mask, position_ids=pack.positions, use_cache=False
        ).last_hidden_state
        found: Tensor = out[pack.rows[:, 0], pack.rows[:, 1]]
        return found

    def logits(self, features: Tensor, pack: Pack) -> Tensor:
        """Logits of all tokens at the labels: ``(n, vocabulary)``, float32."""
        return functional.linear(self.hidden(features, pack), self.embeddings).float()

    @torch.no_grad()
    def margins(self, features: Tensor, kinds: Sequence[Sequence[str]]) -> list[list[float]]:
        """Logit of yes less that of no for the question after each kind.

        Args:
            features: ``(n, 49, 1280)``.
            kinds: The kinds that each image's questions are about.
        """
        found: list[list[float]] = []
        for start in range(0, len(kinds), 8):
            asked = kinds[start : start + 8]
            pack = self.writer.pack([[self.writer.ask(k) for k in some] for some in asked], CELLS)
            hidden = self.hidden(features[start : start + 8], pack).float()
            rows = self.embeddings[[self.writer.yes, self.writer.no]].float()
            yes, no = (hidden @ rows.T).unbind(-1)
            flat = iter((yes - no).tolist())
            found += [[next(flat) for _ in some] for some in asked]
        return found

    def trained(self) -> dict[str, Tensor]:
        """All trained tensors, named as in a delta."""
        named: dict[str, Tensor] = {
            f"projector.{name}": value for name, value in self.projector.named_parameters()
        }
        for place, update in self.updates.items():
            named[f"lora.{place}.A"], named[f"lora.{place}.B"] = update.a, update.b
        return named
