"""Sliced blocks inside a graph of ``torch.compile``.

There, a block's call is one opaque op that runs the block's program, with its memory, when the
graph runs. What the op returns is decided while the graph is made: ``Layout`` is what a dry run on
the meta device says about the result. A tensor names the hook (see ``accel/attention/sdpa.py``), so
equal blocks share one graph, also under ``compile_repeated_blocks``. A block that cannot be sliced,
or has too few tokens, is traced like any other code.

An op may not change its arguments, so in a graph no result takes the memory of its input.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from accel.core.graph_labels import labeled
from accel.slicing.program.ir import Program
from accel.slicing.trace.record import Affine, Ref, refs

# A result: "tensor" or "tuple", for each part whether it is a tensor (not None), and (sizes, dtype)
# of each tensor.
Layout = tuple[str, tuple[bool, ...], tuple[tuple[tuple[int, ...], str], ...]]


def layout(program: Program) -> Layout | None:
    """Return the layout of a program's result.

    It is None for anything but a tensor or a tuple of tensors, of which some may be None.
    """
    result = program.result
    parts = (result,) if isinstance(result, Ref) else result
    if not isinstance(parts, tuple) or not all(x is None or isinstance(x, Ref) for x in parts):
        return None
    if not refs(parts):
        return None
    values = [program.trace.values[n] for n in refs(parts)]
    made = tuple(
        (
            tuple(d.at(program.lengths) if isinstance(d, Affine) else int(d) for d in value.dims),
            str(value.dtype).removeprefix("torch."),
        )
        for value in values
    )
    kind = "tensor" if isinstance(result, Ref) else "tuple"
    return kind, tuple(x is not None for x in parts), made


def described(value: Any, tensors: list[Tensor]) -> str | None:
    """Return ``value`` as a Python literal, or None if it holds something that is no literal.

    Its tensors are added to ``tensors`` and named ("tensor", place). Dynamo traces this plain code.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return f"('tensor', {len(tensors) - 1})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [described(x, tensors) for x in value]
        if any(x is None for x in parts):
            return None
        inner = "".join([f"{x}, " for x in parts])
        return f"('{'list' if isinstance(value, list) else 'tuple'}', [{inner}])"
    if isinstance(value, dict):
        parts = [described(x, tensors) for x in value.values()]
        if any(x is None for x in parts):
            return None
        inner = "".join([f"{k!r}: {x}, " for k, x in zip(value.keys(), parts, strict=True)])
        return "{" + inner + "}"
    return None


def _restored(value: Any, tensors: list[Tensor]) -> Any:
    """Return the value of ``described``, after ``ast.literal_eval``."""
    if isinstance(value, dict):
        return {k: _restored(x, tensors) for k, x in value.items()}
    if isinstance(value, tuple):
        kind, inner = value
        if kind == "tensor":
            return tensors[inner]
        parts = [_restored(x, tensors) for x in inner]
        return parts if kind == "list" else tuple(parts)
    return value


def blank(text: str, shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]) -> Any:
    """Return the described arguments, with tensors of these sizes and dtypes but without memory."""
    tensors = [torch.empty(size, dtype=dtype, device="meta") for size, dtype in shapes]
    return _restored(ast.literal_eval(text), tensors)


def call(
    hook: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], otherwise: Callable[..., Any]
) -> Any:
    """Return a block's call while a graph is made: the op, or else the trace of ``otherwise``."""
    tensors: list[Tensor] = []
    text = described((args, dict(kwargs)), tensors)
    if text is None or (any([x.requires_grad for x in tensors]) and torch.is_grad_enabled()):
        return otherwise(*args, **kwargs)
    # Plain numbers, where a graph for many sizes has symbols: each size is compiled on its own.
    shapes = tuple([(tuple([operator.index(n) for n in x.shape]), x.dtype) for x in tensors])
    found = _layout(hook.label, text, shapes)
    if found is None:
        return otherwise(*args, **kwargs)
    kind, present, made = found
    out = list(torch.ops.accel.sliced_block(tensors, text, repr(made), hook.label))
    return out[0] if kind == "tensor" else tuple([out.pop(0) if x else None for x in present])


def _layout(
    number: Tensor, text: str, shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
) -> Layout | None:
    """Return what the sliced block returns; None if it runs whole, and then its record says why."""
    hook = labeled(number)
    return None if hook is None else hook.layout(*blank(text, shapes))


# The same as torch.compiler.assume_constant_result, which would always load the compiler.
_layout._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.custom_op("accel::sliced_block", mutates_args=())
def _op(tensors: list[Tensor], text: str, made: str, label: Tensor) -> list[Tensor]:
    """Run the call ``text`` of the block named by ``label``.

    Raises RuntimeError after unpatch, because then the graph has to be compiled again.
    """
    hook = labeled(label)
    if hook is None:
        raise RuntimeError(
            "this graph was compiled while the model was patched with slices, and the patch is "
            "gone; compile the model again"
        )
    args, kwargs = _restored(ast.literal_eval(text), tensors)
    out = hook.opaque(*args, **kwargs)
    held = {x.data_ptr() for x in tensors}
    parts = [x for x in (out if isinstance(out, tuple) else (out,)) if x is not None]
    # An op's results must be contiguous and must not alias an input.
    return [x.clone() if x.data_ptr() in held else x.contiguous() for x in parts]


@_op.register_fake
def _(tensors: list[Tensor], text: str, made: str, label: Tensor) -> list[Tensor]:
    return [
        tensors[0].new_empty(size, dtype=getattr(torch, dtype))
        for size, dtype in ast.literal_eval(made)
    ]
