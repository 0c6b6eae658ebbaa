"""Which arguments of a block may be overwritten: those whose memory the model never reads again.

A denoiser's own forward runs once on a copy without weights. A block's arguments are watched from
the moment the block is done. A later operation that reads one, or a model that returns it, forbids
overwriting. The model's own inputs are never overwritten. Where code tests a tensor's values
(HunyuanVideo 1.5: is there an image?), it runs once with each answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.tree import leaves, tree_map
from accel.slicing.trace.record import weightless
from accel.slicing.trace.values import prepare


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Watch(TorchDispatchMode):
    """Records reads of the watched storages outside of the running block.

    ``answer`` is the truth value of every tensor that code tests; ``asked``: whether code tested
    one.
    """

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer, self.asked = answer, False
        self.watched: dict[int, list[tuple[str, str]]] = {}
        self.read: set[tuple[str, str]] = set()
        self.alive: list[Tensor] = []  # the address of a freed storage would be reused

    def watch(self, path: str, name: str, tensor: Tensor) -> None:
        """Watch the memory of a block's argument."""
        self.alive.append(tensor)
        self.watched.setdefault(_storage(tensor), []).append((path, name))

    def reads(self, tree: Any) -> None:
        """Record the watched arguments whose memory is in ``tree``."""
        for tensor in leaves(tree):
            if isinstance(tensor, Tensor):
                self.read.update(self.watched.get(_storage(tensor), ()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads((args, kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            self.asked = True
            return self.answer
        return func(*args, **(kwargs or {}))


def overwritable(
    denoiser: nn.Module, paths: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, frozenset[str]]:
    """Return the arguments that may be overwritten, such as "hidden_states.0", by block path.

    They hold for calls of the denoiser with the same kinds of arguments. The result is empty if the
    dry run fails.
    """
    twin = weightless(denoiser)
    prepare(twin, ())
    try:
        found, asked = _dry_run(twin, paths, args, kwargs, True)
        if asked:
            other, _ = _dry_run(twin, paths, args, kwargs, False)
            found = {path: names & other.get(path, frozenset()) for path, names in found.items()}
        return found
    except Exception:  # a model may fail in any way on meta tensors: then nothing is overwritten
        return {}


@torch.no_grad()
def _dry_run(
    twin: nn.Module, paths: Sequence[str], args: Any, kwargs: Any, answer: bool
) -> tuple[dict[str, frozenset[str]], bool]:
    from torch.fx.experimental import _config as values

    def leaf(x: Any) -> Any:
        return torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x

    args, kwargs = tree_map(leaf, tuple(args)), tree_map(leaf, dict(kwargs))
    watch = _Watch(answer)
    own = {_storage(x) for x in leaves((args, kwargs)) if isinstance(x, Tensor)}
    own |= {_storage(x) for x in [*twin.parameters(), *twin.buffers()]}
    given: dict[str, dict[str, Tensor]] = {}
    handles = []
    for path in paths:
        if path:
            block = twin.get_submodule(path)
            handles.append(
                block.register_forward_hook(_after(watch, given, path), with_kwargs=True)
            )
    # Where code asks for the positions of valid tokens, all tokens are valid.
    try:
        with values.patch(meta_nonzero_assume_all_nonzero=True), watch:  # type: ignore[attr-defined]
            result = twin(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    watch.reads(result if isinstance(result, (tuple, list, dict)) else vars(result))
    found = {
        path: frozenset(
            name
            for name, tensor in tensors.items()
            if (path, name) not in watch.read and _storage(tensor) not in own
        )
        for path, tensors in given.items()
    }
    return found, watch.asked


def _after(watch: _Watch, given: dict[str, dict[str, Tensor]], path: str) -> Any:
    """Return a forward hook that starts watching the block's arguments."""

    def after(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs)
        tensors = {
            f"{name}.{i}": x
            for name, value in list(bound.arguments.items())[1:]
            for i, x in enumerate(leaves(value))
            if isinstance(x, Tensor)
        }
        given[path] = tensors
        returned = {_storage(x) for x in leaves(output) if isinstance(x, Tensor)}
        for name, tensor in tensors.items():
            if _storage(tensor) in returned:
                watch.read.add((path, name))
            watch.watch(path, name, tensor)

    return after
