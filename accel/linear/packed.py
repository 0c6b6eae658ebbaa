"""The packed copies of one layer's weight, and how it is noticed that the weight is another now.

A weight changes when a LoRA is fused, and PEFT does that by ``weight.data +=``, which neither moves
it nor counts in its version. So its values are looked at: a few spread ones before every call on a
CPU, elsewhere once a step; and all of them, as one sum of bits per row, where a run begins, where
the step is unknown and where the weight lies elsewhere than before. Sums of all rows take about one
hundredth of the time of a product with 1,024 rows.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from accel.attention.site_record import Now
from accel.config import LinearConfig, LinearPrecision
from accel.kernels import linear as kernels
from accel.kernels.packed_weight import Packed
from accel.kernels.reference_linear import smoothing

GRID = 16  # rows and columns of the values that are looked at before a call


class PackedWeight:
    """Packed copies by precision, of one weight.

    ``packs`` counts how often the weight was packed, ``changes`` how often it was another one.
    """

    def __init__(self, config: LinearConfig) -> None:
        self.packs = self.changes = 0
        self._config = config
        self._copies: dict[str, Packed] = {}
        self._place: Hashable = None
        self._now: Now = (-1, None)
        self._grid = self._sums = torch.empty(0, dtype=torch.int64, device="cpu")
        self._view: Tensor | None = None
        self._options: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(copy.nbytes for copy in self._copies.values())

    def find(self, weight: Tensor, x: Tensor, precision: LinearPrecision, now: Now) -> Packed:
        """Return the packed copy for a call with input ``x`` [rows, K]; packs if there is none.

        A copy lies on the input's device.
        """
        if self._copies and not self._same(weight, now):
            self.changes += 1
            self.clear()
        copy = self._copies.get(precision)
        if copy is None or copy.device != x.device:
            if not self._copies:
                self._place, self._now = _place(weight), now
                self._look(weight)
                self._grid, self._sums = _grid(weight).clone(), _sums(weight)
            copy = self._pack(weight, x, precision)
            self._copies[precision] = copy
        return copy

    def held(self, precision: str, device: torch.device) -> Packed | None:
        """Return the copy for calls on a device, None if there is none."""
        copy = self._copies.get(precision)
        return copy if copy is not None and copy.device == device else None

    def moved(self, weight: Tensor) -> None:
        """Note that the weight was moved by us and holds the same."""
        self._place, self._grid, self._sums = (
            _place(weight), self._grid.to(weight.device), self._sums.to(weight.device)
        )  # fmt: skip
        self._look(weight)

    def _look(self, weight: Tensor) -> None:
        """Keep a view of the values that are looked at; it would keep a card's memory taken."""
        self._view = _grid(weight) if weight.is_cpu else None

    def clear(self) -> None:
        """Drop all copies."""
        self._copies.clear()
        self._view = None

    def _same(self, weight: Tensor, now: Now) -> bool:
        place, (run, step) = _place(weight), now
        if place != self._place or run != self._now[0] or step is None:
            same = torch.equal(_sums(weight), self._sums.to(weight.device))
            if same and place != self._place:
                self.moved(weight)
        else:
            looked = now == self._now and not weight.is_cpu
            values = _grid(weight) if self._view is None else self._view
            same = looked or torch.equal(values, self._grid)
        self._place, self._now = place, now
        return same

    def _pack(self, weight: Tensor, x: Tensor, precision: LinearPrecision) -> Packed:
        config, here = self._config, weight.detach().to(x.device)
        if self._options is None:
            self._options = _options(config, here, x)
        packed = kernels.pack(
            here, precision=precision, hadamard=config.hadamard, impl=config.impl, **self._options
        )
        self.packs += 1
        return packed


def _place(weight: Tensor) -> Hashable:
    """Return where a weight lies and in which version; without a version, equal to nothing."""
    version = object() if weight.is_inference() else weight._version
    return weight.data_ptr(), weight.device, weight.dtype, weight.shape, weight.stride(), version


def _bits(values: Tensor) -> Tensor:
    """Return the same memory as integers, so that a NaN equals itself."""
    return values.view({2: torch.int16, 4: torch.int32}[values.element_size()])


def _grid(weight: Tensor) -> Tensor:
    rows, columns = (max(1, n // GRID) for n in weight.shape)
    return _bits(weight.detach()[rows // 2 :: rows, columns // 2 :: columns])


def _sums(weight: Tensor) -> Tensor:
    """Return the sum of each row's bits, int64 [N]."""
    rows = weight.detach()
    wide = rows.is_contiguous() and rows.shape[1] * rows.element_size() % 8 == 0
    if wide and rows.data_ptr() % 8 == 0:
        return rows.view(torch.int64).sum(1)
    return _bits(rows).sum(1, dtype=torch.int64)


def _options(config: LinearConfig, weight: Tensor, x: Tensor) -> dict[str, Any]:
    """Return how a weight is packed beside its precision, by the ranges of a first input [M, K]."""
    if not config.smooth and not config.outliers:
        return {}
    options: dict[str, Any] = {}
    peaks = x.detach().float().abs().amax(0)
    if config.outliers:
        ranges = peaks.nan_to_num(1.0, posinf=1.0)
        options["outliers"] = ranges.topk(min(config.outliers, len(ranges))).indices.sort().values
    if config.smooth:
        options["smooth"] = smoothing(peaks, weight)
    return options
