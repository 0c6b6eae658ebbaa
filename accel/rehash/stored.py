"""The tensors that step rehash keeps of a computed step, per branch of guidance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel.config import Storage


class Stored:
    """One kept tensor: unchanged, in the CPU's memory, or as INT8 with scales.

    INT8 has a scale for each channel of a latent [B, C, F, H, W] or for each token of a stream [B,
    T, C]. Outputs are close to normal; there 8-bit integers lose 8 dB less than E4M3, which spends
    its bits on small values.
    """

    def __init__(self, tensor: Tensor, store: Storage) -> None:
        self.device, self.dtype = tensor.device, tensor.dtype
        self.scale: Tensor | None = None
        tensor = tensor.detach()
        if store == "int8":
            inner = tuple(range(2, tensor.dim())) or tuple(range(tensor.dim()))
            peak = tensor.abs().amax(inner, keepdim=True).float()
            self.scale = (peak / 127).clamp_min(1e-12)
            tensor = (tensor.float() / self.scale).round().to(torch.int8)
        self.tensor = tensor.cpu() if store == "cpu" else tensor

    def get(self) -> Tensor:
        """Return the tensor in its own dtype, on its own device."""
        if self.scale is not None:
            return (self.tensor.float() * self.scale).to(self.dtype)
        return self.tensor.to(self.device)

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return self.tensor.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint."""
        return {
            "tensor": self.tensor.cpu().clone(),
            "scale": None if self.scale is None else self.scale.cpu().clone(),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], store: Storage) -> Stored:
        """Return the stored tensor of ``to_dict``."""
        self = cls.__new__(cls)
        self.device, self.dtype = torch.device(data["device"]), getattr(torch, data["dtype"])
        at = torch.device("cpu") if store == "cpu" else self.device
        self.tensor = data["tensor"].to(at)
        self.scale = None if data["scale"] is None else data["scale"].to(at)
        return self


@dataclass
class Entry:
    """The result of one computed call: its step, its timestep, and one tensor per stream."""

    step: int
    time: float
    values: tuple[Stored, ...]


@dataclass
class Branch:
    """Entries of one branch of guidance of a denoiser, newest first.

    ``name`` starts with that of the denoiser. ``signature`` holds shape, dtype and device of the
    denoiser's input they were computed from.
    """

    denoiser: str
    name: tuple[Hashable, ...] = ()
    signature: Any = None
    entries: list[Entry] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(value.bytes for entry in self.entries for value in entry.values)

    def places(
        self, schedule: Sequence[float], step: int | None, time: float, first: float
    ) -> tuple[list[float], float]:
        """Return where the entries and a step lie in the run, from 1 at its start to 0.

        ``schedule`` has the places of the run's steps. Where it has not all of these, the share of
        the largest timestep ``first`` stands in.
        """
        last = max([-1 if step is None else step, *(e.step for e in self.entries)])
        if step is None or last >= len(schedule):
            return [e.time / (first or 1.0) for e in self.entries], time / (first or 1.0)
        return [schedule[e.step] for e in self.entries], schedule[step]

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint."""
        entries = [(e.step, e.time, [v.to_dict() for v in e.values]) for e in self.entries]
        return {
            "denoiser": self.denoiser,
            "key": self.name,
            "signature": self.signature,
            "entries": entries,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], store: Storage) -> Branch:
        """Return the branch of ``to_dict``."""
        entries = [
            Entry(step, time, tuple(Stored.from_dict(v, store) for v in values))
            for step, time, values in data["entries"]
        ]
        return cls(data["denoiser"], data["key"], data["signature"], entries)
