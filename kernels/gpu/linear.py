# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""8-bit linear layers on a card: rows quantized in one kernel, torch's products, one epilogue.

Method as in ``kernels/reference_linear.py``, with the same codes bit for bit: divisions round to
nearest and nothing is fused. INT8: ``torch._int_mm`` gives exact sums, and ``_finish`` applies
scales, bias, outliers and activation in one pass, so rows are independent bit for bit. E4M3
(compute capability 8.9 and up, bf16 only): ``torch._scaled_mm`` with a scale per row and channel.

Layout: codes of x [M', K'], of the weight [N', K']; M' at least 32, K' and N' multiples of 16,
which torch's products need, with zeros in the padding of K. Outliers are a zero in ``factor``, so
that one multiplication smooths and takes them out. Trade-off: sums go through memory in 32 bits,
4 N bytes a row, which a product of our own could keep in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.packed_weight import ACTIVATIONS, Packed

LEAST_ROWS, MULTIPLE = 32, 16
FLOOR = tl.constexpr(1e-30)  # as SCALE_FLOOR of the reference
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds half to even
BLOCK = 1024


@triton.jit
def _load(x_ptr, factor_ptr, k, columns, x_sc, HAS_FACTOR: tl.constexpr):
    """Return columns k [BLOCK] of a row in fp32, smoothed."""
    x = tl.load(x_ptr + k.to(tl.int64) * x_sc, mask=k < columns, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        x = x * tl.load(factor_ptr + k, mask=k < columns, other=0.0)
    return x


@triton.jit(do_not_specialize=["columns"])
def _quantize(
    x_ptr, factor_ptr, codes_ptr, scale_ptr, columns, padded, x_sr, x_sc,
    BLOCK: tl.constexpr, HAS_FACTOR: tl.constexpr, E4M3: tl.constexpr,
):  # fmt: skip
    """Store codes [padded] and scale of one row of x; columns from ``columns`` on are zero."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_sr
    codes_ptr += row * padded
    top = tl.zeros([BLOCK], tl.float32)
    poison = tl.zeros([BLOCK], tl.float32)  # NaN where x is not finite, which a maximum would hide
    for start in range(0, columns, BLOCK):
        x = _load(x_ptr, factor_ptr, start + tl.arange(0, BLOCK), columns, x_sc, HAS_FACTOR)
        top = tl.maximum(top, tl.abs(x))
        poison += x * 0.0
    peak = tl.max(top, 0) + tl.sum(poison, 0)
    peak = tl.where(peak < FLOOR, FLOOR, peak)  # keeps NaN
    scale = tl.div_rn(peak, 448.0 if E4M3 else 127.0)
    inverse = tl.div_rn(1.0, scale)
    tl.store(scale_ptr + row, scale)
    for start in range(0, padded, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = _load(x_ptr, factor_ptr, k, columns, x_sc, HAS_FACTOR) * inverse
        if E4M3:
            tl.store(codes_ptr + k, x.to(tl.float8e4nv), mask=k < padded)
        else:
            tl.store(codes_ptr + k, ((x + ROUND) - ROUND).to(tl.int8), mask=k < padded)


@triton.jit
def _activate(y, ACTIVATION: tl.constexpr):
    """Return y after the activation, in fp32."""
    if ACTIVATION == "gelu":
        y = y * 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    return y


@triton.jit(do_not_specialize=["channels", "outliers", "bias_s"])
def _finish(
    sums_ptr, row_scale_ptr, scale_ptr, bias_ptr, kept_ptr, outlier_weight_ptr, out_ptr,
    channels, padded, outliers, bias_s,
    BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OUTLIERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store BLOCK channels of one row of the result from sums int32 [M', padded]."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = n < channels
    y = tl.load(sums_ptr + row * padded + n, mask=real, other=0).to(tl.float32)
    y = y * tl.load(row_scale_ptr + row) * tl.load(scale_ptr + n, mask=real, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n.to(tl.int64) * bias_s, mask=real, other=0.0).to(tl.float32)
    if HAS_OUTLIERS:
        for o in range(outliers):
            weight = tl.load(outlier_weight_ptr + o * padded + n, mask=real, other=0.0)
            y += tl.load(kept_ptr + row * outliers + o) * weight
    y = _activate(y, ACTIVATION)
    tl.store(out_ptr + row * channels + n, y.to(out_ptr.dtype.element_ty), mask=real)


def quantize_rows(
    x: Tensor, factor: Tensor | None, precision: str, *, least: int = LEAST_ROWS
) -> tuple[Tensor, Tensor]:
    """Quantize x [M, K], any strides, after multiplying by ``factor`` fp32 [K].

    Returns codes [M', K'], int8 or with "fp8" E4M3, and scale fp32 [M', 1]. Rows from M on are not
    written and their products are not read.
    """
    rows, columns = x.shape
    padded = triton.cdiv(max(columns, 1), MULTIPLE) * MULTIPLE
    e4m3 = precision == "fp8"
    dtype = torch.float8_e4m3fn if e4m3 else torch.int8
    codes = x.new_empty(max(rows, least), padded, dtype=dtype)
    scale = x.new_empty(max(rows, least), 1, dtype=torch.float32)
    if rows < least:
        codes.view(torch.int8)[rows:] = 0
        scale[rows:] = 1
    if rows:
        _quantize[(rows,)](
            x, scale if factor is None else factor, codes, scale, columns, padded, *x.stride(),
            BLOCK=BLOCK, HAS_FACTOR=factor is not None, E4M3=e4m3, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    return codes, scale


def pack(
    shape: tuple[int, int],
    precision: str,
    codes: Tensor,
    scale: Tensor,
    factor: Tensor | None,
    outliers: Tensor | None,
    outlier_weight: Tensor | None,
) -> Packed:
    """Pad codes [N, K], scale [N] and outlier_weight [O, N] as torch's products need them."""
    channels, columns = shape
    down, right = -channels % MULTIPLE or 0, -columns % MULTIPLE
    if not channels:
        down = MULTIPLE
    if not columns:
        right = MULTIPLE
    raw = torch.nn.functional.pad(codes.view(torch.int8), (0, right, 0, down)).contiguous()
    if outliers is not None:
        ones = torch.ones(columns, dtype=torch.float32, device=codes.device)
        factor = ones if factor is None else factor.clone()
        factor[outliers] = 0
        assert outlier_weight is not None
        outlier_weight = torch.nn.functional.pad(outlier_weight, (0, down)).contiguous()
    return Packed(
        shape, precision, "gpu", raw.view(codes.dtype),
        torch.nn.functional.pad(scale, (0, down), value=1.0).contiguous(), None, factor, outliers,
        outlier_weight,
    )  # fmt: skip


def linear(x: Tensor, packed: Packed, bias: Tensor | None, activation: str) -> Tensor:
    """Run a layer on x [M, K], any strides; returns [M, N] in x's dtype.

    ``activation``: a name in ``ACTIVATIONS``. With "fp8", x is bf16.
    """
    assert packed.scale is not None and activation in ACTIVATIONS
    rows, channels = x.shape[0], packed.shape[0]
    codes, scale = quantize_rows(x, packed.factor, packed.precision)
    kept = None if packed.outliers is None else x[:, packed.outliers].float().contiguous()
    if packed.precision == "fp8":
        return _scaled(x, codes, scale, kept, packed, bias, activation)
    sums = torch._int_mm(codes, packed.codes.T)
    out = x.new_empty(rows, channels)
    if out.numel():
        _finish[(rows, triton.cdiv(channels, BLOCK))](
            sums, scale, packed.scale, scale if bias is None else bias,
            scale if kept is None else kept,
            scale if packed.outlier_weight is None else packed.outlier_weight, out,
            channels, sums.shape[1], 0 if kept is None else kept.shape[1],
            0 if bias is None else bias.stride(0), BLOCK=BLOCK, HAS_BIAS=bias is not None,
            HAS_OUTLIERS=kept is not None, ACTIVATION=activation, num_warps=4,
        )  # fmt: skip
    return out


def _scaled(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    kept: Tensor | None,
    packed: Packed,
    bias: Tensor | None,
    activation: str,
) -> Tensor:
    """Multiply E4M3 codes and finish the result [M, N] in torch."""
    assert packed.scale is not None
    y = torch._scaled_mm(
        codes, packed.codes.T, scale_a=scale, scale_b=packed.scale[None], out_dtype=torch.bfloat16
    )[: x.shape[0], : packed.shape[0]]
    if bias is not None or kept is not None or activation != "none":
        y = y.float()
        if bias is not None:
            y = y + bias.float()
        if kept is not None and packed.outlier_weight is not None:
            y = y + kept @ packed.outlier_weight[:, : packed.shape[0]]
        if activation == "silu":
            y = torch.nn.functional.silu(y)
        elif activation != "none":
            form = "tanh" if activation == "gelu_tanh" else "none"
            y = torch.nn.functional.gelu(y, approximate=form)
    return y.to(x.dtype).contiguous()
