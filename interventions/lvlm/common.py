"""Checks and layer choices that several methods share."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.hooks.checks import check_indices
from regaze.hooks.host import Host
from regaze.hooks.scorer import generates_by
from regaze.interventions.base import Intervention, get, names


def require_patches(method: str, host: Host) -> None:
    """Check that image patches are columns of the tower's attention.

    Raises:
        ValueError: They aren't; the message says which methods work on such a model.
    """
    require_images(method, host)
    if not host.image_columns:
        raise ValueError(
            f"{method} edits attention on image patches, but {host.model_type} has none as columns "
            f"of its text tower (its image goes through a resampler); {_able()}"
        )


def require_scores(method: str, host: Host) -> None:
    """Check that ``generate`` takes its scores from the model that was attached to.

    Raises:
        ValueError: It doesn't; the message says which methods work on such a model.
    """
    part = generates_by(host.model, host.tower)
    if part:
        raise ValueError(
            f"{method} edits next-token scores, but {host.model_type} generates with a part of "
            f"itself ({part}), not with the model that was attached to; {_able()}"
        )


def _able() -> str:
    able = [n for n in names(Intervention.acts_on) if not get(n).needs_image_columns]
    return f"these methods work on it: {', '.join(able)}"


def require_images(method: str, host: Host) -> None:
    """Check that image columns can be found.

    Raises:
        ValueError: They can't; the message says what to do.
    """
    if not host.has_images:
        raise ValueError(
            f"{method} needs to know where images are, but the config of this {host.model_type} "
            "names no image tokens; pass spans= (or use a model that takes images)"
        )


def require_again(method: str, host: Host) -> None:
    """Check that the last row of a prompt can be run again alone (`regaze.hooks.again`).

    Raises:
        ValueError: It can't; the message says why.
    """
    why = ""
    if host.recurrent:
        why = "some of its layers carry a state from token to token, which can't go back"
    elif host.model_type == "paligemma":
        why = "its prompts see all of themselves, so that every row would change"
    if why:
        raise ValueError(
            f"{method} runs the last token of a prompt again when it has seen what the prompt "
            f"predicts, which can't be done exactly on {host.model_type}: {why}"
        )


def choose_layers(
    method: str, host: Host, given: Sequence[int] | None, default: Sequence[int]
) -> tuple[int, ...]:
    """The layers asked for, checked, or the default ones.

    Args:
        method: The method's name.
        host: The model.
        given: Indices of layers, as the user names them.
        default: Ordinals among the layers that attend.

    Raises:
        ValueError: A layer doesn't exist, or has no attention.
    """
    if given is None:
        return tuple(host.sites[ordinal].layer for ordinal in default)
    check_indices(method, "layers", given, host.n_layers, f"this {host.model_type}")
    return tuple(host.site(layer).layer for layer in sorted(given))


def at_depth(of_32: int, n_layers: int) -> int:
    """The ordinal at the same relative depth as layer ``of_32`` of a 32-layer model."""
    return round(of_32 / 32 * n_layers)
