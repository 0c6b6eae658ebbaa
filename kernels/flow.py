"""The inverse of a flow, and the edges along which it carries noise.

It is written in torch for any device; every step is one rounded fp32 operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

INVERSE_STEPS = 8


def inverse_flow(flow: Tensor) -> Tensor:
    """Return the backward flow [2, H, W] of ``flow [2, H, W]``, both in pixels.

    It is the fixed point b <- -f(p + b(p)), with bilinear interpolation and clamped borders.
    """
    _, height, width = flow.shape
    x, y = _grid(flow)
    back, x, y = -flow, x.float(), y.float()
    for _ in range(INVERSE_STEPS):
        px, py = (x + back[0]).clamp(0, width - 1), (y + back[1]).clamp(0, height - 1)
        left, top = px.floor(), py.floor()
        a, b = px - left, py - top
        i, j = left.long(), top.long()
        right, below = (i + 1).clamp(max=width - 1), (j + 1).clamp(max=height - 1)
        upper = (1 - a) * flow[:, j, i] + a * flow[:, j, right]
        lower = (1 - a) * flow[:, below, i] + a * flow[:, below, right]
        back = -((1 - b) * upper + b * lower)
    return back


def _grid(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of each pixel of ``flow [2, H, W]``, int64 [H, W]."""
    rows, columns = (torch.arange(n, dtype=torch.int64, device=flow.device) for n in flow.shape[1:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x, y


def find_edges(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the edges of integer flows [2, H, W]: sources, targets, number of forward edges.

    Sources and targets are pixel indices [E]; the forward edges come first.
    """
    _, height, width = forward.shape
    x, y = _grid(forward)
    here = torch.arange(height * width, dtype=torch.int64, device=forward.device)

    def land(shift: Tensor) -> tuple[Tensor, Tensor]:
        far = float(height + width)
        moved = shift.clamp(-far, far).long()
        tx, ty = (x + moved[0]).flatten(), (y + moved[1]).flatten()
        inside = (tx >= 0) & (tx < width) & (ty >= 0) & (ty < height)
        return ty * width + tx, inside

    there, inside = land(forward)
    source, target = here[inside], there[inside]
    reached = torch.zeros(height * width, dtype=torch.bool, device=forward.device)
    reached[target] = True
    origin, inside = land(backward)
    grown = inside & ~reached
    return (
        torch.cat([source, origin[grown]]),
        torch.cat([target, here[grown]]),
        int(source.numel()),
    )
