"""Weights that are read from their safetensors files when a component, or a block of it, runs.

accelerate's own offload to disk opens the file once for each tensor of each call, and writes a
second copy of a model first; diffusers' group offload to disk needs the whole model in memory
before it starts, and writes a copy too.

A component takes its turn: what is read for it stays until a component of another group runs.
With ``blocks``, a repeated block is read before it runs and dropped after it; meanwhile the system
is asked to bring the next one into its cache of files, which is given up where memory is short.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from accel.core.diffusers_bridge import stays_in_fp32
from accel.memory.pieces import blocks_of
from accel.pipelines.stored_tensors import NotStreamable, Stored, ranges


@dataclass(frozen=True)
class Slot:
    """One tensor of a component: the attributes that hold it, and where it is stored."""

    places: tuple[tuple[nn.Module, str], ...]
    entry: Stored
    empty: Tensor  # on meta, in the dtype that the component computes in

    def fill(self, device: torch.device) -> int:
        """Read the tensor to ``device``; return its bytes."""
        tensor = self.entry.read().to(device, self.empty.dtype)
        self._set(tensor)
        return tensor.nbytes

    def drop(self) -> None:
        """Leave a tensor without memory in its place."""
        self._set(self.empty)

    def _set(self, tensor: Tensor) -> None:
        if isinstance(self.empty, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        for module, name in self.places:
            setattr(module, name, tensor)


def skeleton(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return a component of a stored pipeline with its parameters on the meta device.

    Nothing of its weights is read; dtypes are those of a usual load. What is computed rather than
    stored, such as tables of positions, is on the CPU.
    """
    with init_empty_weights(include_buffers=False), _default(dtype):
        if hasattr(cls, "load_config"):
            module: nn.Module = cls.from_config(cls.load_config(str(folder)))
        else:
            module = cls(cls.config_class.from_pretrained(str(folder)))
    high = stays_in_fp32(module, dtype)
    for path, part in module.named_modules():
        for name, tensor in part.named_parameters(recurse=False):
            own = torch.float32 if high & {*path.split("."), name} else dtype
            if tensor.is_floating_point() and tensor.dtype is not own:
                setattr(part, name, nn.Parameter(tensor.to(own), requires_grad=False))
    tie: Any = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()
    return module.requires_grad_(False).eval()


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def slots(module: nn.Module, entries: Mapping[str, Stored]) -> list[Slot]:
    """Return all tensors on meta of a component, each once, with where they are stored.

    Raises NotStreamable where a name or shape is not that of the files.
    """
    owners: dict[int, list[tuple[str, nn.Module, str, Tensor]]] = {}
    for path, part in module.named_modules():
        own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        for name, tensor in own:
            if tensor.is_meta:
                full = f"{path}.{name}" if path else name
                owners.setdefault(id(tensor), []).append((full, part, name, tensor))
    found = []
    for places in owners.values():
        entry = next((entries[full] for full, *_ in places if full in entries), None)
        full, _, _, tensor = places[0]
        if entry is None:
            raise NotStreamable(f"its files have no tensor named {full}")
        if entry.shape != tuple(tensor.shape):
            raise NotStreamable(f"{full} is stored as {entry.shape}, not {tuple(tensor.shape)}")
        found.append(Slot(tuple((part, name) for _, part, name, _ in places), entry, tensor))
    return found


class BlockHook(ModelHook):
    """Reads a block before it runs, and drops it after; ``next`` is the hook of the next block."""

    def __init__(self, held: Sequence[Slot], device: torch.device) -> None:
        self._held, self.execution_device = held, device
        self._ranges = list(ranges(slot.entry for slot in held))
        self.next: BlockHook | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Read the block, and begin with the next one."""
        for slot in self._held:
            slot.fill(self.execution_device)
        if self.next is not None:
            self.next.ahead()
        return args, kwargs

    def ahead(self) -> None:
        """Ask the system to bring the block into its cache; nothing where it has no such call."""
        if not hasattr(os, "posix_fadvise"):
            return
        for file, start, stop in self._ranges:
            with file.open("rb") as source:
                os.posix_fadvise(source.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Drop the block."""
        for slot in self._held:
            slot.drop()
        return output


class TurnHook(ModelHook):
    """Lets a component take its turn before it runs."""

    def __init__(self, turns: Turns, name: str, device: torch.device) -> None:
        self._turns, self._name, self.execution_device = turns, name, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Read the component, after those of other groups have gone."""
        self._turns.enter(self._name)
        return args, kwargs


class Turns:
    """Which components are read now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._groups: dict[str, str] = {}
        self._held: dict[str, list[Slot]] = {}
        self._filled: set[str] = set()

    def add(
        self,
        name: str,
        module: nn.Module,
        entries: Mapping[str, Stored],
        group: str,
        *,
        blocks: bool = False,
        staying: int = 0,
    ) -> None:
        """Let a component take part.

        Args:
            name: Its name in the pipeline.
            module: The component, from ``skeleton``.
            entries: Where its tensors are stored.
            group: Components of a group stay together.
            blocks: Whether its blocks are read one at a time.
            staying: How many of the first blocks are not.
        """
        outside = slots(module, entries)
        for buffers in module.modules():  # what is computed, not stored, is small and stays
            for key, buffer in list(buffers.named_buffers(recurse=False)):
                if not buffer.is_meta and buffer.device != self._device:
                    setattr(buffers, key, buffer.to(self._device))
        hooks: list[BlockHook] = []
        for _, block in list(blocks_of(module))[staying:] if blocks else []:
            within = {id(part) for part in block.modules()}
            own = [s for s in outside if all(id(part) in within for part, _ in s.places)]
            if own:
                hooks.append(BlockHook(own, self._device))
                add_hook_to_module(block, hooks[-1])
                taken = set(map(id, own))
                outside = [s for s in outside if id(s) not in taken]
        for hook, after in pairwise([*hooks, *hooks[:1]]):  # the first one for the next call
            hook.next = after
        self._groups[name], self._held[name] = group, outside
        add_hook_to_module(module, TurnHook(self, name, self._device))

    def has(self, name: str) -> bool:
        """Return whether a component takes part."""
        return name in self._groups

    def enter(self, name: str) -> None:
        """Read a component that is about to run, after those of other groups have gone."""
        for other in sorted(self._filled):
            if self._groups[other] != self._groups[name]:
                self.leave(other)
        if name not in self._filled:
            self._filled.add(name)
            for slot in self._held[name]:
                slot.fill(self._device)

    def leave(self, name: str) -> None:
        """Drop a component."""
        self._filled.discard(name)
        for slot in self._held[name]:
            slot.drop()
