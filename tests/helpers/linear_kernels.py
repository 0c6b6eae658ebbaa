"""Stands in for the kernels of 8-bit layers: their signatures with plain arithmetic of torch.

Per token and per channel symmetric INT8, and E4M3; the products are exact in fp64.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accel import LinearConfig, Plan
from accel.linear.linear_site import LinearSite

FLOOR = 1e-12


@dataclass(frozen=True)
class Packed:
    """A packed weight: integers (or E4M3 values) [N, K], one scale per channel [N, 1]."""

    codes: Tensor
    scale: Tensor
    precision: str
    smooth: Tensor | None
    outliers: Tensor | None
    exact: Tensor | None
    impl: str = "reference"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device


def _quantize(x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    most = {"int8": 127.0, "fp8": 448.0}[precision]
    scale = x.abs().amax(-1, keepdim=True).clamp_min(FLOOR) / most
    scaled = x / scale
    if precision == "fp8":
        return scaled.to(torch.float8_e4m3fn), scale
    return scaled.round().nan_to_num().to(torch.int8), scale


def pack(
    weight: Tensor, *, precision: str = "int8", smooth: Tensor | None = None,
    outliers: Tensor | None = None, hadamard: bool = False, impl: str = "auto",
) -> Packed:  # fmt: skip
    """Pack ``weight`` [N, K]."""
    if impl not in ("auto", "reference"):
        raise RuntimeError(f"impl {impl!r} cannot run here: there is only the reference")
    w = weight.detach().float()
    w = w if smooth is None else w * smooth
    exact = None if outliers is None else w[:, outliers]
    if outliers is not None:
        w = w.index_fill(1, outliers, 0.0)
    codes, scale = _quantize(w, precision)
    return Packed(codes, scale, precision, smooth, outliers, exact)


def linear(
    x: Tensor, weight: Any, bias: Tensor | None = None, *, precision: str = "int8",
    impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Multiply ``x`` [..., K] by a packed weight [N, K]."""
    assert isinstance(weight, Packed) and weight.precision == precision
    rows = x.float()
    rows = rows if weight.smooth is None else rows / weight.smooth
    rest = None
    if weight.outliers is not None:
        rest = rows[..., weight.outliers].double() @ weight.exact.double().T
        rows = rows.index_fill(-1, weight.outliers, 0.0)
    codes, scale = _quantize(rows, precision)
    flat = codes.reshape(-1, codes.shape[-1]).double()
    # One row at a time would be as exact: sums of integers below 2^53 have no order.
    out = (flat @ weight.codes.double().T).view(*x.shape[:-1], -1)
    out = out * scale.double() * weight.scale.double().T
    out = out if rest is None else out + rest
    out = out if bias is None else out + bias.double()
    return torch.where(rows.isfinite().all(-1, keepdim=True), out, torch.nan).to(x.dtype)


def run(
    x: Tensor, packed: Any, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Multiply by a packed weight, as ``linear``, and apply one of two forms of GELU."""
    out = linear(x, packed, bias, precision=packed.precision)
    if activation is None:
        return out
    return F.gelu(out, approximate={"gelu": "none", "gelu_tanh": "tanh"}[activation])


def why_not(x: Tensor, weight: Any, precision: str, impl: str = "auto") -> str:
    """Return "", since plain torch runs everywhere."""
    return ""


def put_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let sites find this module as the kernels, and measure anew, into an empty cache."""
    from accel.kernels import measured
    from accel.linear import pays

    for user in ("linear_site", "packed"):
        monkeypatch.setattr(f"accel.linear.{user}.kernels", sys.modules[__name__])
    monkeypatch.setenv("ACCEL_MEASURE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(pays, "_known", {})
    monkeypatch.setattr(pays, "_doubts", {})
    monkeypatch.setattr(measured, "_load", lambda: 0.0)
    pays._file.cache_clear()


def ours(**options: Any) -> Plan:
    """Return a plan with 8-bit layers alone, for every call of at least 8 rows."""
    return Plan("t", None, linear=LinearConfig(**{"impl": "reference", "min_rows": 8, **options}))


def at_step(step: int | None = 3, run: int = 1) -> Any:
    """Return the state of a run of ten steps."""
    return SimpleNamespace(run=run, step=step, steps=10, refresh=lambda: run)


def site(state: Any = None, **options: Any) -> LinearSite:
    """Return a site without a model."""
    config = LinearConfig(**{"impl": "reference", "min_rows": 8, **options})
    return LinearSite("blocks.0.to_q", config, at_step() if state is None else state)


def called(at: LinearSite, layer: torch.nn.Linear, x: Tensor) -> Tensor:
    """Return the result of one call of a site."""
    return at.call(layer, layer.forward, x)
