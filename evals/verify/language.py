"""A vision-language model under test: short prompts with drawn pictures, read and answered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from regaze.evals.sandbox.scenes import scene
from regaze.evals.verify.rounding import HALVES, upcast
from regaze.evals.verify.subject import Outputs, Subject, Which, median
from regaze.hooks import Attachment, attach
from regaze.hooks.host import Host, find_host
from regaze.hooks.literal_runs import literally
from regaze.hooks.targets import split_target
from regaze.interventions import Intervention

_QUESTIONS = ("Is there a circle?", "What is in the image, and where?")
_FURTHER = (
    "Describe the picture.",
    "How many things are there?",
    "Which colors does the picture show?",
    "What stands on the left of the image?",
)
_STEPS = 4
_TIMED = 8
_IMAGE_COLUMNS = 9
_KEPT = 50_000_000


class _Forced:
    """Makes generation say given tokens, so that all runs decode the same ones."""

    def __init__(self, tokens: Sequence[int], after: int) -> None:
        self.tokens, self.after = tokens, after

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[(ids.shape[1] - self.after) % len(self.tokens)]] = 0
        return forced


class Language(Subject):
    """A vision-language model.

    Args:
        target: A transformers model, or a pipeline that holds one.
        processor: Processor of the model; without one the prompts are arbitrary token ids, with
            image tokens whose embeddings are read as they are.
    """

    parts = ("prefill", "decode")
    what = "logits"
    tolerances = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

    def __init__(self, target: Any, processor: Any = None) -> None:
        self.target = target
        self.model, self.processor = split_target(target, processor)
        self.host: Host = find_host(self.model, self.processor)
        both = self._asked() if self.processor is not None else self._made_up()
        self._given: dict[Which, dict[str, Any]] = dict(zip((0, 1, "both"), both, strict=True))
        self.further = 1 + len(_FURTHER)
        self._tokens = self._words()
        columns = [int((self._given[k]["attention_mask"]).sum()) for k in (0, 1)]
        source = "the model's processor" if self.processor is not None else "made-up ids"
        self.inputs = (
            f"two prompts of {columns[0]} and {columns[1]} tokens with a drawn picture each "
            f"({source}), {_STEPS} decoded tokens"
        )

    @property
    def module(self) -> nn.Module:
        """The whole model."""
        return self.model

    @property
    def tolerance(self) -> float:
        """Rounding adds up over layers, as a random walk does."""
        return super().tolerance * max(1.0, math.sqrt(self.layers / 8))

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.host.n_layers

    def about(self) -> dict[str, Any]:
        """The model's class, dtype, device and the like."""
        config: Any = self.host.tower.config
        return {
            "class": type(self.model).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self._device),
            "attention": config._attn_implementation,
            "layers": self.layers,
        }

    def attach(self, specs: Sequence[Intervention]) -> Attachment:
        """Attach methods."""
        return attach(self.target, *specs, processor=self.processor)

    def literally(self, forms: Sequence[Any]) -> AbstractContextManager[Any]:
        """Run literal forms on the first prompt."""
        return literally(self.host, self._given[0], forms)

    @contextmanager
    def instead(self, number: int) -> Iterator[None]:
        """Make the first prompt another one inside: the second one, or one of yet others."""
        given = self._given
        self._given = {**given, 0: given[1] if number == 0 else self._others[number - 1]}
        try:
            yield
        finally:
            self._given = given

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Hold the same weights and inputs in float32 inside."""
        given = self._given
        with upcast(self.module):
            self._given = {
                which: {
                    key: x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x
                    for key, x in inputs.items()
                }
                for which, inputs in given.items()
            }
            try:
                yield
            finally:
                self._given = given

    @torch.no_grad()
    def run(self, which: Which) -> list[Outputs]:
        """Logits of the prompts' rows, and of each decoded token."""
        inputs = self._given[which]
        model: Any = self.model
        prompt = model(**inputs).logits
        made = self._generate(inputs, _STEPS, output_logits=True, return_dict_in_generate=True)
        steps = torch.stack(made.logits)
        found: list[Outputs] = []
        for row, real in enumerate(inputs["attention_mask"].bool()):
            rows = prompt[row][real.to(prompt.device)]
            most = max(8, _KEPT // rows.shape[-1])
            found.append({"prefill": rows[-most:].float(), "decode": steps[:, row].float()})
        return found

    def timed(self) -> Mapping[str, Callable[[], float]]:
        """Time to read a prompt, and for each token after it."""
        return {"prefill": lambda: median(partial(self._seconds, 0)), "decoding": self._decoding}

    def _decoding(self) -> float:
        return median(partial(self._seconds, _TIMED)) / _TIMED

    def _seconds(self, tokens: int) -> float:
        """Seconds of reading a prompt, or of so many tokens after it."""
        marks: list[float] = []

        def mark(ids: Tensor, scores: Tensor) -> Tensor:
            # After the pass of each token, and of the prompt.
            if scores.is_cuda:
                torch.cuda.synchronize(scores.device)
            marks.append(time.perf_counter())
            return scores

        start = time.perf_counter()
        self._generate(self._given[1], 1 + tokens, mark)
        return marks[-1] - marks[0] if tokens else marks[0] - start

    @torch.no_grad()
    def _generate(
        self, inputs: Mapping[str, Any], tokens: int, *see: Callable[..., Tensor], **options: Any
    ) -> Any:
        model: Any = self.model
        forced = _Forced(self._tokens, inputs["input_ids"].shape[1])
        plain = {"do_sample": False, "num_beams": 1, "use_cache": True}
        settings = {
            **plain,
            "max_new_tokens": tokens,
            "logits_processor": [*see, forced],
            **options,
        }
        return model.generate(**inputs, **settings)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.host.tower.get_input_embeddings().weight.device  # type: ignore[operator]
        return torch.device("cpu") if device.type == "meta" else device

    @cached_property
    def _others(self) -> list[dict[str, Any]]:
        if self.processor is None:
            return [self._ids_of([row]) for row in self._rows()[2:]]
        return [self._ask([text], [3 + number]) for number, text in enumerate(_FURTHER)]

    def _asked(self) -> list[dict[str, Any]]:
        """The questions as the model's processor makes them: each alone, and both as a batch."""
        return [self._ask([_QUESTIONS[i] for i in rows], rows) for rows in ([0], [1], [0, 1])]

    def _ask(self, questions: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
        """A batch of questions, each about the picture of its number.

        Raises:
            ValueError: The processor can't take them.
        """
        from regaze.evals.asking.prompts import Prompter

        prompter = Prompter(self.processor)
        pictures = [scene("test", 5 + 2 * number).image for number in numbers]
        try:
            if getattr(self.processor, "chat_template", None):
                texts = [prompter.text(question, images=1) for question in questions]
            else:
                texts = [f"{self.processor.image_token}{question}" for question in questions]
            inputs = prompter.inputs(texts, [[picture] for picture in pictures])
        except Exception as error:  # Processors raise whatever they like.
            raise ValueError(
                f"this {type(self.processor).__name__} makes no prompt with a picture: {error}; "
                "leave the processor out to verify with made-up token ids"
            ) from error
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        return {
            key: value.to(self._device, self.dtype if value.is_floating_point() else None)
            if isinstance(value, Tensor)
            else value
            for key, value in inputs.items()
        }

    def _made_up(self) -> list[dict[str, Any]]:
        """Arbitrary token ids around image tokens, without a picture behind these."""
        rows = self._rows()[:2]
        return [self._ids_of([rows[0]]), self._ids_of([rows[1]]), self._ids_of(rows)]

    def _rows(self) -> list[list[int]]:
        image = min(self.host.image_ids, default=None)
        if image is None:
            raise ValueError(f"{self.host.model_type} has no image token to make a prompt with")
        words = self._plain_ids(2 + len(_FURTHER), 12)
        return [
            [*some[:3], *[image] * _IMAGE_COLUMNS, *some[3 : 12 if number % 2 else 8]]
            for number, some in enumerate(words)
        ]

    def _ids_of(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Rows of token ids as one batch, padded on the left."""
        longest = max(map(len, rows))
        pad = getattr(self.host.tower.config, "pad_token_id", None) or 0
        padded = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
        real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {
            "input_ids": padded.to(self._device),
            "attention_mask": real.to(self._device),
        }

    def _plain_ids(self, rows: int, count: int) -> Any:
        config: Any = self.host.tower.config
        size = min(int(config.vocab_size), 1000)
        special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        usable = [i for i in range(size) if i not in special and i not in self.host.image_ids]
        # The first ids are often special ones that no config names.
        usable = usable[len(usable) // 10 :]
        generator = torch.Generator().manual_seed(0)
        picked = torch.randint(len(usable), (rows, count), generator=generator).tolist()
        return [[usable[i] for i in row] for row in picked]

    def _words(self) -> list[int]:
        """The tokens that are decoded: words of the prompt, neither special nor of the image."""
        if self.processor is None:
            return list(self._plain_ids(1, _STEPS)[0])
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        special = {*getattr(tokenizer, "all_special_ids", ()), *self.host.image_ids}
        ids = tokenizer(_QUESTIONS[1], add_special_tokens=False)["input_ids"]
        return [i for i in ids if i not in special][:_STEPS] or list(self._plain_ids(1, 4)[0])
