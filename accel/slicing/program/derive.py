"""Derive how a block can be sliced, from one look at its arguments and a few dry runs.

The streams are the arguments [B, tokens, channels] that come back as results of the same shape. In
UNets, where frames are samples of a batch, the batch [N, ...] itself is a stream if it is long.
Other arguments (rotary tables, masks, per-token modulation) hold tokens where a size equals a
stream's length or the sum of two. Sizes can be equal by chance, so each interpretation is tried in
turn on a copy without weights. The one with the lowest predicted peak is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention import sdpa
from accel.core.tree import leaves, tree_map
from accel.core.watchers import foreign_forward
from accel.slicing.program.build import build
from accel.slicing.program.groups import peak
from accel.slicing.program.ir import Program
from accel.slicing.reasons import failed
from accel.slicing.trace.merge import merge
from accel.slicing.trace.record import Affine, Axis, Trace, Underivable, record, refs, weightless
from accel.slicing.trace.values import prepare, settled

STEP = 7  # additional tokens in a dry run; odd, so that halves of a length are noticed
READINGS = 48  # most interpretations of the arguments' sizes that are tried
MOST_SAMPLES = 4  # most samples whose tokens may lie in one dimension
BATCH = 16  # fewest samples for which a block [N, tokens, channels] is sliced between samples


def derive(block: nn.Module, arguments: Mapping[str, Any]) -> Program:
    """Return the program of ``block`` for arguments of these shapes; the block itself is only read.

    Raises Underivable with the reason if it cannot be sliced.
    """
    _check_parts(block)
    shapes = {
        f"{name}.{i}": leaf
        for name, value in arguments.items()
        for i, leaf in enumerate(leaves(value))
        if isinstance(leaf, Tensor)
    }
    first = _dry_run(block, arguments, {})
    alone = bool(settled(block, arguments))
    choices = itertools.chain(_of_unets(first, shapes), _readings(first, shapes, alone))
    best: tuple[int, Program] | None = None
    reason = ""  # why the likeliest reading failed
    for streams, inputs in itertools.islice(choices, READINGS):
        try:
            program = _attempt(block, arguments, first, streams, inputs)
        except Underivable as error:
            reason = reason or str(error)
            continue
        except Exception as error:  # whatever a block does at sizes that it was not made for
            reason = reason or failed(error)
            continue
        cost = predicted_peak(program, 8)
        if best is None or cost < best[0]:
            best = (cost, program)
        if not program.mixing:
            break
    if best is None:
        none = "it returns no argument [B, tokens, channels], and it has no batch to slice"
        raise Underivable(reason or none)
    return best[1]


def _check_parts(block: nn.Module) -> None:
    """Raise Underivable for a part whose code is not its class's: a program would not run it."""
    for path, part in block.named_modules():
        if path and foreign_forward(part):
            raise Underivable(f"somebody replaced the forward of {path}")
        processor = getattr(part, "processor", None)
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            name = type(processor).__name__
            raise Underivable(
                f"the attention processor {name} is not diffusers' own and has to run"
            )


def predicted_peak(program: Program, slices: int) -> int:
    """Return the most bytes alive at once, estimated from the grouping alone (``groups.peak``)."""
    sizes = {}
    for n, value in enumerate(program.trace.values):
        size = value.dtype.itemsize
        for d in value.dims:
            size *= d.at(program.lengths) if isinstance(d, Affine) else d
        sizes[n] = size
    inputs = list(program.trace.inputs.values())
    return peak(program.groups, sizes, inputs, slices, dict(program.overwrites))


Streams = dict[str, int]  # argument: number of its stream
Reading = tuple[Streams, dict[str, Axis]]


def _of_unets(trace: Trace, shapes: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Yield the reading of a UNet's block, in which samples or rows of pixels are sliced.

    Every argument with as many samples as the result is sliced with it.
    """
    results = [trace.values[n].dims for n in refs(trace.result)]
    if len(results) != 1 or len(results[0]) < 3:
        return
    samples = results[0][0]
    if len(results[0]) != 5 and samples < (BATCH if len(results[0]) == 3 else 2):
        return
    if len(results[0]) == 5:  # [N, C, F, H, W]: rows of pixels, so that frames stay together
        rows = results[0][3]
        names = [name for name, x in shapes.items() if x.dim() == 5 and x.shape[3] == rows]
        if rows > 1 and names:
            yield dict.fromkeys(names, 0), {name: Axis(3, (0,)) for name in names}
        return
    names = [name for name, x in shapes.items() if x.dim() and x.shape[0] == samples]
    if any(shapes[name].dim() >= 3 for name in names):
        yield dict.fromkeys(names, 0), {name: Axis(0, (0,)) for name in names}


def _readings(trace: Trace, shapes: Mapping[str, Tensor], alone: bool) -> Iterator[Reading]:
    """Yield streams and the arguments' axes, likeliest first.

    ``alone``: the longest stream is the only one.
    """
    results = {trace.values[n].dims for n in refs(trace.result)}
    carriers = [
        name
        for name, n in trace.inputs.items()
        if trace.values[n].dims in results
        and len(trace.values[n].dims) == 3
        and trace.values[n].dtype.is_floating_point
        and trace.values[n].dims[1] > 1
    ]
    if not carriers:
        return
    # Text that is only read may share a sequence with what is computed, as in a last joint block.
    others = [
        name
        for name, x in shapes.items()
        if x.dim() == 3 and x.is_floating_point() and x.shape[1] > 1 and name not in carriers
    ]
    if alone:
        carriers, others = [max(carriers, key=lambda name: shapes[name].shape[1])], []
    for names in [carriers, *([*carriers, name] for name in others)]:
        lengths = {name: shapes[name].shape[1] for name in names}
        distinct = list(dict.fromkeys(lengths.values()))
        together = {name: distinct.index(n) for name, n in lengths.items()}
        separate = {name: i for i, name in enumerate(names)}
        for streams in [together, separate] if together != separate else [together]:
            yield from _axes(streams, shapes)


def _axes(streams: Streams, shapes: Mapping[str, Tensor]) -> Iterator[Reading]:
    length = {s: shapes[name].shape[1] for name, s in streams.items()}
    runs = [(s,) for s in length] + list(itertools.permutations(length, 2))
    fixed = {name: Axis(1, (s,)) for name, s in streams.items()}
    # Arguments of one shape, such as cosine and sine, are read alike.
    open_: dict[tuple[tuple[int, ...], torch.dtype], list[str]] = {}
    for name, tensor in shapes.items():
        if name not in streams:
            open_.setdefault((tuple(tensor.shape), tensor.dtype), []).append(name)
    choices = [_choices(shape, dtype, runs, length) for shape, dtype in open_]
    for picked in itertools.product(*choices):
        inputs = dict(fixed)
        for names, axis in zip(open_.values(), picked, strict=True):
            inputs.update({name: axis for name in names if axis is not None})
        yield streams, inputs


def _choices(
    shape: Sequence[int], dtype: torch.dtype, runs: Sequence[tuple[int, ...]], length: Any
) -> list[Axis | None]:
    likely: list[Axis | None] = []
    unlikely: list[Axis | None] = []
    for dim, size in enumerate(shape):
        repeated = [(s,) * (size // n) for s, n in length.items() if n > 1 and size % n == 0]
        for run in [*runs, *(r for r in repeated if dim == 0 and 1 < len(r) <= MOST_SAMPLES)]:
            if size == sum(length[s] for s in run) and size > 1:
                channels = dim == len(shape) - 1 and dtype.is_floating_point
                (unlikely if channels else likely).append(Axis(dim, run))
    return [*likely, None, *unlikely]


def _dry_run(block: nn.Module, arguments: Mapping[str, Any], more: Mapping[str, Any]) -> Trace:
    """Record a copy without weights.

    ``more`` maps an argument to a dimension and the number of tokens to add to it.
    """
    meta: dict[str, Any] = {}
    for name, value in arguments.items():
        numbers = itertools.count()

        def leaf(x: Any, name: str = name, numbers: Any = numbers) -> Any:
            key = f"{name}.{next(numbers)}"
            if not isinstance(x, Tensor):
                return x
            sizes = list(x.shape)
            if key in more:
                sizes[more[key][0]] += more[key][1]
            return torch.empty(sizes, dtype=x.dtype, device="meta")

        meta[name] = tree_map(leaf, value)
    twin = weightless(block)
    prepare(twin, settled(block, arguments))
    with sdpa.unseen():
        return record(twin, meta)


def _attempt(
    block: nn.Module,
    arguments: Mapping[str, Any],
    first: Trace,
    streams: Streams,
    inputs: dict[str, Axis],
) -> Program:
    count = max(streams.values()) + 1
    base = {
        s: first.values[first.inputs[name]].dims[inputs[name].dim] for name, s in streams.items()
    }
    traces = [first]
    for s in range(count):
        more = {
            name: (axis.dim, STEP * axis.streams.count(s))
            for name, axis in inputs.items()
            if s in axis.streams
        }
        traces.append(_dry_run(block, arguments, more))
    merged = merge(traces, [base[s] for s in range(count)], [STEP] * count)
    return build(merged, inputs, tuple(streams))
