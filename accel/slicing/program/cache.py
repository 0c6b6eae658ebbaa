"""Cache of programs, by what they depend on: a block's structure and its arguments' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.diffusers_bridge import computes_in
from accel.core.tree import leaves
from accel.core.watchers import foreign_forward
from accel.slicing.program.derive import derive
from accel.slicing.program.ir import Program
from accel.slicing.reasons import failed
from accel.slicing.trace.record import Underivable
from accel.slicing.trace.values import settled

REMEMBERED = 64  # programs


class Programs:
    """Programs by block structure and argument shapes, shared by the equal blocks of a model.

    ``reusable``: arguments of its blocks that may be overwritten, by how the model is called.
    """

    def __init__(self) -> None:
        self.reusable: dict[Any, dict[str, frozenset[str]]] = {}
        self._known: dict[Any, Program | str] = {}

    def refuse(self, block: nn.Module, arguments: Mapping[str, Any], why: str) -> None:
        """Remember that a program which was derived does not run."""
        self._known[_key(block, arguments)] = why

    def find(self, block: nn.Module, arguments: Mapping[str, Any]) -> Program:
        """Return the cached program of a block, or derive one.

        Raises Underivable with the reason; failures are cached too.
        """
        key = _key(block, arguments)
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            try:
                self._known[key] = derive(block, arguments)
            except Underivable as error:
                self._known[key] = str(error)
            except Exception as error:  # whatever somebody's block does in a dry run
                self._known[key] = failed(error)
        found = self._known[key]
        if isinstance(found, str):
            raise Underivable(found)
        return found


def _key(block: nn.Module, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    default = torch.get_default_dtype()
    return _structure(block), signature(arguments), settled(block, arguments), default


def _structure(block: nn.Module) -> tuple[Any, ...]:
    """Return what a program depends on in a block: submodules, processors and settings."""
    return tuple(
        (path, type(part), type(part).forward, path != "" and foreign_forward(part), _state(part))
        for path, part in block.named_modules()
    )


def _state(part: nn.Module) -> tuple[Any, ...]:
    weight = getattr(part, "weight", None)
    shape = (weight.shape, weight.dtype) if isinstance(weight, Tensor) else None
    public = ((k, _described(v)) for k, v in vars(part).items() if k[0] != "_" and k != "forward")
    return shape, computes_in(part), tuple(public)


def _described(value: Any, depth: int = 3) -> Any:
    """Return something equal for equal settings: of processors, lists and plain values."""
    if value is None or isinstance(value, (bool, int, float, str, type, torch.dtype)):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if depth and isinstance(value, (tuple, list)):
        return type(value), tuple(_described(v, depth - 1) for v in value)
    if depth and isinstance(value, Mapping):
        return tuple((str(k), _described(v, depth - 1)) for k, v in value.items())
    if depth and type(value).__module__.startswith("diffusers.") and hasattr(value, "__dict__"):
        return type(value), tuple((k, _described(v, depth - 1)) for k, v in vars(value).items())
    return type(value)


def signature(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return shapes, dtypes and plain values of a call's arguments, hashable."""

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tuple(x.shape), x.dtype
        return x if isinstance(x, (bool, int, float, str, type(None))) else repr(x)

    return tuple((name, tuple(map(leaf, leaves(value)))) for name, value in arguments.items())
