"""TPG: guidance away from a branch whose tokens are shuffled inside chosen transformer blocks.

In the perturbed branch the tokens that enter a listed block are permuted at random, residual stream
included, and never put back:

    eps + s (eps_cond - eps_perturbed)

arXiv 2506.10036; code TaatiTeam/Token-Perturbation-Guidance@6ee5a2b (SDXL). A U-Net's blocks know
nothing of places, so block(P x) = P block(x), and a run of listed blocks in one spatial transformer
is one permutation of the plain tokens at its end, the blocks' composed; then the spatial
transformer adds its own input, unpermuted. Composed uniform permutations are uniform: so each
spatial transformer with a chosen layer draws one, and whichever of its blocks are listed, the
distribution is the same.

The code draws from the device's global generator. Here a permutation is drawn from ``seed``, the
timestep and the spatial transformer's path, so that a run repeats itself; all samples share it, as
in the code. Blocks of transformers have positions inside (rotary tables), where the method would be
another one, of which the paper has no code: these are refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import shown
from regaze.hooks.diffusion.fork import Instead
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Guidance, transformer_of
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.guided import Guided

_INSIDE = re.compile(r"(.*)\.transformer_blocks\.(\d+)\.attn1")
_CODE = "arXiv 2506.10036, code TaatiTeam/Token-Perturbation-Guidance@6ee5a2b"


@register
@dataclass(frozen=True)
class TPG(Guided):
    """Token-perturbation guidance, on U-Nets.

    Attributes:
        layers: Layers whose spatial transformers shuffle; by default those of the deepest down
            block that attends, which in SDXL are the code's.
        seed: Seed of the permutations, with the timestep and the spatial transformer.
    """

    name: ClassVar[str] = "tpg"
    summary: ClassVar[str] = "guide away from a branch whose tokens are shuffled"
    paper: ClassVar[str] = "arXiv 2506.10036"
    presets: ClassVar[Mapping[str, Preset]] = {
        "sdxl": Preset({"scale": 3.0, "layers": ("down_blocks.2",)}, _CODE),
    }

    seed: int = 0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"tpg: seed must be a whole number, got {shown(self.seed)}")

    def literal(self) -> GuidanceForm:
        """A whole second pass with tokens permuted where they enter the first chosen block."""
        return GuidanceForm(
            self.layers or (), self.literal_map, self.weight, self.start, self.stop,
            around=self._permuting,
        )  # fmt: skip

    def literal_map(self, m: Map) -> Tensor:
        """The maps of the shuffled tokens."""
        return m.weights

    def sites(self, denoiser: Host) -> list[Site]:
        """The chosen layers.

        Raises:
            ValueError: One names no layer, or none that is in a U-Net's spatial transformer.
        """
        inside = [site for site in denoiser.layers if _is_inside(site)]
        if not inside:
            raise ValueError(
                f"tpg: {denoiser.model} has no spatial transformers: it shuffles the tokens of a "
                "U-Net's blocks, which know nothing of places; pag and seg act on transformers"
            )
        if self.layers is None:
            down = [site.block for site in inside if site.block.startswith("down_blocks")]
            block = down[-1] if down else inside[0].block
            return [site for site in inside if site.block == block]
        found = super().sites(denoiser)
        for site in found:
            if not _is_inside(site):
                raise ValueError(
                    f"tpg: {site.name} isn't self-attention inside a spatial transformer, whose "
                    "tokens could be shuffled"
                )
        return found

    def bind(self, host: Host) -> Guidance:
        """Make the guidance."""
        sites = self.sites(host)
        ends = {last_block(host, site): transformer_of(site) for site in sites}
        instead = {end: self._shuffled(transformer) for end, transformer in ends.items()}
        return _Shuffling(tuple(sites), instead=instead, **self.window())

    def permutation(self, transformer: str, t: float, tokens: int) -> Tensor:
        """The token that each place of a spatial transformer's end gets at a timestep.

        Args:
            transformer: Path of the spatial transformer.
            t: The timestep.
            tokens: Number of its tokens.
        """
        text = f"{self.seed} {float(t)!r} {transformer}"
        draw = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return torch.randperm(tokens, generator=draw, device="cpu")

    def _shuffled(self, transformer: str) -> Callable[[Pass], Instead]:
        def made(pass_: Pass) -> Instead:
            if (pass_.call.get("cross_attention_kwargs") or {}).get("ip_adapter_masks") is not None:
                raise ValueError(
                    "tpg: masks of an IP-Adapter say where in the picture its images act, so its "
                    "blocks know of places, which shuffled tokens don't have; leave the masks out"
                )

            def shuffle(run: Callable[[], Any], arguments: Mapping[str, Any]) -> Any:
                output: Tensor = run()
                order = self.permutation(transformer, pass_.timestep, output.shape[1])
                return output[:, order.to(output.device)]

            return shuffle

        return made

    def _permuting(self, denoiser: Any, t: float) -> AbstractContextManager[None]:
        """A hook that permutes the tokens that enter the first chosen block of each transformer."""
        first: dict[str, str] = {}
        for layer in self.layers or ():
            transformer, number = _split(str(layer))
            first.setdefault(transformer, f"{transformer}.transformer_blocks.{number}")

        def hook(transformer: str) -> Callable[..., Any]:
            def permute(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                (hidden, *rest) = args
                order = self.permutation(transformer, t, hidden.shape[1])
                return (hidden[:, order], *rest), kwargs

            return permute

        @contextmanager
        def hooked() -> Iterator[None]:
            with ExitStack() as stack:
                for transformer, block in first.items():
                    module = denoiser.get_submodule(block)
                    handle = module.register_forward_pre_hook(hook(transformer), with_kwargs=True)
                    stack.callback(handle.remove)
                yield

        return hooked()


class _Shuffling(Guidance):
    """Guidance whose edits are no attention calls, so that their effect isn't measured there."""

    measured: ClassVar[bool] = False
    shuffles: ClassVar[bool] = True


def _is_inside(site: Site) -> bool:
    return (
        site.kind == "self"
        and site.block.partition(".")[0] in _PARTS
        and (_INSIDE.fullmatch(site.name) is not None)
    )


_PARTS = ("down_blocks", "mid_block", "up_blocks")


def _split(name: str) -> tuple[str, int]:
    """The spatial transformer that a layer's name says, and the number of the block in it."""
    path, _, number = name.removesuffix(".attn1").rpartition(".transformer_blocks.")
    return path, int(number)


def last_block(host: Host, site: Site) -> str:
    """Path of the last block of the spatial transformer that a layer is in."""
    transformer = transformer_of(site)
    blocks = [s for s in host.sites if _is_inside(s) and transformer_of(s) == transformer]
    return f"{transformer}.transformer_blocks.{max(_split(s.name)[1] for s in blocks)}"
