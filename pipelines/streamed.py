"""Weights that are read from their safetensors files when a component, or a block of it, runs.

A tensor is a private mapping of its part of the file, so nothing is copied on a CPU in the file's
own dtype, and dropping the tensor gives its memory back. accelerate's own offload to disk opens the
file once for each tensor of each call, and writes a second copy of a model first; diffusers' group
offload to disk needs the whole model in memory before it starts, and writes a copy too.

A component takes its turn: what is read for it stays until a component of another group runs.
With ``blocks``, a repeated block is read before it runs and dropped after it.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from accel.core.diffusers_bridge import stays_in_fp32
from accel.core.plain_values import shown
from accel.memory.pieces import blocks_of
from accel.pipelines.safetensors_header import header

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class NotStreamable(ValueError):
    """A component whose weights cannot be read piece by piece; the message says why."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its bytes from ``start`` to ``stop``."""

    file: Path
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor on the CPU, as a private mapping of the file."""
        if self.stop == self.start:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        page = self.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb") as source:
            view = mmap.mmap(
                source.fileno(), self.stop - page, access=mmap.ACCESS_COPY, offset=page
            )
        count = math.prod(self.shape)
        flat = torch.frombuffer(view, dtype=self.dtype, count=count, offset=self.start - page)
        return flat.view(self.shape)


def stored(folder: Path, variant: str | None = None) -> dict[str, Stored]:
    """Return the tensors in a component's safetensors files, by name.

    Raises NotStreamable for a folder without such files, or one whose files are damaged.
    """
    middle = f".{variant}" if variant else ""
    indices = list(folder.glob(f"*.safetensors.index{middle}.json"))
    if indices:
        names = set(json.loads(indices[0].read_text())["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    else:
        files = [
            f for f in sorted(folder.glob(f"*{middle}.safetensors")) if variant or "." not in f.stem
        ]
    if not files:
        raise NotStreamable(f"{folder.name} has no safetensors files")
    found: dict[str, Stored] = {}
    for file in files:
        found.update(_header(file))
    return found


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    size = file.stat().st_size
    try:
        entries, begin = header(file)
    except ValueError as error:
        raise NotStreamable(f"{file.name} is damaged: {error}") from None
    for name, entry in entries.items():
        start, stop = (begin + offset for offset in entry["data_offsets"])
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None or stop > size or math.prod(shape) * dtype.itemsize != stop - start:
            raise NotStreamable(f"{file.name}: {shown(name)} has a dtype or size that cannot be")
        yield name, Stored(file, start, stop, dtype, shape)


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
    """Reads a block before it runs, and drops it after."""

    def __init__(self, held: Sequence[Slot], device: torch.device) -> None:
        self._held, self.execution_device = held, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Read the block."""
        for slot in self._held:
            slot.fill(self.execution_device)
        return args, kwargs

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
        if blocks:
            for _, block in list(blocks_of(module))[staying:]:
                within = {id(part) for part in block.modules()}
                own = [s for s in outside if all(id(part) in within for part, _ in s.places)]
                if own:
                    add_hook_to_module(block, BlockHook(own, self._device))
                    taken = set(map(id, own))
                    outside = [s for s in outside if id(s) not in taken]
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
