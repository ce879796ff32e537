"""Re-aim attention in pretrained vision-language and diffusion models, without training."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy
from regaze.requirements import check

if TYPE_CHECKING:
    from regaze.evals.verify import Certificate as Certificate
    from regaze.evals.verify import verify as verify
    from regaze.hooks import Attachment as Attachment
    from regaze.hooks import Report as Report
    from regaze.hooks import attach as attach
    from regaze.interventions import *  # noqa: F403
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)

__version__ = _version("regaze")

check()
