"""Record what a block does as a list of torch calls, with lengths as formulas.

A copy of the block without weights (meta tensors) runs once at the real lengths, and once more for
every stream with that stream a few tokens longer. Calls are recorded at the level of torch's
functions and of submodules, so replaying them runs the same kernels and the live submodules' own
hooks. A number that changed between the runs becomes a formula in the lengths (``Affine``). Where a
run takes another path, or a number is no such formula, ``Underivable`` is raised.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accel.core.copied_state import raw_copies
from accel.core.diffusers_bridge import HOOK_ATTRIBUTES, computes_in, hidden_linear
from accel.core.tree import leaves, tree_map

MUTATING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}


class Underivable(Exception):
    """The block cannot be sliced; the message is the reason that the report gives."""


@dataclass(frozen=True)
class Ref:
    """A tensor by number."""

    index: int


@dataclass(frozen=True)
class Affine:
    """The number ``constant + Σ slopes[s] · lengths[s]`` over the streams s."""

    constant: int
    slopes: tuple[int, ...]

    def at(self, lengths: Sequence[int]) -> int:
        """Return the number for these stream lengths."""
        return self.constant + sum(a * n for a, n in zip(self.slopes, lengths, strict=True))


@dataclass(frozen=True)
class Axis:
    """Dimension ``dim`` of a value, which holds the tokens of ``streams`` one after another."""

    dim: int
    streams: tuple[int, ...]


@dataclass
class Call:
    """One call of a torch function (``function``) or of a submodule (``path``).

    ``inside`` lists the calls of a submodule. ``aliases`` maps a submodule's results to the values
    inside that they equal, and ``start`` is the first value that was made in it. A call that
    ``mutates`` its first argument and ``copies`` changes a copy, because others read the original.
    """

    name: str
    args: Any
    kwargs: dict[str, Any]
    result: Any = None
    function: Callable[..., Any] | None = None
    path: str = ""
    inside: list[Call] = field(default_factory=list)
    aliases: dict[int, int] = field(default_factory=dict)
    mutates: bool = False
    start: int = 0
    copies: bool = False
    container: bool = False


@dataclass
class Value:
    """A tensor's sizes and dtype.

    ``parameter`` is its name in the block.
    """

    dims: tuple[Any, ...]
    dtype: torch.dtype
    parameter: str = ""


@dataclass
class Trace:
    """A recorded run.

    ``inputs`` maps the block's tensor arguments to value numbers.
    """

    values: list[Value]
    inputs: dict[str, int]
    calls: list[Call]
    result: Any
    lengths: tuple[int, ...] = ()


def refs(tree: Any) -> list[int]:
    """Return the numbers of the tensors in a recorded tree, in order."""
    return [leaf.index for leaf in leaves(tree) if isinstance(leaf, Ref)]


class _RowWise(nn.Module):
    """Replaces a linear layer of a quantized format, of which only the shapes are known."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return a result of the layer's shape."""
        return x[..., :1].repeat(*[1] * (x.dim() - 1), self.features)


def _hidden(part: Any) -> int:
    """Return the features that a linear layer gives whose code is not looked into, or 0.

    Layers of a quantized format, whose weights are no plain tensors, and some of PEFT's.
    """
    if hidden_linear(part):
        return int(part.base_layer.out_features)
    weight = vars(part).get("_parameters", {}).get("weight")
    ordinary = type(weight) in (nn.Parameter, Tensor)
    features = vars(part).get("out_features")
    unknown = isinstance(features, int) and not ordinary and not list(part.children())
    return int(features) if unknown and features is not None else 0


def _meta(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor without memory, in ``dtype`` where it is given and the tensor is float."""
    used = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=used, device="meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


def weightless(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device, without weights and hooks.

    The module itself is only read.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for key, value in vars(part).items():
            hooks = key.endswith("_hooks") and isinstance(value, dict)
            if hooks:
                memo[id(value)] = OrderedDict()
            elif key in HOOK_ATTRIBUTES:
                memo[id(value)] = None
        if part is not module and (features := _hidden(part)):
            memo[id(part)] = _RowWise(features)
        dtype = computes_in(part)
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            memo.setdefault(id(tensor), _meta(tensor, dtype))
    with raw_copies():
        twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        for key in HOOK_ATTRIBUTES:
            vars(part).pop(key, None)
    return twin.eval()


class _Recorder(TorchFunctionMode):
    """Records every call that makes a tensor."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._stale: set[int] = set()
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            self.values[self.add(tensor)].parameter = name

    def add(self, tensor: Tensor) -> int:
        """Give a tensor a new number and return it."""
        number = len(self.values)
        self.values.append(Value(tuple(tensor.shape), tensor.dtype))
        self._numbers[id(tensor)] = number
        self._alive.append(tensor)
        return number

    def note(self, tree: Any) -> Any:
        """Return a tree with its tensors replaced by their numbers."""

        def leaf(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if id(x) not in self._numbers:
                raise Underivable("it uses a tensor that is neither an argument nor a parameter")
            if id(x) in self._stale:
                raise Underivable("it reads a tensor that it changed through another view")
            return Ref(self._numbers[id(x)])

        return tree_map(leaf, tree)

    def _new(self, tree: Any) -> Any:
        return tree_map(lambda x: Ref(self.add(x)) if isinstance(x, Tensor) else x, tree)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        mutates = name in MUTATING or (name.endswith("_") and not name.endswith("__"))
        if name == "__get__" and not isinstance(out := func(*args), Tensor):
            return out
        if "out" in kwargs:
            raise Underivable(f"{name} writes into out=")
        call = Call(name, self.note(args), self.note(kwargs), function=func, mutates=mutates)
        if mutates:
            self._forget_views(args[0])
        out = func(*args, **kwargs)
        made = args[0] if name == "__setitem__" else out
        if not mutates and isinstance(out, Tensor) and id(out) in self._numbers:
            return out  # such as .float() of a float tensor
        if any(isinstance(leaf, Tensor) for leaf in leaves(made)):
            call.result = self._new(made)
            self._into().append(call)
        return out

    def _forget_views(self, tensor: Tensor) -> None:
        """Forbid reading other tensors with the memory of ``tensor``, which is about to change."""
        storage = tensor.untyped_storage()._cdata
        for other in self._alive:
            if other is not tensor and other.untyped_storage()._cdata == storage:
                self._stale.add(id(other))

    def _into(self) -> list[Call]:
        return self._open[-1].inside if self._open else self.calls

    def watch(self, block: nn.Module) -> None:
        """Record the calls of the block's submodules."""
        for path, part in block.named_modules():
            if path:
                part.register_forward_pre_hook(self._before(path), with_kwargs=True)
                part.register_forward_hook(self._after)

    def _before(self, path: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            name = type(module).__name__
            call = Call(name, self.note(args), self.note(kwargs), path=path)
            call.start = len(self.values)
            own = any(True for _ in module.parameters(recurse=False))
            call.container = not own and type(module).__module__.startswith("diffusers.")
            self._open.append(call)

        return before

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._open.pop()
        within = self.note(output)
        passed = [n for n in refs(within) if n < call.start]  # came in and goes out unchanged
        call.result = within if passed else self._new(output)
        call.aliases = dict(zip(refs(call.result), refs(within), strict=True))
        call.aliases = {new: old for new, old in call.aliases.items() if new != old}
        self._into().append(call)


@torch.no_grad()
def record(block: nn.Module, arguments: Mapping[str, Any]) -> Trace:
    """Run ``block``, a copy made by ``weightless``, on meta tensors and return its trace.

    Its hooks stay on, so a copy serves one recording. Raises Underivable for a call that cannot be
    recorded.
    """
    recorder = _Recorder(block)
    inputs: dict[str, int] = {}
    for name, value in arguments.items():
        for i, leaf in enumerate(leaves(value)):
            if isinstance(leaf, Tensor):
                inputs[f"{name}.{i}"] = recorder.add(leaf)
    recorder.watch(block)
    with recorder:
        result = block.forward(**arguments)
    return Trace(recorder.values, inputs, recorder.calls, recorder.note(result))
