"""Kinds of operators: which take about the same time per byte, and which cost nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# Pointwise operators that take longer than reading and writing memory does.
FUNCTIONS = frozenset(
    ("gelu", "silu", "tanh", "sigmoid", "exp", "log", "sin", "cos", "erf", "pow", "rsqrt", "sqrt")
)
REDUCTIONS = frozenset(
    ("mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "var_mean", "std", "any", "all",
     "argmax", "cumsum", "prod", "max", "min", "norm")
)  # fmt: skip
# Kinds by operator, where no rule of ``_kind`` says it.
NAMED = {
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm", "_softmax": "softmax",
    "native_batch_norm": "group_norm", "_fused_rms_norm": "rms_norm",
    "_log_softmax": "softmax", "_safe_softmax": "softmax", "constant_pad_nd": "pad",
    "replication_pad3d": "pad", "replication_pad2d": "pad", "reflection_pad2d": "pad",
    "embedding": "gather", "index": "gather", "index_select": "gather", "gather": "gather",
    "cat": "pointwise", "stack": "pointwise", "repeat": "pointwise", "_to_copy": "pointwise",
    "arange": "pointwise", "zeros": "pointwise", "ones": "pointwise", "full": "pointwise",
    "full_like": "pointwise", "zeros_like": "pointwise", "ones_like": "pointwise",
    "new_zeros": "pointwise", "new_ones": "pointwise", "new_full": "pointwise",
    "scalar_tensor": "pointwise", "linspace": "pointwise", "roll": "pointwise",
    "flip": "pointwise", "tril": "pointwise", "triu": "pointwise", "index_put": "gather",
    "copy": "pointwise", "fill": "pointwise", "zero": "pointwise", "clone": "pointwise",
    "randn": "pointwise", "randn_like": "pointwise", "slice_scatter": "pointwise",
    "native_dropout": "pointwise", "pixel_shuffle": "transposed", "pixel_unshuffle": "transposed",
}  # fmt: skip
FREE = ("empty", "new_empty", "detach", "alias", "_local_scalar_dense", "sym_", "lift")
OTHER = "other"
NEAR = 8  # elements between neighbors, from which reading is no longer reading every other one


def kind_of(name: str, func: Any, kwargs: Any, tensors: list[Tensor], outs: list[Tensor]) -> str:
    """Return the kind of an operator whose time depends on the bytes that it reads and writes.

    ``name`` is that of ``func`` without an underscore, ``tensors`` and ``outs`` its arguments and
    results.
    """
    if name == "gelu":
        return f"gelu {kwargs.get('approximate', 'none')}"
    if name in FUNCTIONS:
        return name
    if name.removeprefix("_").startswith("upsample"):
        return "upsample"
    if name in REDUCTIONS and tensors and outs:
        given, small = tensors[0], outs[0]
        kept = small.dim() and given.dim() and given.shape[-1] == small.shape[-1] > 1
        across = " across" if kept and small.numel() < given.numel() else ""
        return ("norm" if name.endswith("norm") else "reduce") + across
    kind = NAMED.get(name, "pointwise" if torch.Tag.pointwise in func.tags else OTHER)
    if kind != "pointwise":
        return kind
    big = [x for x in (*tensors, *outs) if x.numel() > 1]
    strides = {x.stride() for x in big if x.shape == outs[0].shape}
    last = max((_last_stride(x) for x in big), default=1)
    if len(strides) < 2 or last < 2:
        return kind
    return "strided" if last < NEAR else "transposed"


def _last_stride(x: Tensor) -> int:
    """Return how far apart in memory the neighbors of the last dimension are, in elements."""
    return next((s for n, s in zip(x.shape[::-1], x.stride()[::-1], strict=True) if n > 1), 1)


@cache
def is_view(func: Any) -> bool:
    """Return whether all results lie in the memory of an argument that is not written."""
    returns = func._schema.returns
    found = [x.alias_info for x in returns]
    return bool(found) and all(a is not None and not a.is_write for a in found)
