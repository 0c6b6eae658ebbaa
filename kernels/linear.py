"""8-bit linear layers as a public op: pack a weight once, then multiply with it.

What each precision means is defined in ``kernels/reference_linear.py``. In a graph the call is one
functional ``torch.library`` op with a fake, so ``torch.compile(fullgraph=True)`` sees one opaque
node. Rows are independent: a row's result has the same bits whatever other rows stand beside it.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from accel.kernels import reference_linear as reference
from accel.kernels.attention_call import DTYPES, why_not_plain
from accel.kernels.cpu import linear as cpu
from accel.kernels.dispatch import LINEAR, resolve
from accel.kernels.gpu import support
from accel.kernels.packed_weight import ACTIVATIONS, MOST_INPUTS, Packed

Precision = Literal["int8", "fp8", "full"]
ImplName = Literal["auto", "reference", "cpu", "gpu"]
Activation = Literal["gelu", "gelu_tanh", "silu"]
_PRECISIONS = get_args(Precision)

__all__ = ["Packed", "linear", "pack", "run", "why_not"]


def linear(
    x: Tensor,
    weight: Tensor | Packed,
    bias: Tensor | None = None,
    *,
    precision: Precision = "int8",
    impl: ImplName = "auto",
    activation: Activation | None = None,
) -> Tensor:
    """Compute activation(x W^T + bias) with x and W held in ``precision``.

    x ``[..., K]`` fp32, bf16 or fp16, any strides; weight ``[N, K]``, or what ``pack`` made of it,
    which then says the precision; bias ``[N]``. Nothing is modified. Returns ``[..., N]`` in x's
    dtype, contiguous. A row of x with a value that is not finite gives NaN in that row only.

    ``impl="auto"`` with a weight that is not packed runs torch's own layer where no fast kernel
    can run; a named one runs as asked. A weight that is not packed is packed for this call.
    Quantized layers have no gradient.

    Raises ValueError for shapes, dtypes or options that do not fit, RuntimeError when a named
    ``impl``, or what a weight is packed for, cannot run here (with the reason).
    """
    _check(x, weight, bias, precision, activation)
    if isinstance(weight, Packed):
        packed = weight
        if impl != "auto" and packed.impl.split("-")[0] != impl:
            raise RuntimeError(f"impl {impl!r} cannot run a weight packed for {packed.impl!r}")
    elif precision == "full" or (impl == "auto" and why_not(x, weight, precision)):
        return reference.activate(torch.nn.functional.linear(x, weight, bias), activation)
    else:
        packed = pack(weight, precision=precision, impl=impl)
    if packed.precision == "full":
        return reference.activate(torch.nn.functional.linear(x, packed.codes, bias), activation)
    name = activation or "none"
    if not torch.compiler.is_compiling():
        kind = packed.impl.split("-")[0]
        why = _why_not_packed(kind, packed.precision, x.device, packed.hadamard, x.dtype)
        if not why and x.numel() and kind != "reference":
            why = _unreadable(x, bias)
        if why:
            raise RuntimeError(f"{packed.impl} cannot run this call: {why}")
        if not _needs_gradient(x, bias):
            return _run(x, packed, bias, name)
    # The op is for graphs, and says clearly that it has no gradient.
    return torch.ops.accel.linear(
        x, packed.codes, packed.scale, packed.correction, packed.factor, packed.outliers,
        packed.outlier_weight, bias, packed.shape[0], packed.precision, packed.impl,
        packed.hadamard, name,
    )  # fmt: skip


def pack(
    weight: Tensor,
    *,
    precision: Precision = "int8",
    smooth: Tensor | None = None,
    outliers: Tensor | None = None,
    hadamard: bool = False,
    impl: ImplName = "auto",
) -> Packed:
    """Make the weight ``[N, K]`` of a layer ready to be multiplied with.

    Args:
        weight: fp32, bf16 or fp16, any strides; not modified, and not kept but with "full".
        precision: "int8", "fp8" (E4M3), or "full" to keep the weight itself.
        smooth: fp32 [K], positive: x is divided by it and the weight multiplied
            (``reference_linear.smoothing`` computes it).
        outliers: int64 [O], columns of x that are multiplied unquantized.
        hadamard: Rotate rows by blocks.
        impl: "auto" takes the fastest that runs where the weight is.

    Raises:
        ValueError: Shapes, dtypes or options that do not fit.
        RuntimeError: ``impl`` cannot run here, with the reason.
    """
    factor, outliers = _check_weight(weight, precision, smooth, outliers)
    shape = (weight.shape[0], weight.shape[1])
    if precision == "full":
        return Packed(shape, "full", "torch", weight.detach())
    name = resolve(LINEAR, impl, weight.device)
    if why := _why_not_packed(name, precision, weight.device, hadamard):
        if impl != "auto":
            raise RuntimeError(f"impl {name!r} cannot run here: {why}")
        name = "reference"
    weight = weight.detach()
    if name != "reference" and weight.numel() and (why := why_not_plain(weight, weight, weight)):
        raise RuntimeError(f"impl {name!r} cannot pack this weight: {why}")
    if name == "cpu":
        return cpu.pack(weight, factor, outliers, hadamard)
    spec = _spec(precision, hadamard)
    codes = reference.quantize_weight(weight, spec, smooth, outliers)
    kept = None if outliers is None else codes.kept.T.contiguous()
    stored = codes.values.to(torch.int8 if precision == "int8" else torch.float8_e4m3fn)
    if name == "gpu":
        from accel.kernels.gpu import linear as gpu  # brings in Triton

        return gpu.pack(shape, precision, stored, codes.scale[:, 0], factor, outliers, kept)
    return Packed(
        shape, precision, "reference", stored, codes.scale[:, 0].contiguous(), None,
        factor, outliers, kept, hadamard,
    )  # fmt: skip


def why_not(
    x: Tensor, weight: Tensor | Packed, precision: Precision, impl: ImplName = "auto"
) -> str:
    """Return "" where ``linear`` can run this call on a fast kernel, else the reason."""
    if precision == "full" or (isinstance(weight, Packed) and weight.precision == "full"):
        return "full precision was asked for"
    device = x.device
    names = [impl] if impl != "auto" else ["cpu", "gpu"]
    entries = [entry for entry in LINEAR if entry.name in names]
    reasons = [entry.why_not(device) for entry in entries]
    if all(reasons):
        kind = 1 if impl == "auto" and device.type == "cuda" else 0
        return reasons[kind] if reasons else f"no implementation {impl!r}"
    runs = next(e.name for e, reason in zip(entries, reasons, strict=True) if not reason)
    if isinstance(weight, Packed):
        precision, hadamard = weight.precision, weight.hadamard  # type: ignore[assignment]
    else:
        hadamard = False
    if why := _why_not_packed(runs, precision, device, hadamard, x.dtype):
        return why
    if isinstance(weight, Packed):
        if weight.impl.split("-")[0] not in names:
            return f"the weight is packed for {weight.impl}"
    elif why := why_not_plain(weight, weight, weight):
        return f"weight: {why}"
    if why := _unreadable(x, None):
        return why
    if weight.shape[1] > MOST_INPUTS:
        return f"{weight.shape[1]} inputs, sums in 32 bits hold {MOST_INPUTS}"
    if weight.device != device:
        return f"devices {device}, {weight.device}"
    if _needs_gradient(x) or (isinstance(weight, Tensor) and _needs_gradient(weight)):
        return "quantized layers have no gradient"
    return ""


def _why_not_packed(
    name: str,
    precision: str,
    device: torch.device,
    hadamard: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> str:
    """Return why an implementation has no kernel for a precision and its options, or ""."""
    if name == "cpu" and precision == "fp8":
        return "E4M3 products are for GPUs; the CPU has int8"
    if name != "gpu":
        return ""
    if hadamard:
        return "rows are rotated on the CPU and in the reference only"
    if precision == "fp8" and support.capability(device) < (8, 9):
        return "E4M3 products need compute capability 8.9"
    if precision == "fp8" and dtype != torch.bfloat16:
        return f"E4M3 products give bf16, x is {str(dtype).removeprefix('torch.')}"
    return ""


def run(
    x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation | None = None
) -> Tensor:
    """Compute a call without checks, for whoever asked ``why_not`` about calls like it.

    Tensors are plain memory on the packed weight's device (``why_not_read``), without gradients.
    """
    return _run(x, packed, bias, activation or "none")


def _run(x: Tensor, packed: Packed, bias: Tensor | None, activation: str) -> Tensor:
    """Compute a call as its weight is packed."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(x.shape[:-1].numel(), 0)
    if packed.impl == "gpu":
        from accel.kernels.gpu import linear as gpu  # brings in Triton

        out = gpu.linear(rows, packed, bias, activation)
    elif packed.impl == "reference":
        out = _reference(rows, packed, bias, activation)
    else:
        out = cpu.linear(rows, packed, bias, activation)
    return out.view(*x.shape[:-1], packed.shape[0])


def _reference(x: Tensor, packed: Packed, bias: Tensor | None, activation: str) -> Tensor:
    """Run the specification; result [M, N] in x's dtype."""
    spec = _spec(packed.precision, packed.hadamard)
    codes = reference.quantize_rows(x, spec, packed.factor, packed.outliers)
    kept = packed.outlier_weight
    assert packed.scale is not None
    weight = reference.Codes(
        packed.codes.float(), packed.scale[:, None],
        codes.kept.new_empty(packed.shape[0], 0) if kept is None else kept.T,
    )  # fmt: skip
    return reference.multiply(codes, weight, bias, activation).to(x.dtype)


def _spec(precision: str, hadamard: bool) -> reference.LinearSpec:
    values: Literal["int", "e4m3"] = "e4m3" if precision == "fp8" else "int"
    return reference.LinearSpec(values, hadamard=hadamard)


def _unreadable(x: Tensor, bias: Tensor | None) -> str:
    return why_not_plain(x, x, x) or ("" if bias is None else why_not_plain(bias, bias, bias))


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _check(
    x: Tensor,
    weight: Tensor | Packed,
    bias: Tensor | None,
    precision: str,
    activation: str | None,
) -> None:
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    if activation is not None and activation not in ACTIVATIONS[1:]:
        raise ValueError(f"activation must be None or in {ACTIVATIONS[1:]}, got {activation!r}")
    shape = tuple(weight.shape)
    if x.dim() == 0 or len(shape) != 2 or x.shape[-1] != shape[1]:
        raise ValueError(f"x must be [..., K], weight [N, K], got {tuple(x.shape)} and {shape}")
    if bias is not None and (tuple(bias.shape) != shape[:1] or bias.dtype not in DTYPES):
        raise ValueError(f"bias must be float [{shape[0]}], got {bias.dtype} {tuple(bias.shape)}")
    if precision != "full" and x.dtype not in DTYPES:
        raise ValueError(f"x must be fp32, bf16 or fp16, got {x.dtype}")
    if not x.device == weight.device or (bias is not None and bias.device != x.device):
        raise ValueError(f"x, weight and bias need one device, got {x.device}, {weight.device}")


def _check_weight(
    weight: Tensor, precision: str, smooth: Tensor | None, outliers: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return 1 / smooth and the outliers as kernels read them."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    if weight.dim() != 2 or (precision != "full" and weight.dtype not in DTYPES):
        raise ValueError(f"weight must be float [N, K], got {weight.dtype} {tuple(weight.shape)}")
    inputs = weight.shape[1]
    if precision == "int8" and inputs > MOST_INPUTS:
        raise ValueError(f"{inputs} inputs, sums in 32 bits hold {MOST_INPUTS}")
    factor = None
    if smooth is not None:
        if smooth.shape != (inputs,) or not bool((smooth > 0).all() & smooth.isfinite().all()):
            raise ValueError(f"smooth must be [{inputs}], positive and finite")
        factor = smooth.detach().to(weight.device, torch.float32).reciprocal().contiguous()
    if outliers is not None:
        if outliers.dim() != 1 or outliers.dtype != torch.int64:
            raise ValueError(f"outliers must be int64 [O], got {outliers.dtype}")
        outliers = outliers.detach().to(weight.device).unique()
        if outliers.numel() and not 0 <= int(outliers[0]) <= int(outliers[-1]) < inputs:
            raise ValueError(f"outliers must be columns of x, 0 to {inputs - 1}")
        outliers = outliers.contiguous() if outliers.numel() else None
    return factor, outliers


@torch.library.custom_op("accel::linear", mutates_args=())
def _linear_op(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    correction: Tensor | None,
    factor: Tensor | None,
    outliers: Tensor | None,
    outlier_weight: Tensor | None,
    bias: Tensor | None,
    channels: int,
    precision: str,
    impl: str,
    hadamard: bool,
    activation: str,
) -> Tensor:
    """Run a call inside a graph."""
    packed = Packed(
        (channels, x.shape[-1]), precision, impl, codes, scale, correction, factor,
        outliers, outlier_weight, hadamard,
    )  # fmt: skip
    return _run(x, packed, bias, activation)


@_linear_op.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    correction: Tensor | None,
    factor: Tensor | None,
    outliers: Tensor | None,
    outlier_weight: Tensor | None,
    bias: Tensor | None,
    channels: int,
    precision: str,
    impl: str,
    hadamard: bool,
    activation: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], channels)
