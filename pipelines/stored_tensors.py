"""Tensors in safetensors files, each read by itself.

A tensor is a private mapping of its part of the file, so nothing is copied on a CPU in the file's
own dtype, and dropping the tensor gives its memory back.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accel.core.plain_values import shown
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


def ranges(entries: Iterable[Stored]) -> Iterator[tuple[Path, int, int]]:
    """Yield the parts of files that hold tensors, as file, start and stop; neighbors are one."""
    last: tuple[Path, int, int] | None = None
    for entry in sorted(entries, key=lambda e: (e.file, e.start)):
        if last is not None and last[0] == entry.file and last[2] == entry.start:
            last = (entry.file, last[1], entry.stop)
            continue
        if last is not None:
            yield last
        last = (entry.file, entry.start, entry.stop)
    if last is not None:
        yield last
