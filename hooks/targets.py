"""The targets that users hand to `attach`, and the models behind them."""

from __future__ import annotations

from typing import Any

from torch import nn

from regaze.hooks.checks import shown


def split_target(target: Any, processor: Any = None) -> tuple[nn.Module, Any]:
    """The model and processor behind what a user attaches to: a model or a transformers pipeline.

    Raises:
        TypeError: Neither, or the processor is none; the message says what is expected.
    """
    refuse_wrapper(target)
    reads = ("tokenizer", "decode", "convert_ids_to_tokens")
    if processor is not None and not any(hasattr(processor, name) for name in reads):
        raise TypeError(
            "processor must be what turns text and pictures into the model's inputs, its processor "
            f"or tokenizer (AutoProcessor.from_pretrained(...)), got {shown(processor)}"
        )
    if isinstance(target, nn.Module):
        # torch.compile wraps the model; its modules are the original's.
        return getattr(target, "_orig_mod", target), processor
    model = getattr(target, "model", None)
    if isinstance(model, nn.Module):
        own = getattr(target, "processor", None) or getattr(target, "tokenizer", None)
        return model, processor or own
    first = hasattr(target, "resolve") and hasattr(target, "acts_on")
    cure = (
        "the model comes first: attach(model, spec)"
        if first
        else "load one with AutoModelForImageTextToText.from_pretrained(...)"
    )
    raise TypeError(
        f"a transformers model or pipeline is needed, got {type(target).__name__}; {cure}"
    )


def refuse_wrapper(target: Any) -> None:
    """Check that a target isn't something that only holds, or belongs to, what can be attached to.

    Raises:
        TypeError: It is; the message says what to attach to instead.
    """
    kinds = {kind.__name__ for kind in type(target).__mro__}
    name = type(target).__name__
    if isinstance(target, nn.DataParallel):
        raise TypeError(
            f"{name} runs copies of the model, which edits on the original wouldn't reach: attach "
            "to what it wraps, target.module, and call that"
        )
    if isinstance(target, nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"{name} wraps the model of this process: attach to it, target.module; calls of the "
            "wrapper are edited then, too"
        )
    if "ModularPipeline" in kinds:
        raise TypeError(
            f"{name} is a modular pipeline, whose blocks regaze can't follow: attach to a "
            "DiffusionPipeline made of the same parts, or to its U-Net or transformer alone"
        )
    if kinds & {"ProcessorMixin", "PreTrainedTokenizerBase", "BaseImageProcessor"}:
        raise TypeError(
            f"{name} is a processor, not a model: attach(model, ..., processor=processor)"
        )
