"""The source of an edit: a picture's latents, step by step, and its attention to words.

`recorded` keeps those of pictures that are painted; `invert` (in `inversion`) those of real ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.checks import reason
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import host_of, inner
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.watching import watchable, watched
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.diffusion.edit_mask import Attended, Running, relative, shares

_TEXT_ALONE = ("CogVideoXTransformer3DModel",)
"""Models in whose maps the code takes the text's columns alone."""


@dataclass(frozen=True, eq=False)
class Source:
    """Latents of pictures, step by step.

    Attributes:
        latents: "T S ...": of S pictures what each of T sampling steps begins with, the noise
            first.
        timesteps: "T", as the scheduler counts them.
        shares: "S N": what the picture's tokens give to the words, if that was read.
        grid: (rows, columns), or (frames, rows, columns), of these tokens; empty if that isn't
            known.
    """

    latents: Tensor
    timesteps: Tensor
    shares: Tensor | None = None
    grid: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: str) -> Source:
        """Read one from its file.

        Raises:
            ValueError: It isn't there, or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"consistedit: source {path!r} can't be read: {reason(error)}"
            ) from None
        latents, timesteps = found.get("latents"), found.get("timesteps")
        if latents is None or timesteps is None or len(latents) != len(timesteps):
            shapes = {name: tuple(x.shape) for name, x in found.items()}
            raise ValueError(
                f"{path} isn't the source of an edit, which holds latents and timesteps "
                f"of T steps: it holds {shapes}"
            )
        grid = tuple(found["grid"].tolist()) if "grid" in found else ()
        return cls(latents, timesteps, found.get("shares"), grid)

    def keep(self) -> Path:
        """The source's path in the cache, ``$XDG_CACHE_HOME/regaze/sources``; written if new."""
        from safetensors.torch import save

        parts = {"latents": self.latents, "timesteps": self.timesteps, "shares": self.shares}
        if self.grid:
            parts["grid"] = torch.tensor(self.grid, device="cpu")
        data = save({n: x.detach().cpu().contiguous() for n, x in parts.items() if x is not None})
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = f"{hashlib.sha256(data).hexdigest()[:20]}.safetensors"
        path = cache / "regaze" / "sources" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(data)
            fresh.replace(path)
        return path

    def at(self, step: int, steps: int, timestep: float, like: Tensor) -> Tensor:
        """The latents that a step begins with, "S ...".

        Raises:
            ValueError: The run has other steps than the source's, or latents of another size.
        """
        own = float(self.timesteps[min(step, len(self.timesteps) - 1)])
        if steps != len(self.timesteps) or abs(own - timestep) > 1e-3 * max(1.0, abs(own)):
            raise ValueError(
                f"consistedit: source has {len(self.timesteps)} steps, at timestep {own:g} in step "
                f"{step}, and this run has {steps}, at {timestep:g}; give it as many steps, the "
                "same size and the same scheduler"
            )
        if self.latents.shape[2:] != like.shape[1:]:
            raise ValueError(
                f"consistedit: source's latents are of shape {tuple(self.latents.shape[2:])}, and "
                f"this run's of {tuple(like.shape[1:])}; paint in the source's size"
            )
        return self.latents[step].to(like)

    def edited(self, threshold: float = 0.1, frames: int = 1) -> Tensor:
        """Tokens that belong to the words and may be edited, "S N" bool.

        Raises:
            ValueError: Attention to words wasn't read.
        """
        if self.shares is None:
            raise ValueError("attention to words wasn't read with this source; name words")
        return relative(self.shares, frames) > threshold


class Recording:
    """The result of a run, once it has ended."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        self.times: list[float] = []
        self.seen = Running()
        self.grid: tuple[int, ...] = ()

    def clear(self) -> None:
        """Forget an earlier run."""
        self.latents, self.times, self.seen, self.grid = [], [], Running(), ()

    @property
    def source(self) -> Source:
        """The pictures' source.

        Raises:
            ValueError: No pipeline ran.
        """
        if not self.latents:
            raise ValueError(
                "nothing was recorded: run the pipeline inside of `with recorded(...)`"
            )
        mean = self.seen.mean().cpu() if self.seen.calls else None
        times = torch.tensor(self.times, dtype=torch.float32, device="cpu")
        return Source(torch.stack(self.latents), times, mean, self.grid if self.seen.calls else ())


@dataclass(frozen=True, eq=False)
class Recorder(Work):
    """Keeps a run's latents, and reads its attention to words.

    Attributes:
        words: Words of every prompt, or a list of them for each; none: attention isn't read.
        into: The place that it goes to.
        over: See `regaze.interventions.diffusion.edit_mask.shares`.
        members: "S T", which columns hold the words.
    """

    words: tuple[Any, ...] = ()
    into: Recording = field(default_factory=Recording)
    over: str = "joint"
    members: Tensor | None = None

    counted = False

    def begin(self, run: Run) -> Work:
        """Find the words in the run's prompts."""
        self.into.clear()
        if not self.words:
            return self
        each = any(isinstance(one, (tuple, list)) for one in self.words)
        length = max(part.columns.stop for part in run.text)
        lists = self.words if each else (self.words,) * run.samples
        if run.samples % len(lists):
            raise ValueError(f"words are given for {len(lists)} prompts, and {run.samples} run")
        members = torch.zeros(run.samples, length, dtype=torch.float32, device="cpu")
        for sample in range(run.samples):
            for word in lists[sample * len(lists) // run.samples]:
                members[sample, columns_of(word, run.text, sample, length)] = 1
        return replace(self, members=members)

    def before(self, pass_: Pass) -> None:
        """Keep what a step begins with."""
        found = pass_.running
        if pass_.rows.cond is None or found is None:
            return
        latents = found.variables.get("latents")
        if not isinstance(latents, Tensor):
            raise ValueError(
                f"{type(pass_.pipeline).__name__} doesn't show its latents, so they can't be kept"
            )
        self.into.latents.append(latents.detach().clone().cpu())
        self.into.times.append(pass_.timestep)

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """Layers in which attention to words is read."""
        return () if self.members is None or pass_.rows.cond is None else self.sites

    def attend(self, call: Call) -> Tensor:
        """Read a call's attention to words."""
        pass_, members = call.pass_, self.members
        if pass_ is None or members is None:
            raise RuntimeError("attention to words is read in passes of a pipeline")
        cond = pass_.rows.cond or slice(0, pass_.rows.batch)
        each = len(call.query) // pass_.rows.batch
        rows = slice(cond.start * each, cond.stop * each)
        which = torch.arange(rows.start, rows.stop, device=call.query.device)
        found = Attended.of(call, call.query[rows], call.key[rows], call.value[rows])
        image = call.image()
        self.into.grid = call.layout.grid(call.site, image.stop - image.start) or ()
        self.into.seen.add(shares(call, found, which, members, self.over))
        return call.output


@contextmanager
def recorded(pipeline: Any, words: Any = ()) -> Iterator[Recording]:
    """Record the source of edits while a pipeline paints it inside.

    Args:
        pipeline: A diffusers pipeline with joint attention.
        words: Words of the prompt that will be edited, or column numbers of its text; or a list of
            them for each prompt. Without them only latents are kept.

    Raises:
        TypeError: It is no pipeline with a known denoiser.
        ValueError: It has no joint attention, or the denoiser is compiled.
    """
    denoiser = watchable(pipeline, "record")
    host = host_of(inner(denoiser))
    sites = joint_sites(host)
    words = (words,) if isinstance(words, (str, int)) else tuple(words)
    into = Recording()
    recorder = Recorder(tuple(sites), words=words, into=into, over=over_of(host.model))
    with watched(pipeline, denoiser, recorder):
        yield into


def joint_sites(host: Any) -> list[Site]:
    """Layers that the method edits by default.

    Raises:
        ValueError: The model has no joint attention.
    """
    joint = [site for site in host.sites if site.kind == "joint"]
    if not joint:
        raise ValueError(
            f"consistedit: {host.model} has no joint attention of picture and text, where the "
            "method takes the picture's part from the source; it acts on SD3, FLUX, "
            "Qwen-Image, CogVideoX, HunyuanVideo and others of their kind"
        )
    if host.model == "FluxTransformer2DModel":
        joint = [site for site in joint if site.name.startswith("single_")] or joint
    return joint


def over_of(model: str) -> str:
    """The columns that attention to words is a share of in the code for a model."""
    return "text" if model in _TEXT_ALONE else "joint"


UNREAD = (
    "consistedit: which columns hold {} isn't known, because {}; give column numbers, or a mask"
)


def columns_of(word: str | int, text: Sequence[Part], sample: int, length: int) -> list[int]:
    """The columns of a word's first occurrence in all parts of a text stream.

    Raises:
        ValueError: It isn't in the prompt, or columns aren't known by words.
    """
    if isinstance(word, int):
        if word >= length:
            raise ValueError(f"consistedit: column {word} doesn't exist; the text has {length}")
        return [word]
    found, listed, prompt = [], [], ""
    for part in text:
        if part.prompts is None:
            raise ValueError(UNREAD.format(repr(word), part.unread))
        own = part.prompts[sample]
        prompt = prompt or own.text
        listed.append(own.listed())
        found += [part.columns.start + i for tokens in own.find(word)[:1] for i in tokens]
    if not found:
        raise ValueError(
            f"consistedit: {word!r} isn't in the source prompt {prompt!r}; its tokens are "
            f"{'; '.join(listed)}"
        )
    return sorted(set(found))
