"""The source of an edit: a picture's latents, step by step, and its attention to words.

`recorded` keeps those of a picture that is painted; `invert` (in `inversion`) those of a real one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """Latents of pictures, step by step.

    Attributes:
        latents: "T+1 S ...": of S pictures what each of T sampling steps begins with, the noise
            first, and the result.
        timesteps: "T", as the scheduler counts them.
        shares: "S N": what the picture's tokens give to the words, if that was read.
    """

    latents: Tensor
    timesteps: Tensor
    shares: Tensor | None = None

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
            raise ValueError(f"source {path} can't be read: {error}") from None
        latents, timesteps = found.get("latents"), found.get("timesteps")
        if latents is None or timesteps is None or len(latents) != len(timesteps) + 1:
            shapes = {name: tuple(x.shape) for name, x in found.items()}
            raise ValueError(
                f"{path} isn't the source of an edit, which holds latents of T + 1 states and T "
                f"timesteps: it holds {shapes}"
            )
        return cls(latents, timesteps, found.get("shares"))

    def keep(self) -> Path:
        """Where it lies in the cache, ``$XDG_CACHE_HOME/regaze/sources``; written if it is new."""
        from safetensors.torch import save

        parts = {"latents": self.latents, "timesteps": self.timesteps, "shares": self.shares}
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
        """What a step begins with, "S ...".

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

    def to(self, dtype: torch.dtype) -> Source:
        """The same in another dtype, to take less room."""
        return Source(self.latents.to(dtype), self.timesteps, self.shares)
