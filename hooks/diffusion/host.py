"""The denoisers of a pipeline, which methods are attached to, and facts about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regaze.hooks.diffusion.families import DENOISERS
from regaze.hooks.diffusion.sites import Site, find_sites, native_grid
from regaze.hooks.others import parts


@dataclass(frozen=True)
class Host:
    """The facts about a model that a method is told.

    Attributes:
        model: Name of its class.
        sites: Attention modules, in the order in which they run.
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


def find_denoisers(target: Any) -> dict[str, nn.Module] | None:
    """The denoisers of a pipeline, or a bare denoiser, by name; None if it is neither.

    Args:
        target: Anything.

    Raises:
        TypeError: A diffusers pipeline or model without a denoiser that is known here.
    """
    if is_pipeline(target):
        parts: Mapping[str, Any] = target.components
        found = {n: parts[n] for n in DENOISERS if isinstance(parts.get(n), nn.Module)}
        if not found:
            raise TypeError(
                f"{type(target).__name__} has no {', '.join(DENOISERS[:-1])} or {DENOISERS[-1]} to "
                f"attach to; its parts are {', '.join(parts)}"
            )
        return found
    if isinstance(target, nn.Module) and _is_a(inner(target), "ModelMixin"):
        return {"denoiser": target}
    return None


def sites(target: Any) -> list[Site]:
    """List the attention modules of a pipeline's denoiser, in the order in which they run.

    Args:
        target: A diffusers pipeline, U-Net or transformer.

    Raises:
        TypeError: It is something else.
    """
    denoisers = find_denoisers(target)
    if denoisers is None:
        raise TypeError(f"{type(target).__name__} is no diffusers pipeline, U-Net or transformer")
    return find_sites(inner(next(iter(denoisers.values()))))


def host_of(denoiser: Any) -> Host:
    """Describe a denoiser."""
    found = tuple(find_sites(denoiser))
    grids = {site.name: native_grid(denoiser, site) for site in found}
    size = getattr(denoiser.config, "sample_size", None)
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    known = None if size is None else (int(sides[0]), int(sides[1]))
    return Host(type(denoiser).__name__, found, grids, known)


def inner(module: Any) -> Any:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def refuse_caches(denoiser: Any) -> None:
    """Check that nothing skips layers in some steps, or gives them what they made in others.

    Raises:
        ValueError: Step caching of diffusers is on (FirstBlockCache, PAB, FasterCache, ...), by
            `enable_cache` or by hand, on any part of the denoiser.
    """
    registries = (vars(part).get("_diffusers_hook") for part in parts(denoiser))
    hooks = [hook for one in registries if one is not None for hook in one.hooks.values()]
    if getattr(denoiser, "is_cache_enabled", False) or any(hook._is_stateful for hook in hooks):
        raise ValueError(
            f"step caching is on in this {type(denoiser).__name__}; it would skip edited layers "
            "and mix the branches up; call disable_cache() first, or remove the hooks that were "
            "put on by hand"
        )


def refuse_parallel(denoiser: Any) -> None:
    """Check that a denoiser's attention isn't spread over processes.

    Raises:
        ValueError: It was given a ``parallel_config``, of context or of tensor parallelism.
    """
    if getattr(denoiser, "_parallel_config", None) is not None:
        raise ValueError(
            f"this {type(denoiser).__name__} runs in parallel over processes, each of which "
            "attends with a part of the tokens or heads, so edits would reach that part alone; "
            "load it without parallel_config"
        )


def is_pipeline(thing: Any) -> bool:
    """True if a thing is a diffusers pipeline."""
    return _is_a(thing, "DiffusionPipeline")


def _is_a(thing: Any, name: str) -> bool:
    """True if a thing is of a diffusers class, without loading diffusers."""
    return any(
        c.__name__ == name and c.__module__.startswith("diffusers.") for c in type(thing).__mro__
    )
