"""What a reader made of the tables of `columns_page`: written about one stored run."""

from __future__ import annotations

from collections.abc import Mapping

READ_OF: Mapping[str, int] = {}
"""Sizes of the run that was read."""
READINGS: Mapping[str, str] = {}
"""By method."""
UNFIT: Mapping[str, str] = {}
"""Methods that `smol` says nothing about, and why."""
