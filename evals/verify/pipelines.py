"""A diffusers pipeline under test: two denoising steps of a small picture."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regaze.evals.verify.per_thread import copied
from regaze.evals.verify.prepared import FRAMES, PROMPTS, SIDE, prepared
from regaze.evals.verify.subject import Outputs, Subject, Which, median
from regaze.hooks import Attachment, attach
from regaze.hooks.diffusion.host import find_denoisers, host_of, inner
from regaze.hooks.diffusion.literal import Manner, WholeForm, by_name, literally
from regaze.hooks.diffusion.literal_latents import LatentForm, moved_literally
from regaze.hooks.diffusion.sites import TEXT, read_layout
from regaze.interventions import (
    PARO,
    ConsistEdit,
    FlowWarp,
    Intervention,
    PrimeComposer,
)
from regaze.interventions.diffusion import flow as flows
from regaze.interventions.diffusion.concepts import ConceptUpdate
from regaze.interventions.diffusion.paro_plan import read


class Pipeline(Subject):
    """A diffusers pipeline.

    Args:
        target: The pipeline.
        specs: Specs to verify; a flow-warping method paints a clip, and one that edits pictures by
            a second prompt a pair.
        call: Arguments of the pipeline's call, beside or instead of those chosen here.
    """

    parts = ("steps",)
    what = "latents"
    # Guidance multiplies what rounding makes of its difference, step by step.
    tolerances = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}

    def __init__(self, target: Any, specs: Sequence[Intervention], call: Mapping[str, Any]) -> None:
        found = find_denoisers(target) or {}
        if "denoiser" in found:
            raise ValueError(
                f"a bare {type(target).__name__} can't be asked for a picture; give verify the "
                "whole pipeline"
            )
        self.pipeline, self.name = target, next(iter(found))
        self.denoiser = inner(found[self.name])
        self.host = host_of(self.denoiser)
        self._texts = any(isinstance(spec, ConceptUpdate) for spec in specs)
        self._further = ("cross",) if any(isinstance(s, PrimeComposer) for s in specs) else ()
        clips = [spec for spec in specs if isinstance(spec, FlowWarp)]
        chains = [spec.rounds + 1 for spec in specs if isinstance(spec, ConsistEdit)]
        self.edited = bool(chains)
        self.frames = max(chains) if chains else _frames(clips[0]) if clips else 1
        # Methods may rest for a share of the steps.
        late = max((getattr(spec, "start", 0.0) for spec in specs), default=0.0)
        plans = [read(spec.plan).steps for spec in specs if isinstance(spec, PARO) and spec.plan]
        self._call = {**self._small(plans[0] if plans else 4 if late >= 0.5 else 2), **call}
        if clips:
            self.one_batch = "the frames of a clip are a batch already"
        elif chains:
            self.one_batch = "a picture and its edit are a batch already"
        elif "prompt_embeds" in call:
            self.one_batch = "the pipeline's inputs were given as embeddings"
        self.running = self._observed()
        size = f"{self._call['width']} x {self._call['height']}" if "width" in self._call else ""
        self.inputs = f"{self._call.get('num_inference_steps')} denoising steps" + (
            f" at {size} pixels" if size else ""
        )
        if self.running.guided:
            self.inputs += ", with classifier-free guidance"

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        module: nn.Module = self.denoiser
        return module

    @property
    def tolerance(self) -> float:
        """Ten times as much where latents go through a chain of gradient steps."""
        return super().tolerance * (10 if self._texts else 1)

    @property
    def layers(self) -> int:
        """Layers of the kind that the method edits."""
        kinds = TEXT if self._texts else (*self._further, "self", "joint")
        return sum(site.kind in kinds for site in self.host.sites)

    def about(self) -> dict[str, Any]:
        """The pipeline's classes, dtype, device and the like."""
        return {
            "class": type(self.pipeline).__name__,
            "denoiser": type(self.denoiser).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.pipeline.device),
            "attention": type(getattr(self._first_attention(), "processor", None)).__name__,
            "layers": len(self.host.layers),
        }

    def attach(self, specs: Sequence[Intervention]) -> Attachment:
        """Attach methods."""
        return attach(self.pipeline, *specs)

    @contextmanager
    def literally(self, forms: Sequence[Any]) -> Iterator[None]:
        """Run literal forms."""
        moving = [form for form in forms if isinstance(form, LatentForm)]
        if moving and len(forms) > 1:
            raise NotImplementedError(
                "latents are moved literally by one method alone; verify the methods one by one"
            )
        whole = [form for form in forms if isinstance(form, WholeForm)]
        if whole and len(forms) > 1:
            raise NotImplementedError(
                "a method that is written out as a whole run stands alone; verify the methods one "
                "by one"
            )
        way: AbstractContextManager[None]
        if whole:
            way = whole[0].within(self.pipeline, self.running)
        elif moving:
            way = moved_literally(self.pipeline, self.running, moving[0])
        else:
            way = literally(self.pipeline, self.running, forms)
        with way:
            yield

    def run(self, which: Which) -> list[Outputs]:
        """The latents of each picture; of a clip's frames together."""
        numbers = (0, 1) if which == "both" else (which,)
        found = self._paint(numbers)
        if which == "both":
            return [{"steps": one[None].float()} for one in found]
        return [{"steps": found.float()}]

    def timed(self) -> Mapping[str, Callable[[], float]]:
        """Time of a picture."""
        return {"painting": self._seconds}

    def shared(self) -> AbstractContextManager[None]:
        """A scheduler and tokenizers for each thread."""
        return copied(self.pipeline)

    def prepared(self, spec: Intervention) -> Intervention:
        """A spec with words or phrases of the prompt, or a flow, if it has none."""
        return prepared(spec, self._call, alone=not self.one_batch)

    def state(self) -> dict[str, Any]:
        """State that could be left in the denoiser, or on the scheduler."""
        scheduler = self.pipeline.scheduler
        own = sorted(key for key in vars(scheduler) if callable(vars(scheduler)[key]))
        return {**super().state(), "its scheduler": own}

    def _paint(self, numbers: Sequence[int]) -> Tensor:
        call = dict(self._call)
        if "prompt_embeds" not in call:
            others = range(self.frames) if self.edited else [0] * self.frames
            call["prompt"] = [PROMPTS[(n + k) % 2] for n in numbers for k in others]
        if "latents" not in call:
            seeds = [n for n in numbers for _ in range(self.frames)]
            call["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = self.pipeline(**call)[0]
        return made if isinstance(made, Tensor) else torch.stack(list(made))

    def _seconds(self) -> float:
        def once() -> float:
            start = time.perf_counter()
            self._paint((0,))
            if self.pipeline.device.type == "cuda":
                torch.cuda.synchronize(self.pipeline.device)
            return time.perf_counter() - start

        return median(once)

    def _small(self, steps: int) -> dict[str, Any]:
        """Arguments of a small, short call: those that this pipeline's call has."""
        names = inspect.signature(type(self.pipeline).__call__).parameters
        side = SIDE
        if self.host.size is not None:
            pixels = int(getattr(self.pipeline, "vae_scale_factor", 8))
            side = min(SIDE, self.host.size[0] * pixels)
        wanted = {
            "num_inference_steps": steps, "height": side, "width": side, "num_frames": 5,
            "output_type": "latent",
        }  # fmt: skip
        return {name: value for name, value in wanted.items() if name in names}

    def _observed(self) -> Manner:
        """Observe in one run how the pipeline calls its denoiser.

        Raises:
            ValueError: It can't be called like this, or calls its denoiser otherwise than known.
        """
        calls: list[tuple[int, int | None]] = []

        def note(module: Any, args: Any, kwargs: Any) -> None:
            call = by_name(module, args, kwargs)
            sample = call["sample"] if "sample" in call else call["hidden_states"]
            calls.append((len(sample), read_layout(module, call).frames))

        handle = self.denoiser.register_forward_pre_hook(note, with_kwargs=True)
        before = dict(getattr(self.pipeline, "_progress_bar_config", {}))
        self.pipeline.set_progress_bar_config(**{**before, "disable": True})
        try:
            self._paint((0,))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{type(self.pipeline).__name__} can't be called with a prompt alone: "
                f"{' '.join(str(error).split())}; give what it needs by call="
            ) from error
        finally:
            handle.remove()
        samples = self.frames
        if "prompt_embeds" in self._call:
            samples = len(self._call["prompt_embeds"])
        rows, inner_frames = calls[0]
        steps = getattr(self.pipeline, "num_timesteps", None) or len(
            self.pipeline.scheduler.timesteps
        )
        each, branches = len(calls) // steps, rows // samples
        if (each, branches) not in ((1, 1), (1, 2), (2, 1)) or len(calls) % steps:
            raise ValueError(
                f"{type(self.pipeline).__name__} calls its denoiser {len(calls)} times in {steps} "
                f"steps with {rows} rows for {samples} pictures, which is no way of guidance that "
                "verify can write out"
            )
        return Manner(
            self.name, each == 2 or branches == 2, each == 2, samples=samples,
            frames=inner_frames or 1,
        )  # fmt: skip

    def _first_attention(self) -> Any:
        return self.denoiser.get_submodule(self.host.sites[0].name) if self.host.sites else None


def _frames(spec: FlowWarp) -> int:
    return flows.read(spec.flow).frames if spec.flow is not None else FRAMES
