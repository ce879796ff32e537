"""Decoding settings: greedy, by beams, or sampled with seeds."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from regaze.hooks.checks import check_number, shown, unknown


@dataclass(frozen=True)
class Decoding:
    """The rule by which tokens are chosen.

    Attributes:
        beams: Beams of a beam search; 1 is greedy.
        temperature: Sampling temperature; None chooses the most likely token.
        top_p: Sample from the smallest set of tokens with this share of the probability.
        top_k: Sample from that many of the most likely tokens.
        seeds: Sampling seeds: every item is asked once with each.
    """

    beams: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 1e-3, 100), ("top_p", 1e-3, 1), ("top_k", 1, 1e6)):
            if (value := getattr(self, name)) is not None:
                check_number("decoding", name, value, low, high)
        check_number("decoding", "beams", self.beams, 1, 1000)
        seeds = self.seeds if isinstance(self.seeds, tuple) else ()
        whole = all(type(seed) is int and seed >= 0 for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"decoding: seeds must be different numbers, none negative, got {shown(self.seeds)}"
            )
        if self.samples and self.beams > 1:
            raise ValueError("decoding: beams and sampling exclude each other: give one of them")
        if not self.samples and len(self.seeds) > 1:
            raise ValueError("decoding: several seeds only differ if a temperature is given")

    @classmethod
    def parse(cls, text: str) -> Decoding:
        """Read ``greedy``, ``beams=3`` or ``temperature=0.7,top_p=0.9,seeds=3``.

        ``seeds`` is how many: 0, 1, 2 and so on.

        Raises:
            ValueError: An unknown field or a value out of its domain.
        """
        given: dict[str, Any] = {}
        known = [field.name for field in fields(cls)]
        for part in text.split(",") if text.strip() != "greedy" else ():
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise ValueError(f"decoding {text!r}: {unknown('field', name, [*known, 'greedy'])}")
            try:
                number = float(value) if name in ("temperature", "top_p") else int(value)
            except ValueError:
                raise ValueError(
                    f"decoding {text!r}: {name} needs a number, got {value!r}"
                ) from None
            given[name] = tuple(range(int(number))) if name == "seeds" else number
        return cls(**given)

    @property
    def samples(self) -> bool:
        """True if tokens are drawn at random."""
        return any(v is not None for v in (self.temperature, self.top_p, self.top_k))

    @property
    def label(self) -> str:
        """The form that `parse` reads."""
        given = [
            f"{field.name}={value:g}"
            for field in fields(self)
            if field.name != "seeds" and (value := getattr(self, field.name)) != field.default
        ]
        if self.samples:
            given.append(f"seeds={len(self.seeds)}")
        return ",".join(given) or "greedy"

    def config(self, model: PreTrainedModel, max_new_tokens: int) -> GenerationConfig:
        """The model's own generation settings with these in their place."""
        config = copy.deepcopy(model.generation_config)
        if config is None:
            raise ValueError(
                f"{type(model).__name__} has no generation settings: it can't generate"
            )
        config.update(
            do_sample=self.samples,
            num_beams=self.beams,
            temperature=(self.temperature or 1.0) if self.samples else None,
            top_p=(self.top_p or 1.0) if self.samples else None,
            top_k=(self.top_k or 0) if self.samples else None,
            max_length=None,
            max_new_tokens=max_new_tokens,
        )
        if config.pad_token_id is None:
            ends = config.eos_token_id
            config.pad_token_id = ends[0] if isinstance(ends, list) else ends
        return config

    @contextmanager
    def drawing(self, seed: int, what: Sequence[str]) -> Iterator[None]:
        """Draw the same numbers for the same seed and batch, whatever was drawn before.

        Args:
            seed: One of ``seeds``.
            what: Words that tell the batch from others: its items' ids.
        """
        if not self.samples:
            yield
            return
        digest = hashlib.sha256("\n".join([str(seed), *what]).encode()).digest()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            yield
