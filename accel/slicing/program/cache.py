"""Cache of programs, by what they depend on: a block's structure and its arguments' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from accel.core.tree import leaves
from accel.slicing.program.derive import derive
from accel.slicing.program.ir import Program
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

    def find(self, block: nn.Module, arguments: Mapping[str, Any]) -> Program:
        """Return the cached program of a block, or derive one.

        Raises Underivable with the reason; failures are cached too.
        """
        key = (_structure(block), _signature(arguments), settled(block, arguments))
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            try:
                self._known[key] = derive(block, arguments)
            except Underivable as error:
                self._known[key] = str(error)
            except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
                self._known[key] = _dry_run_failed(error)
        found = self._known[key]
        if isinstance(found, str):
            raise Underivable(found)
        return found


def _dry_run_failed(error: Exception) -> str:
    first = str(error).splitlines()[0]
    if isinstance(error, NotImplementedError) or "meta" in first:
        return "its operations depend on the values in a tensor"
    return f"a dry run failed: {first}"


def _structure(block: nn.Module) -> tuple[Any, ...]:
    """Return what a program depends on in a block: submodules, processors, plain settings."""
    parts: list[Any] = []
    for path, part in block.named_modules():
        plain = [
            (k, v if isinstance(v, (bool, int, float, str)) else type(v))
            for k, v in vars(part).items()
            if not k.startswith("_")
        ]
        weight = getattr(part, "weight", None)
        shape = (weight.shape, weight.dtype) if isinstance(weight, Tensor) else None
        parts.append((path, type(part), tuple(plain), shape))
    return tuple(parts)


def _signature(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tuple(x.shape), x.dtype
        return x if isinstance(x, (bool, int, float, str, type(None))) else repr(x)

    return tuple((name, tuple(map(leaf, leaves(value)))) for name, value in arguments.items())
