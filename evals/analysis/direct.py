"""Direct effect of each head on the answer's logit (direct logit attribution).

What a head puts out at the prompt's last row goes through its part of the output projection into
the residual stream, and from there, besides what later layers make of it, straight through the
final norm to the unembedding. With y and n the likeliest spellings of yes and of no, and the norm's
scale s (its gain is g) frozen at what the run had:

    direct(l, h) = (s g W_O[h] A[l, h]) . (u_y - u_n)

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021). The sum over heads and
the rest (embeddings, MLPs, biases) is the difference of logits exactly. Freezing is the
approximation: without the head the scale would be another one. What later layers do with a head's
output isn't in it either; that is in its ablation.

How a model adds attention to its residual stream is read off the run and proven there, layer by
layer; where it can't be, it raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regaze.evals.analysis.asked import Batch, Subject
from regaze.evals.analysis.frozen import Frozen, agree, fit, freeze
from regaze.evals.analysis.maps import HeadMap, Means
from regaze.hooks.host import Host

_OUT = ("o_proj", "out_proj", "dense", "wo", "c_proj", "proj")


@dataclass(frozen=True)
class Effects:
    """Direct effects on a difference of logits.

    Attributes:
        heads: By layer, "B H" float64.
        rest: "B": what else makes up the difference.
        difference: "B": logit of yes less logit of no, likeliest spellings.
    """

    heads: Mapping[int, Tensor]
    rest: Tensor
    difference: Tensor


class DirectEffect:
    """Direct effects on the difference between yes and no."""

    name = "direct"

    def __init__(self, subject: Subject) -> None:
        if not subject.task.yes_no:
            raise ValueError(
                f"{subject.task.name} isn't answered by yes or no, so there is no difference of "
                "logits to attribute"
            )
        if subject.answerer.yes_no is None:
            raise ValueError("the tokenizer writes yes or no in pieces, so neither has a logit")
        self._host = subject.host
        if not self._host.family.one_stream:
            raise ValueError(
                f"{self._host.model_type} runs several residual streams side by side, into which "
                "direct effects can't be followed"
            )
        self._subject, self._yes_no = subject, subject.answerer.yes_no
        self._yes, self._right = Means(), Means()
        self._rest: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Run a batch, and share out its differences."""
        found = direct_effects(self._host, self._subject, batch, *self._yes_no)
        signs = right_signs([item.target for item in batch.items])
        for layer, effects in found.heads.items():
            self._yes.add(layer, effects)
            self._right.add(layer, effects * signs[:, None])
        self._rest.append(found.rest / found.difference)

    def maps(self) -> list[HeadMap]:
        """Towards the right answer, and towards yes."""
        sizes = self._host.n_layers, self._host.n_heads
        about = (
            "What a head's output at the last row adds to the difference of logits by itself, "
            "through the output projection and the final norm with its scale frozen at the run's; "
            "the sum over heads and the rest is the difference."
        )
        return [
            HeadMap(
                "direct",
                "Direct effect on the right answer",
                "logits",
                self._right.table(*sizes),
                about=about,
            ),
            HeadMap(
                "direct_yes", "Direct effect on yes", "logits", self._yes.table(*sizes), about=about
            ),
        ]


def right_signs(targets: list[Any]) -> Tensor:
    """1 where yes is right, -1 where no is: "B"."""
    return torch.tensor([1.0 if one == "yes" else -1.0 for one in targets], dtype=torch.float64)


@torch.inference_mode()
def direct_effects(
    host: Host, subject: Subject, batch: Batch, yes: list[int], no: list[int]
) -> Effects:
    """Share out the difference of logits of the likeliest spellings of yes and no.

    Raises:
        ValueError: How the model adds up its residual stream can't be told.
    """
    if not bool(batch.inputs["attention_mask"][:, -1].all()):
        raise ValueError("direct effects are read at the last row: pad prompts on the left")
    model = subject.model
    with _watching(host) as seen:
        logits = subject.read(batch).logits[:, -1].double()
    dtype = model.dtype
    norm = _final_norm(host)
    if norm not in seen.inputs:
        raise _untold(host, "its final norm isn't run where it was looked for")
    head: nn.Module = model.get_output_embeddings()
    table: Tensor = head.weight.detach().double()  # type: ignore[union-attr,operator]
    extra: Any = getattr(head, "bias", None)
    shift = 0.0 if extra is None else extra.detach().double()
    final = seen.outputs[norm].double()
    factor = fit(final @ table.mT + shift, logits, dtype)
    frozen = freeze(norm, seen.inputs[norm], seen.outputs[norm], dtype)
    if factor is None or frozen is None:
        raise _untold(host, "its logits aren't the unembedding of a normed stream times a number")
    rows = torch.arange(len(logits), device=logits.device)
    one, other = (
        torch.tensor(ids, device=logits.device)[logits[:, ids].argmax(-1)] for ids in (yes, no)
    )
    difference = logits[rows, one] - logits[rows, other]
    direction = frozen.back((table[one] - table[other]) * factor[:, None])
    heads = {site.layer: _of_layer(host, site.layer, seen, direction, dtype) for site in host.sites}
    rest = difference.cpu() - sum(effects.sum(-1) for effects in heads.values())
    return Effects(heads, rest, difference.cpu())


def _of_layer(host: Host, layer: int, seen: _Seen, direction: Tensor, dtype: torch.dtype) -> Tensor:
    """Direct effects "B H" of one layer's heads."""
    project = _projection(host, layer)
    if project not in seen.inputs:
        raise _untold(host, f"layer {layer} doesn't call its output projection")
    device = seen.inputs[project].device
    put_out, added = _added(host, layer, seen, dtype)
    towards = direction.to(device) * added[:, None]
    if put_out is not None:
        towards = put_out.back(towards)
    weight: Tensor = project.weight.detach().double()  # type: ignore[union-attr,operator]
    back = towards @ weight  # "B H*D"
    outputs = seen.inputs[project].double()
    if not agree(outputs @ weight.mT + _bias(project), seen.outputs[project], dtype):
        raise _untold(host, f"the output projection of layer {layer} isn't a matrix product")
    effects: Tensor = (back * outputs).unflatten(-1, (host.n_heads, -1)).sum(-1).cpu()
    return effects


def _added(host: Host, layer: int, seen: _Seen, dtype: torch.dtype) -> tuple[Frozen | None, Tensor]:
    """A norm behind the output projection, if there is one, and the factor "B" behind it.

    Proven by what goes into another part of the layer: the stream that came in plus that.
    """
    module: Any = host.tower.layers[layer]  # type: ignore[index]
    entering = seen.inputs[module].double()
    out = seen.outputs[_projection(host, layer)].double()
    parts = [child for child in module.children() if child in seen.inputs]
    behind: Frozen | None = None
    for child in parts:
        if child in seen.outputs and agree(seen.inputs[child], out, dtype):
            behind = freeze(child, seen.inputs[child], seen.outputs[child], dtype)
            out = seen.outputs[child].double()
            break
    for child in parts:
        rise = seen.inputs[child].double() - entering
        factor = fit(out, rise, dtype)
        # Of a rise that is small beside the stream little but rounding would be left.
        if factor is None and agree(entering + out, seen.inputs[child], dtype):
            factor = torch.ones_like(out[:, 0]) if _moved(rise) else None
        if factor is not None and bool((factor.abs() > 1e-6).all()):
            return behind, factor
    raise _untold(host, f"layer {layer} doesn't add its attention to its input")


def _moved(rise: Tensor) -> bool:
    return bool((rise.norm(dim=-1) > 0).all())


@dataclass
class _Seen:
    """Last rows "B E" of what went into modules and came out of them."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook before a module."""
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and given.ndim == 3:
            self.inputs[module] = given[:, -1].detach()

    def behind(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook behind it."""
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor) and output.ndim == 3:
            self.outputs[module] = output[:, -1].detach()


@contextmanager
def _watching(host: Host) -> Iterator[_Seen]:
    """Keep the last rows of layers, of their parts, of output projections and of the final norm."""
    seen, handles = _Seen(), []
    watched: list[nn.Module] = [_final_norm(host)]
    for site in host.sites:
        layer: nn.Module = host.tower.layers[site.layer]  # type: ignore[index,assignment]
        watched += [layer, *layer.children(), _projection(host, site.layer)]
    try:
        for module in dict.fromkeys(watched):
            handles.append(module.register_forward_pre_hook(seen.before, with_kwargs=True))
            handles.append(module.register_forward_hook(seen.behind))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _final_norm(host: Host) -> nn.Module:
    for name in ("norm", "final_layernorm", "ln_f", "final_layer_norm"):
        found = getattr(host.tower, name, None)
        if isinstance(found, nn.Module):
            return found
    raise _untold(host, "its final norm isn't found")


def _projection(host: Host, layer: int) -> nn.Module:
    attention = host.attention(layer)
    for name in _OUT:
        found = getattr(attention, name, None)
        weight = getattr(found, "weight", None)
        plain = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
        if isinstance(found, nn.Module) and plain:
            return found
    raise _untold(host, f"layer {layer} has no output projection with plain weights")


def _bias(project: nn.Module) -> Tensor | float:
    bias: Any = getattr(project, "bias", None)
    return 0.0 if bias is None else bias.detach().double()


def _untold(host: Host, why: str) -> ValueError:
    return ValueError(f"direct effects can't be told in this {host.model_type}: {why}")
