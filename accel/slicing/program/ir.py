"""The data that describe a block in slices: operators, groups, and stages that are ready to run.

``groups.py`` makes groups of operators, ``build.py`` makes a program of a trace,
``memory_reuse.py`` says where its values lie, ``prepare.py`` makes it ready to run, and ``run.py``
runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accel.slicing.trace.record import Affine, Axis, Call, Trace

Name = Any  # the hashable name of a value
TOKENS = "tokens"  # the axis that is sliced
JOINS = ("cat", "concat")  # functions that put values side by side


@dataclass(frozen=True)
class Operator:
    """An operation that makes values from others.

    It ``makes`` values from ``reads``. ``pointwise``: axes on which it may run slice by slice; then
    it needs only the values in ``whole`` in full. ``cheap``: running it twice costs less than
    storing its result (norms and element-wise operations, but not matrix products or attention).
    """

    name: str
    reads: tuple[Name, ...]
    makes: tuple[Name, ...]
    pointwise: frozenset[str] = frozenset()
    whole: tuple[Name, ...] = ()
    cheap: bool = True


@dataclass(frozen=True)
class Group:
    """Operators that run together.

    ``once``: operators that run on whole values first. ``loop``: operators of one slice, in order.
    ``stores``: values that the loop makes and that are kept whole.
    """

    once: tuple[Operator, ...]
    loop: tuple[Operator, ...]
    stores: tuple[Name, ...]


@dataclass(frozen=True)
class Node:
    """An operator and the call that it represents.

    ``owner`` is the submodule that makes an attention call.
    """

    operator: Operator
    call: Call
    owner: str


class Execution(Protocol):
    """What a step sees of a run (``run.py``).

    ``whole``: values needed in full. ``now``: those of the current slice, in which the streams have
    ``lengths`` tokens.
    """

    whole: dict[int, Tensor]
    now: dict[int, Tensor]
    lengths: Sequence[int]
    device: torch.device
    block: nn.Module

    def slice(self, number: int) -> Tensor:
        """Return this slice of a whole value that has the axis."""

    def module(self, path: str) -> nn.Module:
        """Return the live block's submodule."""

    def join(self, call: Call, joined: Tensor) -> None:
        """Fill the missing parts of a joined value that others were stored in."""

    def attend(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], looping: bool
    ) -> Tensor:
        """Return the attention of this slice's queries."""


@dataclass(frozen=True)
class Step:
    """One call.

    ``run`` makes it and puts its results into the values it is given. ``stores``: results that are
    kept whole and have no place yet. ``gone``: values that no later step reads.
    """

    run: Callable[[Execution, dict[int, Tensor]], None]
    stores: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A group that is ready to run.

    ``shared``: its slices attend to the same keys. ``placed``: values that take an argument's
    memory. ``keep``: whole values that are needed after it.
    """

    once: tuple[Step, ...]
    loop: tuple[Step, ...]
    shared: bool
    placed: tuple[int, ...]
    keep: frozenset[int]


@dataclass
class Program:
    """A block's forward for one set of argument shapes.

    ``lengths``: tokens of each stream. ``streams``: the argument that carries each. ``overwrites``
    maps a result to the argument whose memory it may take. ``homes`` maps a stored value to the
    joined value that it is made for, and its dimension and offset there. ``opened``: submodules
    that are not called themselves. ``prepared``: the result of ``prepare.stages`` by the arguments
    that may be overwritten.
    """

    trace: Trace
    axes: dict[int, Axis]
    nodes: dict[str, Node]
    groups: list[Group]
    result: Any
    streams: tuple[str, ...]
    overwrites: dict[int, str]
    mixing: tuple[str, ...]
    opened: tuple[str, ...]
    homes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    prepared: dict[frozenset[str], list[Stage]] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each stream; samples, where a batch is sliced."""
        return self.trace.lengths

    def most_slices(self, tokens: int) -> int:
        """Return the most slices that leave each ``tokens`` tokens of the longest stream."""
        name = self.streams[0]
        axis, dims = self.axes[self.trace.inputs[name]], self._sizes(name)
        # Besides the axis: all but the channels, and not the samples where tokens are sliced.
        channels = len(dims) - 1 if len(dims) == 3 else 1
        rows = math.prod(n for d, n in enumerate(dims) if d not in (0, axis.dim, channels))
        return min(self.lengths[0] * rows // tokens, self.lengths[0])

    def _sizes(self, name: str) -> list[int]:
        return self.sizes(self.trace.inputs[name])

    def sizes(self, number: int) -> list[int]:
        """Return the sizes of a whole value."""
        dims = self.trace.values[number].dims
        return [d.at(self.lengths) if isinstance(d, Affine) else d for d in dims]
