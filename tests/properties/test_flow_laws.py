"""Laws of flows: where edges of the noise warp may lead, and what an inverse flow is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accel.kernels.flow import find_edges, inverse_flow

sides = st.integers(1, 7)


@st.composite
def flows(draw: st.DrawFn, wild: bool = True) -> Tensor:
    """[2, H, W] fp32; ``wild`` ones leave the picture too, and hold infinities."""
    height, width = draw(sides), draw(sides)
    numbers = st.integers(-12, 12).map(float)
    values = numbers | st.sampled_from([1e9, -1e9, torch.inf, -torch.inf]) if wild else numbers
    size = 2 * height * width
    return torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).view(2, height, width)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    forward = draw(flows())
    values = st.integers(-12, 12).map(float) | st.sampled_from([1e9, -torch.inf])
    back = draw(st.lists(values, min_size=forward.numel(), max_size=forward.numel()))
    return forward, torch.tensor(back).view_as(forward)


@given(pairs())
def test_edges_stay_inside_and_reach_what_they_can(pair: tuple[Tensor, Tensor]) -> None:
    forward, backward = pair
    _, height, width = forward.shape
    pixels = height * width
    source, target, first = find_edges(forward, backward)
    assert source.shape == target.shape and 0 <= first <= source.numel()
    for index in (source, target):
        assert not index.numel() or (int(index.min()) >= 0 and int(index.max()) < pixels)
    # Forward edges go where the flow says; each pixel has one at most.
    x, y = source[:first] % width, source[:first] // width
    dx, dy = (forward[i].flatten()[source[:first]].long() for i in (0, 1))
    assert torch.equal(target[:first], (y + dy) * width + x + dx)
    assert source[:first].unique().numel() == first
    # The others end where no forward edge does, once each.
    grown = target[first:]
    assert grown.unique().numel() == grown.numel()
    assert not set(grown.tolist()) & set(target[:first].tolist())


@given(sides, sides)
def test_no_motion_leaves_every_pixel_where_it_is(height: int, width: int) -> None:
    still = torch.zeros(2, height, width)
    source, target, first = find_edges(still, still)
    assert first == height * width
    assert torch.equal(source, target) and torch.equal(source, torch.arange(first))
    assert torch.equal(inverse_flow(still), still)


@given(sides, sides, st.floats(-4, 4, width=32), st.floats(-4, 4, width=32))
def test_the_inverse_of_a_pan_is_the_pan_back(
    height: int, width: int, dx: float, dy: float
) -> None:
    flow = torch.tensor([dx, dy]).view(2, 1, 1).expand(2, height, width).contiguous()
    torch.testing.assert_close(inverse_flow(flow), -flow, rtol=0, atol=1e-6)


@given(flows(wild=False))
def test_an_inverse_is_no_longer_than_the_flow(flow: Tensor) -> None:
    """It is an average of the flow's values, so it never leaves their range."""
    back = inverse_flow(flow)
    assert back.shape == flow.shape and bool(back.isfinite().all())
    for i in (0, 1):
        assert -float(flow[i].max()) - 1e-5 <= float(back[i].min())
        assert float(back[i].max()) <= -float(flow[i].min()) + 1e-5


@settings(max_examples=15)
@given(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02), st.floats(-1.5, 1.5))
def test_there_and_back_is_nowhere(a: float, b: float, pan: float) -> None:
    """A gentle affine flow and its inverse cancel inside the picture."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    flow = torch.stack([a * (columns - 12) + b * (rows - 12) + pan, a * (rows - 12)])
    back = inverse_flow(flow)
    x, y = columns + back[0], rows + back[1]
    ahead = torch.stack([a * (x - 12) + b * (y - 12) + pan, a * (y - 12)])
    inner = (slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close((ahead + back)[inner], torch.zeros(2, 16, 16), rtol=0, atol=1e-4)
