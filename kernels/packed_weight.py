"""A linear layer's weight made ready for one implementation, and the call that uses it.

``Packed`` is handed from the public op (``kernels/linear.py``) to the launcher that runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "silu")  # in csrc's order
MOST_INPUTS = 1 << 17  # K * 127 * 127 must fit 32 bits


def packed_bytes(channels: int, inputs: int, *, smooth: bool, outliers: int) -> int:
    """Return the bytes of a packed weight [channels, inputs] in 8 bits; the most of all layouts.

    ``outliers``: columns that are not quantized.
    """
    kept, wide, deep = min(outliers, inputs), -(-channels // 16) * 16, -(-inputs // 16) * 16
    codes, scales = wide * deep, wide * 8  # a scale, and on the CPU a correction
    factor = 4 * inputs if smooth or kept else 0
    return codes + scales + factor + kept * (8 + 4 * wide)


@dataclass(frozen=True, eq=False)
class Packed:
    """The weight [N, K] of a linear layer; tensors in it must not be modified.

    Args:
        shape: (N, K).
        precision: "int8", "fp8", or "full", where ``codes`` is the weight itself.
        impl: What it was packed for: "cpu-avx2" and the like, "gpu", "reference" or "torch".
        codes: In the layout of ``impl``; "reference": [N, K].
        scale: fp32, one per channel, and for the CPU padded to 16 channels.
        correction: int32, what the offset of x's codes adds to each channel's sum (CPU).
        factor: fp32 [K], multiplies x: 1 / smooth.
        outliers: int64 [O], columns of x that are not quantized.
        outlier_weight: fp32 [O, N], padded as ``scale``.
        hadamard: Whether rows are rotated.
    """

    shape: tuple[int, int]
    precision: str
    impl: str
    codes: Tensor
    scale: Tensor | None = None
    correction: Tensor | None = None
    factor: Tensor | None = None
    outliers: Tensor | None = None
    outlier_weight: Tensor | None = None
    hadamard: bool = False

    @property
    def device(self) -> torch.device:
        """Device that holds the codes."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self._tensors().values())

    def to(self, device: torch.device | str) -> Packed:
        """Return the same on another device of the kind it was packed for.

        Raises ValueError where its layout is of no use there.
        """
        there = torch.device(device)
        if self.impl.startswith("cpu-") and there.type != "cpu":
            raise ValueError(f"packed for {self.impl}; pack the weight again on {there}")
        moved = {name: x.to(there) for name, x in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: x for name, x in values if isinstance(x, Tensor)}
