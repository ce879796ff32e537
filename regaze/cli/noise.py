"""Messages of libraries, kept off the terminal unless ``--debug`` asks for them."""

from __future__ import annotations

import importlib
import os

_state = {"shown": False}


def configure(*, shown: bool) -> None:
    """Say whether the libraries may speak; they read the environment when they are imported."""
    _state["shown"] = shown
    if not shown:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars that transformers' switch doesn't know


def hush(library: str) -> None:
    """Silence a library's remarks and bars, also if it was imported before.

    Args:
        library: ``transformers`` or ``diffusers``.
    """
    if not _state["shown"]:
        logging = importlib.import_module(f"{library}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
