"""Encoded prompts on disk: one safetensors file each, whole or not there, within a size limit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.core.atomic_write import part_of, write_atomic

LIMIT = 4 * 2**30  # bytes of all files; those not used for longest leave
_SUFFIX = ".safetensors"
_PLAIN = (str, int, float, bool, type(None))


class NotPlain(ValueError):
    """A value that no file can hold; the message says what it is."""


class Store:
    """A folder of encodings by key.

    ``get`` gives back equal bits, strides and devices; a file that is broken counts as missing.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str) -> tuple[Any, Any] | None:
        """Return the value of a key and what was noted beside it, None if it is not here."""
        from safetensors import safe_open

        path = self._path(key)
        try:
            with safe_open(str(path), "pt") as file:
                head = file.metadata() or {}
                tree, places = json.loads(head["tree"]), json.loads(head["places"])
                if head["key"] != key:
                    raise ValueError("another key")
                found = [_placed(file.get_tensor(str(i)), place) for i, place in enumerate(places)]
                value, notes = _joined(tree, found), json.loads(head["notes"])
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception:  # half a disk, another version: whatever it is, compute again
            path.unlink(missing_ok=True)
            return None
        return value, notes

    def put(self, key: str, value: Any, notes: Any) -> None:
        """Keep a value, with plain ``notes``.

        Raises NotPlain for one that no file can hold, OSError if it cannot be written.
        """
        from safetensors.torch import save

        tensors: list[Tensor] = []
        tree = _split(value, tensors)
        data = {str(i): _base(tensor).contiguous() for i, tensor in enumerate(tensors)}
        places = [[list(t.shape), list(t.stride()), str(t.device)] for t in tensors]
        head = {"key": key, "tree": json.dumps(tree), "places": json.dumps(places),
                "notes": json.dumps(notes)}  # fmt: skip
        content = save({name: tensor.cpu() for name, tensor in data.items()}, head)
        if len(content) > self.limit:
            raise NotPlain(f"it has {len(content) >> 20} MiB, more than all may have together")
        write_atomic(self._path(key), content)
        self._shrink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _shrink(self) -> None:
        """Drop the files that were not used for longest until all are within the limit."""
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            if path.name != part_of(path).name:
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self.limit:
                return
            path.unlink(missing_ok=True)
            left -= size


def _split(value: Any, tensors: list[Tensor]) -> Any:
    """Return a value as JSON, its tensors by number; the same tensor twice is one."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.requires_grad or value.layout != torch.strided:
            raise NotPlain(f"it holds a {type(value).__name__} of autograd or of an odd layout")
        same = [i for i, other in enumerate(tensors) if other is value]
        if not same:
            tensors.append(value)
        return {"tensor": same[0] if same else len(tensors) - 1}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_split(one, tensors) for one in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _split(one, tensors) for key, one in value.items()}}
    if isinstance(value, _PLAIN):
        return {"value": value}
    raise NotPlain(f"it holds a {type(value).__name__}")


def _joined(tree: Any, tensors: list[Tensor]) -> Any:
    ((kind, inner),) = tree.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _joined(one, tensors) for key, one in inner.items()}
    if kind == "value":
        return inner
    parts = [_joined(one, tensors) for one in inner]
    return tuple(parts) if kind == "tuple" else parts


def _base(tensor: Tensor) -> Tensor:
    """Return a tensor without the repeats of expanded dimensions."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _placed(tensor: Tensor, place: Any) -> Tensor:
    """Return a stored tensor with the shape, strides and device that it had."""
    shape, strides, device = place
    tensor = tensor.to(device)
    small = [1 if s == 0 else n for n, s in zip(shape, strides, strict=True)]
    found = torch.empty_strided(
        small, [max(s, 1) for s in strides], dtype=tensor.dtype, device=tensor.device
    )
    found.copy_(tensor.reshape(small))
    return found.as_strided(shape, strides)
