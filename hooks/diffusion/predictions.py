"""Outputs and samples of a denoiser: tensors, tuples or lists, read and remade."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.passes import Pass


def each(function: Callable[..., Tensor], *predictions: Any) -> Any:
    """Apply a function to predictions, which are tensors, or lists with a tensor for each row."""
    if isinstance(predictions[0], Tensor):
        return function(*predictions)
    return [function(*(x[None] for x in row))[0] for row in zip(*predictions, strict=True)]


def tiled(delta: Any, prediction: Any) -> Any:
    """The difference once for every branch of the batch."""
    times = len(prediction) // len(delta)
    if isinstance(delta, Tensor):
        return delta.repeat(times, *[1] * (delta.ndim - 1))
    return delta * times


def with_sample(pass_: Pass, args: Any, kwargs: dict[str, Any]) -> Any:
    """A call's arguments with the pass's sample, which denoisers take first."""
    name = pass_.family.sample
    if args:
        return (pass_.call[name], *args[1:]), kwargs
    return args, {**kwargs, name: pass_.call[name]}


def prediction_of(output: Any) -> Any:
    """The prediction in a denoiser's output."""
    return output if isinstance(output, Tensor) else output[0]


def trimmed(output: Any, batch: int) -> Any:
    """The output without rows that were added behind a batch."""
    prediction = prediction_of(output)
    return output if len(prediction) == batch else with_prediction(output, prediction[:batch])


def with_prediction(output: Any, prediction: Any) -> Any:
    """The output with another prediction."""
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    first = dataclasses.fields(output)[0].name
    return dataclasses.replace(output, **{first: prediction})
