"""Warping tokens along a flow, its adjoint, and flows on token grids."""

from __future__ import annotations

import pytest
import torch
from flows import random_flow
from torch import Tensor

from regaze.hooks.diffusion.warp import consistent, corners, pooled, splat, to_tokens, warp
from regaze.interventions.diffusion.flow_maps import on_tokens, warp_matrix

ROWS, COLUMNS, SIZE = 5, 7, 3


def field(frames: int = 2, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(frames, ROWS, COLUMNS, 2, generator=generator, dtype=torch.float64)


def tokens(frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(frames, ROWS * COLUMNS, SIZE, generator=generator, dtype=torch.float64)


def test_a_warp_and_its_adjoint_are_the_matrix_of_bilinear_weights() -> None:
    flow, x = field(), tokens()
    matrix = torch.stack([warp_matrix(one.numpy()) for one in flow])
    torch.testing.assert_close(warp(x, corners(flow)), matrix @ x)
    torch.testing.assert_close(splat(x, corners(flow)), matrix.mT @ x)


def test_it_is_what_grid_sample_does() -> None:
    flow, x = field(), tokens()
    own = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    at = flow + torch.stack([own[1], own[0]], -1)
    grid = (2 * at + 1) / torch.tensor([COLUMNS, ROWS]) - 1
    picture = x.mT.reshape(2, SIZE, ROWS, COLUMNS)
    want = torch.nn.functional.grid_sample(
        picture, grid, padding_mode="border", align_corners=False
    )
    got = warp(x, corners(flow)).mT.reshape_as(want)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)])
def test_grids_without_neighbours(shape: tuple[int, int]) -> None:
    flow = torch.full((1, *shape, 2), 0.5)
    x = torch.randn(1, shape[0] * shape[1], 2)
    torch.testing.assert_close(warp(x, corners(flow)), warp_matrix(flow[0].numpy()).float() @ x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_whole_steps_move_tokens_bit_for_bit(dtype: torch.dtype) -> None:
    flow = torch.zeros(1, ROWS, COLUMNS, 2)
    flow[..., 0], flow[..., 1] = -2, 1
    x = tokens(1).to(dtype)
    moved = warp(x, corners(flow)).reshape(ROWS, COLUMNS, SIZE)
    picture = x.reshape(ROWS, COLUMNS, SIZE)
    assert torch.equal(moved[:-1, 2:], picture[1:, :-2])
    assert torch.equal(moved[-1, 2:], picture[-1, :-2])  # Beyond the edge: the edge.


@pytest.mark.parametrize("threshold", [None, 0.5, 15.0])
@pytest.mark.parametrize("grid", [(8, 6), (4, 3)])
def test_tokens_move_as_the_mean_of_their_moving_pixels(
    grid: tuple[int, int], threshold: float | None
) -> None:
    flow = torch.from_numpy(random_flow(3)).double()
    length = flow.norm(dim=-1)
    moving = length >= 0 if threshold is None else length > threshold
    got, moves = to_tokens(flow, grid, moving)
    for f in range(2):
        want, whether = on_tokens(flow[f].numpy(), *grid, threshold)
        torch.testing.assert_close(got[f], torch.from_numpy(want))
        assert torch.equal(moves[f], torch.from_numpy(whether))


def test_a_flow_shrinks_with_its_grid_and_a_coarse_one_grows() -> None:
    flow = torch.zeros(1, 8, 16, 2)
    flow[..., 0], flow[..., 1] = 4, 2
    moving = torch.ones(1, 8, 16, dtype=torch.bool)
    for grid, want in (((4, 8), (2, 1)), ((2, 8), (2, 0.5)), ((16, 32), (8, 4))):
        got, _ = to_tokens(flow, grid, moving)
        assert torch.equal(got, torch.tensor(want, dtype=torch.float32).expand(1, *grid, 2))
    assert torch.equal(pooled(torch.ones(1, 5, 7), (2, 3)), torch.ones(1, 2, 3))


def test_what_is_uncovered_or_enters_is_not_visible() -> None:
    # A block of 4 x 4 goes two pixels to the right on ground that stands still.
    backward, forward = torch.zeros(1, 12, 16, 2), torch.zeros(1, 12, 16, 2)
    backward[:, 4:8, 6:10, 0], forward[:, 4:8, 4:8, 0] = -2, 2
    seen = consistent(backward, forward)[0]
    uncovered = torch.zeros(12, 16, dtype=torch.bool)
    uncovered[4:8, 4:6] = True
    assert torch.equal(seen, ~uncovered)
    # The whole picture goes to the left: what comes in at the right edge wasn't there.
    seen = consistent(torch.full((1, 4, 6, 2), 2.0), torch.full((1, 4, 6, 2), -2.0))[0]
    assert torch.equal(seen[:2, :4], torch.ones(2, 4, dtype=torch.bool))
    assert not seen[:, 4:].any()
    assert not seen[2:].any()
