"""Along which axis is a torch call point-wise? One rule for each kind of function.

A value's tokens lie on one ``Axis``: a dimension, and the streams whose tokens follow each other
on it (joint attention has text and video tokens in one sequence). A rule gives the axis of each
result and the arguments that are needed whole, or nothing: then the call needs everything whole. A
function that is in no table has no rule, so unknown functions are never sliced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from accel.core.tree import leaves, tree_map
from accel.slicing.trace.kinds import ELEMENTWISE, REDUCE, SAMPLEWISE, SHAPE
from accel.slicing.trace.record import Affine, Axis, Call, Ref, Underivable, Value, refs


@dataclass(frozen=True)
class Found:
    """Axes of a call's results by value number, and the arguments it needs whole."""

    axes: dict[int, Axis]
    whole: tuple[int, ...] = ()


class Rules:
    """Finds the axes of every value of a trace; ``axes`` holds those known so far, by number."""

    def __init__(self, values: Sequence[Value], lengths: Sequence[int]) -> None:
        self.values, self.lengths = values, lengths
        self.axes: dict[int, Axis] = {}

    def sloped(self, number: int) -> bool:
        """Return whether any size of the value grows with a stream."""
        return any(isinstance(d, Affine) for d in self.values[number].dims)

    def set_axis(self, number: int, axis: Axis) -> bool:
        """Keep an axis if no other dimension grows; return whether it agrees with the sizes."""
        for dim, size in enumerate(self.values[number].dims):
            if isinstance(size, Affine) != (dim == axis.dim):
                return False
        self.axes[number] = axis
        return self.values[number].dims[axis.dim] == self._size(axis.streams)

    def _size(self, streams: Sequence[int]) -> Affine:
        slopes = tuple(streams.count(s) for s in range(len(self.lengths)))
        return Affine(0, slopes)

    def find(self, call: Call) -> Found | None:
        """Return the axes of a torch call's results, or None if it needs everything whole."""
        tensors = list(dict.fromkeys(refs(call.args) + refs(call.kwargs)))
        sloped = [n for n in tensors if self.sloped(n)]
        results = [n for n in refs(call.result) if self.sloped(n)]
        if not sloped:
            return Found({}) if not results else None
        found = self._rule(call, sloped, results)
        if found is None or set(found.axes) != set(results):
            return None
        if any(n not in self.axes and n not in found.whole for n in sloped):
            return None
        return found if all(self.set_axis(n, a) for n, a in found.axes.items()) else None

    def _rule(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        name = call.name
        if name == "scaled_dot_product_attention":
            return self._attention(call, results)
        if name in ("matmul", "bmm", "__matmul__"):
            return self._matmul(call, results)
        if name in SAMPLEWISE:
            return self._samplewise(call, sloped, results)
        if any(n not in self.axes for n in sloped):
            return None
        if name in ("cat", "concat", "stack"):
            return self._cat(call, sloped, results)
        if name in SHAPE:
            return self._shape(call, sloped, results)
        if name == "__setitem__":
            return self._setitem(call, sloped, results)
        if name in ELEMENTWISE:
            return self._elementwise(sloped, results)
        return self._along_other_dims(call, sloped, results)

    def _rank(self, number: int) -> int:
        return len(self.values[number].dims)

    def _elementwise(self, sloped: list[int], results: list[int]) -> Found | None:
        """Return the axes of results: operands, aligned at the end, must hold the same streams."""
        ends = {(self.axes[n].dim - self._rank(n), self.axes[n].streams) for n in sloped}
        if len(ends) != 1:
            return None
        end, streams = ends.pop()
        return Found({n: Axis(end + self._rank(n), streams) for n in results})

    def _along_other_dims(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        """Return the axes for norms, linear layers and reductions over other dimensions."""
        if len(sloped) != 1 or call.name not in REDUCE | {
            "linear", "layer_norm", "rms_norm", "repeat", "repeat_interleave", "glu",
            "view_as_complex", "view_as_real",
        }:  # fmt: skip
            return None
        number = sloped[0]
        axis, rank = self.axes[number], self._rank(number)
        if not self._untouched(call, axis.dim, rank):
            return None
        axes = {}
        for n in results:
            dims = self.values[n].dims
            at = [i for i, d in enumerate(dims) if isinstance(d, Affine)]
            if len(at) != 1 or dims[at[0]] != self.values[number].dims[axis.dim]:
                return None
            axes[n] = Axis(at[0], axis.streams)
        return Found(axes)

    def _untouched(self, call: Call, dim: int, rank: int) -> bool:
        name = call.name
        if name in ("linear", "glu", "view_as_complex"):
            return dim < rank - 1
        if name in ("layer_norm", "rms_norm"):
            shape = call.kwargs.get("normalized_shape", call.args[1] if len(call.args) > 1 else ())
            return dim < rank - len(shape)
        if name in ("repeat", "repeat_interleave", "view_as_real"):
            return True  # a changed number of tokens shows in the size
        position = 2 if name in ("norm", "normalize") else 1
        over = call.kwargs.get("dim", call.args[position] if len(call.args) > position else None)
        if over is None:
            return False
        over = over if isinstance(over, (tuple, list)) else (over,)
        return all(isinstance(d, int) and d % rank != dim for d in over)

    def _attention(self, call: Call, results: list[int]) -> Found | None:
        """Return the axis of attention: each query row is independent, keys and mask are whole.

        Where samples of a batch are sliced, keys, values and mask are sliced with the queries.
        """
        given = dict(zip(("query", "key", "value", "attn_mask"), call.args, strict=False))
        given.update(call.kwargs)
        causal = given.get("is_causal") or any(leaf is True for leaf in call.args[5:6])
        query = given["query"].index
        axis = self.axes.get(query)
        if axis is not None and axis.dim < self._rank(query) - 2 and len(results) == 1:
            sloped = [n for n in refs(list(given.values())) if self.sloped(n)]
            alike = all(self.axes.get(n) == axis for n in sloped)
            return Found({results[0]: axis}) if alike else None
        if causal or axis is None or axis.dim != self._rank(query) - 2 or len(results) != 1:
            return None
        whole = [x.index for k, x in given.items() if k != "query" and isinstance(x, Ref)]
        return Found({results[0]: axis}, tuple(n for n in whole if self.sloped(n)))

    def _matmul(self, call: Call, results: list[int]) -> Found | None:
        """Return the axis of a product: the first factor's rows are independent."""
        first, second = (call.args[i].index for i in (0, 1))
        axis = self.axes.get(first)
        if axis is None or axis.dim > self._rank(first) - 2 or len(results) != 1:
            return None
        if axis.dim < self._rank(first) - 2:
            alike = self.axes.get(second) == axis and self._rank(first) == self._rank(second)
            return Found({results[0]: axis}) if alike else None
        dim = axis.dim - self._rank(first) + self._rank(results[0])
        whole = (second,) if self.sloped(second) else ()
        return Found({results[0]: Axis(dim, axis.streams)}, whole)

    def _samplewise(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        """Return the axis for convolutions and norms over a sample's channels and pixels."""
        if sloped != refs(call.args[:1]) or len(results) != 1:
            return None
        axis = self.axes[sloped[0]]
        alone = axis.dim == 0 or self._one_wide(call, axis.dim)
        return Found({results[0]: axis}) if alone else None

    def _one_wide(self, call: Call, dim: int) -> bool:
        """Return whether a convolution's kernel is one pixel wide along ``dim`` of [N, C, ...]."""
        if call.name not in ("conv1d", "conv2d", "conv3d") or call.kwargs or dim < 2:
            return False
        _, weight, _, stride, padding = (*call.args, None, None, None)[:5]

        def along(x: Any, default: int) -> Any:
            return default if x is None else x[dim - 2] if isinstance(x, (tuple, list)) else x

        kernel = self.values[weight.index].dims[dim]
        return (kernel, along(stride, 1), along(padding, 0)) == (1, 1, 0)

    def crosses(self, call: Call) -> bool:
        """Return whether a norm's statistics run along the axis of its argument."""
        number = refs(call.args[:1])[0] if refs(call.args[:1]) else -1
        return number in self.axes and self.axes[number].dim > 1

    def _cat(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        parts = refs(call.args[0] if call.args else call.kwargs["tensors"])
        dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
        dim %= self._rank(results[0])
        if call.name == "stack":
            axes = {self.axes[n] for n in sloped}
            at = axes.pop()
            same = not axes and len(sloped) == len(set(parts))
            return Found({results[0]: Axis(at.dim + (dim <= at.dim), at.streams)}) if same else None
        if all(self.axes[n].dim != dim for n in sloped):
            return self._elementwise(sloped, results)
        if len(sloped) < len(set(parts)) or any(self.axes[n].dim != dim for n in sloped):
            return None
        streams = tuple(s for n in parts for s in self.axes[n].streams)
        return Found({results[0]: Axis(dim, streams)})

    def _setitem(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        target = call.args[0].index
        axis = self.axes.get(target)
        kept = self._view(target, torch.Tensor.__getitem__, (call.args[0], call.args[1]), {})
        if axis is None or not isinstance(kept, torch.Tensor):
            return None
        at = self._place(kept, target)
        part = at and self._between(target, at[1], int(kept.shape[at[0]]))
        if not at or not part:
            return None
        for n in sloped:
            if n != target:
                other = self.axes[n]
                if (other.dim - self._rank(n), other.streams) != (at[0] - kept.dim(), part):
                    return None
        return Found({results[0]: axis})

    # ------------------------------------------------------------------------ changes of shape

    def _sizes(self, dims: Sequence[Any]) -> tuple[int, ...]:
        return tuple(d.at(self.lengths) if isinstance(d, Affine) else d for d in dims)

    def _view(self, number: int, function: Any, args: Any, kwargs: Any) -> Any:
        """Return the call's result for a meta tensor of the argument's sizes."""
        value = self.values[number]
        fresh = torch.empty(self._sizes(value.dims), dtype=value.dtype, device="meta")

        def leaf(x: Any) -> Any:
            if isinstance(x, Ref):
                return fresh
            return x.at(self.lengths) if isinstance(x, Affine) else x

        try:
            return function(*tree_map(leaf, args), **tree_map(leaf, kwargs))
        except (RuntimeError, IndexError, TypeError) as error:
            raise Underivable(f"cannot follow a change of shape: {error}") from error

    def _place(self, view: torch.Tensor, number: int) -> tuple[int, int] | None:
        """Return the dimension of ``view`` along a contiguous value's tokens, and its first token.

        It is None if there is none. Strides tell: they are unique where sizes exceed one.
        """
        axis = self.axes[number]
        sizes = self._sizes(self.values[number].dims)
        stride = 1
        for size in sizes[axis.dim + 1 :]:
            stride *= size
        dims = [d for d in range(view.dim()) if view.stride(d) == stride and view.shape[d] > 1]
        if len(dims) != 1:
            return None
        return dims[0], view.storage_offset() % (stride * sizes[axis.dim]) // stride

    def _shape(self, call: Call, sloped: list[int], results: list[int]) -> Found | None:
        """Return the axes of views, which keep the tokens' stride; cuts must be between streams."""
        if len(sloped) != 1 or len(set(refs(call.args) + refs(call.kwargs))) != 1:
            return None
        number = sloped[0]
        out = self._view(number, call.function, call.args, call.kwargs)
        axes = {}
        views = [t for t in leaves(out) if isinstance(t, torch.Tensor)]
        for n, view in zip(refs(call.result), views, strict=True):
            if n not in results:
                continue
            place = self._place(view, number)
            if not place:
                return None
            size = int(view.shape[place[0]])
            streams = self._between(number, place[1], size)
            streams = streams and self._repeated(streams, size)
            if not streams:
                return None
            axes[n] = Axis(place[0], streams)
        return Found(axes)

    def _repeated(self, streams: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Repeat the streams for each sample, where samples and tokens became one dimension."""
        return streams * max(1, size // sum(self.lengths[s] for s in streams))

    def _between(self, number: int, start: int, size: int) -> tuple[int, ...]:
        """Return the streams of a value's tokens start … start + size, or () if that cuts one."""
        streams, at = self.axes[number].streams, 0
        taken: list[int] = []
        for s in streams:
            if start <= at and at + self.lengths[s] <= start + size:
                taken.append(s)
            elif at < start + size and start < at + self.lengths[s]:
                return ()
            at += self.lengths[s]
        return tuple(taken)
