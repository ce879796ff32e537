"""A class that nobody knows is refused; with one entry and one tiny model it is like any other."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import test_census_diffusers as census
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from tiny_calls import TEXT, TOKENS, WIDTH, noise, step
from tiny_denoisers import TINY, Tiny
from torch import Tensor, nn

import regaze
from regaze.hooks.diffusion.families import FAMILIES, Family, Rule
from regaze.hooks.diffusion.layouts import positions
from regaze.interventions import PAG


class _Processor:
    """As diffusers' are: called with the module."""

    def __call__(self, module: Any, hidden_states: Tensor) -> Any:
        query, key, value = (
            x.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for x in module.to_qkv(hidden_states).chunk(3, -1)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.processor = 4, _Processor()
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden_states: Tensor) -> Any:
        return self.processor(self, hidden_states)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.looking = _Attention()

    def forward(self, x: Tensor) -> Any:
        return x + self.looking(x)


class PaintByThought(diffusers.ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The text, then the picture, in one stream."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.thoughts = nn.ModuleList(_Block() for _ in range(3))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
    ) -> tuple[Tensor]:
        x = torch.cat([encoder_hidden_states, hidden_states + timestep[:, None, None] / 1000], 1)
        for block in self.thoughts:
            x = block(x)
        return (x[:, encoder_hidden_states.shape[1] :],)


NAME = "PaintByThought"
ENTRY = Family(
    (Rule(r".*\.looking", "joint", "text-image"),), ("thoughts",), positions,
    per_token=("img_ids",),
)  # fmt: skip


def call(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, TOKENS, WIDTH), "timestep": step(batch),
        "encoder_hidden_states": noise(batch, TEXT, WIDTH, seed=1),
        "img_ids": TINY["FluxTransformer2DModel"].call(1)["img_ids"],
    }  # fmt: skip


def test_without_an_entry_it_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{NAME} isn't known here.*FAMILIES.*regaze verify"):
        regaze.attach(PaintByThought(), PAG())


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, NAME, PaintByThought, raising=False)
    monkeypatch.setitem(FAMILIES, NAME, ENTRY)
    monkeypatch.setitem(TINY, NAME, Tiny({}, call))


@pytest.mark.usefixtures("known")
def test_with_an_entry_its_rows_are_seen() -> None:
    census.test_rows_and_columns_are_whose_the_table_says(NAME)
    census.test_a_branch_of_some_rows_equals_these_rows_of_all(NAME, True)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("method", census.METHODS)
def test_with_an_entry_every_method_works(method: str) -> None:
    census.test_guidance_equals_a_second_pass_with_literal_maps(NAME, method)


@pytest.mark.usefixtures("known")
def test_a_wrong_entry_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Family((Rule(r".*\.looking", "joint", "image-text"),), ("thoughts",), positions)
    monkeypatch.setitem(FAMILIES, NAME, wrong)
    with pytest.raises(AssertionError):
        census.test_rows_and_columns_are_whose_the_table_says(NAME)


@pytest.mark.usefixtures("known")
def test_attention_that_no_rule_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    less = Family((Rule(r"thoughts\.0\.looking", "joint", "text-image"),), ("thoughts",), positions)
    monkeypatch.setitem(FAMILIES, NAME, less)
    with pytest.raises(ValueError, match=r"thoughts\.1\.looking.*isn't known"):
        regaze.attach(PaintByThought(), PAG())


@pytest.mark.usefixtures("known")
def test_a_subclass_from_elsewhere_is_what_its_parent_is() -> None:
    class Mine(PaintByThought):
        pass

    class Other(PaintByThought):
        def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
            return super().forward(*args, **kwargs)

    with regaze.attach(Mine(), PAG()):
        pass
    with pytest.raises(ValueError, match="Other isn't known here"):
        regaze.attach(Other(), PAG())
