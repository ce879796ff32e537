"""attach, for diffusers: find a pipeline's denoisers and put interventions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regaze.hooks.attach import Attachable, Attachment
from regaze.hooks.diffusion.edits import Edit, Entry, LatentUpdate, refuse_clashes
from regaze.hooks.diffusion.guide import Guide, inner
from regaze.hooks.diffusion.sites import Site, find_sites, native_grid
from regaze.hooks.report import InterventionReport, Report

# Components that denoise; Wan 2.2 has two, for early and for late steps.
_NAMES = ("unet", "transformer", "transformer_2")


@dataclass(frozen=True)
class Denoiser:
    """What a method is told of a model.

    Attributes:
        model: Name of its class.
        sites: Its attention modules, in the order in which they run.
        grids: Rows and columns of each site's image tokens at the model's own size, by name; None
            where that isn't known.
        size: Rows and columns of the latents at that size.
    """

    model: str
    sites: tuple[Site, ...]
    grids: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    @property
    def layers(self) -> list[Site]:
        """The layers of self- and joint attention, by their number."""
        return [site for site in self.sites if site.layer is not None]


class DenoiserAttachment(Attachment):
    """What acts on a pipeline's denoisers, until `detach` or the end of the ``with`` block."""

    def __init__(
        self, specs: Sequence[Attachable], entries: Sequence[Entry], guides: Sequence[Guide]
    ) -> None:
        self.specs = tuple(specs)
        self._guided = list(entries)
        self._guides = list(guides)
        self._attached = True

    def detach(self) -> None:
        """Take them off. Others stay; a second call does nothing."""
        if self._attached:
            self._attached = False
            for guide in self._guides:
                for entry in reversed(self._guided):
                    guide.pop(entry)

    def report(self) -> Report:
        """What fired, where, how often and how strongly, since they were attached."""
        return Report(
            tuple(
                InterventionReport(
                    spec.label,
                    prompts=0,
                    layers=tuple(entry.layers()),
                    exempt=entry.idle,
                    steps=entry.steps,
                    note=entry.note,
                )
                for spec, entry in zip(self.specs, self._guided, strict=True)
            )
        )

    def partial_prompt(self) -> Any:
        """Denoisers have no prompts in parts."""
        raise TypeError("partial_prompt is for language models; a pipeline reads whole prompts")


def find_denoisers(target: Any) -> dict[str, nn.Module] | None:
    """The denoisers of a pipeline, or a bare denoiser, by name; None if it is neither.

    Args:
        target: Anything.

    Raises:
        TypeError: A diffusers pipeline or model without a denoiser that is known here.
    """
    if _is_a(target, "DiffusionPipeline"):
        parts: Mapping[str, Any] = target.components
        found = {n: parts[n] for n in _NAMES if isinstance(parts.get(n), nn.Module)}
        if not found:
            raise TypeError(
                f"{type(target).__name__} has no {', '.join(_NAMES[:-1])} or {_NAMES[-1]} to "
                f"attach to; its parts are {', '.join(parts)}"
            )
        return found
    if isinstance(target, nn.Module) and _is_a(inner(target), "ModelMixin"):
        return {"denoiser": target}
    return None


def sites(target: Any) -> list[Site]:
    """Where a pipeline's denoiser attends, in the order in which its layers run.

    Args:
        target: A diffusers pipeline, U-Net or transformer.

    Raises:
        TypeError: It is something else.
    """
    denoisers = find_denoisers(target)
    if denoisers is None:
        raise TypeError(f"{type(target).__name__} is no diffusers pipeline, U-Net or transformer")
    return find_sites(inner(next(iter(denoisers.values()))))


def attach_denoisers(
    target: Any,
    denoisers: Mapping[str, nn.Module],
    interventions: Sequence[Attachable],
    *,
    cond_rows: slice | None = None,
    fork: bool = True,
) -> DenoiserAttachment:
    """Attach interventions to the denoisers that `find_denoisers` found.

    Args:
        target: The pipeline or denoiser.
        denoisers: What `find_denoisers` gave for it.
        interventions: Specs, e.g. ``PAG(scale=2)``.
        cond_rows: Which rows of a batch are conditional; needed by pipelines that don't say, and
            for a bare denoiser whose batch holds both branches (all rows otherwise).
        fork: Let perturbed branches begin at their first edited layer; False runs them whole.

    Raises:
        ValueError: An intervention can't act on this model.
    """
    modules = list(denoisers.values())
    infos = [_info(inner(module)) for module in modules]
    for module, info in zip(modules, infos, strict=True):
        if not info.layers:
            raise ValueError(
                f"{info.model} has no layers of self- or joint attention that are known here, so "
                "there is nothing to perturb"
            )
        if getattr(inner(module), "is_cache_enabled", False):
            raise ValueError(
                f"step caching is on in this {info.model}; it would skip edited layers and mix the "
                "branches up; call disable_cache() first"
            )
    specs = [one.resolve(infos[0]) for one in interventions]
    entries = [Entry(spec.bind(infos[0])) for spec in specs]
    pipeline = target if target not in modules else None
    for spec, entry in zip(specs, entries, strict=True):
        if isinstance(entry.work, LatentUpdate) and not hasattr(pipeline, "scheduler"):
            raise ValueError(
                f"{spec.label} moves a pipeline's latents, and a {type(target).__name__} alone has "
                "none; attach to the pipeline"
            )
    guides = [_guide_of(module, pipeline, cond_rows, fork) for module in modules]
    for module, guide in zip(modules, guides, strict=True):
        refuse_clashes([*guide.entries, *entries])
        if module._compiled_call_impl is not None and any(
            isinstance(entry.work, Edit) and not entry.idle for entry in entries
        ):
            raise ValueError(
                f"this {type(module).__name__} was compiled in place, which hides its layers from "
                "edits; use torch.compile(model) instead, of which edited steps run uncompiled"
            )
    for entry in entries:
        for guide in guides:
            guide.push(entry)
    return DenoiserAttachment(specs, entries, guides)


def _info(denoiser: Any) -> Denoiser:
    found = tuple(find_sites(denoiser))
    grids = {site.name: native_grid(denoiser, site) for site in found}
    size = getattr(denoiser.config, "sample_size", None)
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    known = None if size is None else (int(sides[0]), int(sides[1]))
    return Denoiser(type(denoiser).__name__, found, grids, known)


def _guide_of(module: nn.Module, pipeline: Any, cond_rows: slice | None, fork: bool) -> Guide:
    """The one guide of a denoiser: the one whose hooks it has, or a new one."""
    for hook in module._forward_pre_hooks.values():
        guide = getattr(hook, "__self__", None)
        if isinstance(guide, Guide) and guide.of(module):
            if (guide.cond_rows, guide.fork) != (cond_rows, fork):
                raise ValueError(
                    "this denoiser already has interventions attached with other cond_rows or "
                    "fork; attach them all in one call, or detach first"
                )
            return guide
    return Guide(module, pipeline, cond_rows, fork)


def _is_a(thing: Any, name: str) -> bool:
    """Whether it is of a diffusers class, without loading diffusers."""
    return any(
        c.__name__ == name and c.__module__.startswith("diffusers.") for c in type(thing).__mro__
    )
