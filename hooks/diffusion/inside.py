"""A denoiser's call as its own ``forward`` sees it: inside of the hooks that others registered.

Hooks that look on see the pipeline's own calls alone. Hooks that change what the denoiser is given,
or what it returns, are a part of the model, and run in its branches, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.predictions import prediction_of
from regaze.hooks.diffusion.rows import call_by_name


@dataclass(frozen=True)
class Inside:
    """A call inside of others' hooks.

    Attributes:
        call: Arguments that ``forward`` was given, by name.
        output: Output that it returned.
        version: Number of writes to its prediction until then.
    """

    call: Mapping[str, Any]
    output: Any
    version: int

    @classmethod
    def of(cls, denoiser: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Inside:
        """The call of a denoiser, as it ends."""
        return cls(call_by_name(denoiser, args, kwargs), output, _version(output))

    def is_changed(self, call: Mapping[str, Any], output: Any) -> bool:
        """True if hooks changed something between a caller and this call.

        Args:
            call: What the caller gave, by name; written to in place, it's what branches get, too.
            output: What the caller got.
        """
        given = any(value is not call.get(name) for name, value in self.call.items())
        return given or output is not self.output or _version(output) != self.version


def _version(output: Any) -> int:
    found = prediction_of(output)
    return found._version if isinstance(found, Tensor) and not found.is_inference() else 0
