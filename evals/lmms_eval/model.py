"""``regaze_hf`` for lmms-eval: any vision-language model of transformers, with interventions.

``lmms_eval --model regaze_hf --model_args pretrained=...,intervention=var:p=0.6 --tasks ...``

The whole intervention stands in the model arguments, because lmms-eval's response cache knows a
model by those alone. Written for lmms-eval 0.7 (its ``lmms_eval.models`` entry points); importing
this module needs the extra ``regaze[lmms-eval]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import PartialState
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm
from transformers import BatchFeature, GenerationConfig

from regaze.evals.asking.forcing import forced
from regaze.evals.asking.models import load
from regaze.evals.lmms_eval.requests import (
    Prompt,
    cut,
    from_context,
    from_messages,
    generation,
    interventions,
)
from regaze.hooks.attach import attach


class RegazeHf(lmms):  # type: ignore[misc]
    """Answers requests in lmms-eval's simple form: a text and a list of images.

    Args:
        pretrained: As for `regaze.evals.asking.models.load`: a folder, a Hub id, or ``sandbox``.
        intervention: As for ``regaze eval --with``: ``none``, ``var:p=0.6``, ``var+pai``; in quotes
            where it holds a comma.
        batch_size: Prompts per batch. Only requests with equal generation settings share one.
        device: Default: the process's own GPU, else the CPU.
        dtype: See `regaze.evals.asking.models.load`, as the next two.
        device_map: Spread the model over devices; excludes ``device``.
        attn_implementation: The attention kernel to load the model with.

    Raises:
        ValueError: An unknown argument, model, method or field, or a method that can't act on the
            model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "sandbox",
        intervention: str = "none",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"regaze_hf takes no argument {', '.join(unknown)}; if it is a field of the "
                'intervention, put that in quotes: intervention="vhr:alpha=2,layers=[2,3]"'
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of at least 1, got {batch_size!r}")
        self.batch_size = int(batch_size)
        specs = interventions(str(intervention))
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        if device_map is None and (device is None or state.num_processes > 1):
            device = str(state.device)
        loaded = load(
            str(pretrained),
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
        )
        self._model, self._processor = loaded.model, loaded.processor
        self._attached = attach(loaded.model, *specs, processor=loaded.processor)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> RegazeHf:
        """Build the model from ``--model_args``.

        Raises:
            ValueError: ``intervention`` is given twice, of which lmms-eval would keep the last.
        """
        if len(re.findall(r"(?:^|,)\s*intervention=", arg_string)) > 1:
            raise ValueError(
                "intervention is given twice in model_args; join what acts together with a plus: "
                "intervention=var+pai"
            )
        return cast(RegazeHf, super().create_from_arg_string(arg_string, additional_config))

    @property
    def device(self) -> torch.device:
        """The device that prompts go to."""
        return self._model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer each request, in the order given.

        Raises:
            ValueError: A request shows video or audio or has an unknown generation setting.
            RuntimeError: There were images, but an intervention never acted.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(self._settings(request), sort_keys=True), []).append(index)
        answers: dict[int, GenerationResult] = {}
        images = 0
        with tqdm(total=len(requests), disable=self.rank != 0, desc="regaze_hf") as bar:
            for key, indices in groups.items():
                given = json.loads(key)
                config = generation(self._model, given)
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    prompts = {index: self._prompt(requests[index]) for index in batch}
                    for part in _alike(prompts):
                        results = self._answer([prompts[i] for i in part], config, given)
                        answers.update(zip(part, results, strict=True))
                    images += sum(len(prompt.images) for prompt in prompts.values())
                    bar.update(len(batch))
        self._check_fired(images)
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Mean token cross-entropy of each continuation, and whether it is the greedy answer.

        The mean loss and not the sum of log-probabilities that the name promises: lmms-eval's
        multiple choice takes the option with the smallest number, as its own models return losses.
        The pair comes inside a result: lmms-eval 0.7.3 makes a string of a bare one.

        Raises:
            ValueError: A request shows video or audio, or asks without a document (mutual
                information).
            RuntimeError: There were images, but an intervention never acted.
        """
        scored: dict[int, GenerationResult] = {}
        images = 0
        with tqdm(total=len(requests), disable=self.rank != 0, desc="regaze_hf") as bar:
            for start in range(0, len(requests), self.batch_size):
                indices = range(start, min(start + self.batch_size, len(requests)))
                asked = {index: self._option(requests[index]) for index in indices}
                prompts = {index: prompt for index, (prompt, _) in asked.items()}
                for part in _alike(prompts):
                    inputs = self._encode([prompts[i] for i in part])
                    options = [asked[i][1] for i in part]
                    pairs = map(GenerationResult, forced(self._model, inputs, options))
                    scored.update(zip(part, pairs, strict=True))
                images += sum(len(prompt.images) for prompt in prompts.values())
                bar.update(len(indices))
        self._check_fired(images)
        return [scored[index] for index in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{_where(requests[0])} asks in several rounds; regaze_hf answers single questions "
            "only (output types generate_until, loglikelihood and multiple_choice)"
        )

    def clean(self) -> None:
        """Take the interventions off and let go of the model."""
        self._attached.detach()
        super().clean()

    def _settings(self, request: Instance) -> dict[str, Any]:
        return cast(dict[str, Any], request.args[1])

    def _prompt(self, request: Instance) -> Prompt:
        context, _, doc_to_visual, *place = request.args
        return from_context(context, doc_to_visual(self._document(*place)), _where(request))

    def _option(self, request: Instance) -> tuple[Prompt, list[int]]:
        """A prompt and the tokens of an answer; lmms-eval asks this in its simple form only."""
        if len(request.args) != 6:
            raise ValueError(
                f"{_where(request)} asks for the likelihood of a text by itself (as for mutual "
                "information); regaze_hf scores answers to questions only"
            )
        answer = request.args[1]
        if callable(answer):
            answer = answer(self._document(*request.args[3:]))
        tokens = self._processor.tokenizer(str(answer), add_special_tokens=False)["input_ids"]
        return RegazeHf._prompt(self, request), tokens

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _answer(
        self, prompts: Sequence[Prompt], config: GenerationConfig, given: Mapping[str, Any]
    ) -> list[GenerationResult]:
        inputs = self._encode(prompts)
        with torch.inference_mode():
            sequences = cast(Any, self._model).generate(**inputs, generation_config=config)
        ends = config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        results = []
        for mask, tokens in zip(
            inputs["attention_mask"].tolist(),
            sequences[:, inputs["input_ids"].shape[1] :].tolist(),
            strict=True,
        ):
            end = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
            text = self._processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            counts = TokenCounts(input_tokens=sum(mask), output_tokens=end)
            results.append(GenerationResult(cut(text, given.get("until")), counts))
        return results

    def _encode(self, prompts: Sequence[Prompt]) -> BatchFeature:
        texts = [
            self._processor.apply_chat_template(prompt.messages, add_generation_prompt=True)
            for prompt in prompts
        ]
        # Some templates write the BOS token themselves; it must not come twice.
        bos = self._processor.tokenizer.bos_token
        inputs: BatchFeature = self._processor(
            text=texts,
            images=[list(prompt.images) for prompt in prompts] if prompts[0].images else None,
            add_special_tokens=not (bos and texts[0].startswith(bos)),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return inputs.to(self._model.device, dtype=self._model.dtype)

    def _check_fired(self, images: int) -> None:
        """Say what the interventions did; answers of one that never acted must not be reported."""
        report = self._attached.report()
        if not report.interventions:
            return
        if images and not report.fired:
            raise RuntimeError(
                f"an intervention never acted on {images} images, so these answers are not its "
                f"own: {report}"
            )
        logger.info(f"{report}")


class RegazeHfChat(RegazeHf):
    """Answers requests in lmms-eval's chat form: turns of texts and images."""

    is_simple = False

    def _settings(self, request: Instance) -> dict[str, Any]:
        return cast(dict[str, Any], request.args[2])

    def _prompt(self, request: Instance) -> Prompt:
        _, doc_to_messages, _, *place = request.args
        return from_messages(doc_to_messages(self._document(*place)), _where(request))


def _alike(prompts: Mapping[int, Prompt]) -> Iterator[list[int]]:
    """Prompts with images and prompts without; a processor takes one kind at a time."""
    for has_images in (True, False):
        part = [index for index, prompt in prompts.items() if bool(prompt.images) == has_images]
        if part:
            yield part


def _where(request: Instance) -> str:
    return f"task {request.task_name}, document {request.doc_id}"
