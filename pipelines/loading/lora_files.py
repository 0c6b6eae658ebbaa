"""A job's ``loras``, parsed, and what their files hold, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.core.plain_values import shown
from accel.core.validate import from_dict, number, one_of, text
from accel.pipelines.inputs.hashes import file_hash
from accel.pipelines.paths import safe_name, user_path

COMPONENTS = ("transformer", "transformer_2")
_WORDS = ("lora", "lokr", "dora")  # one of them is in the name of every tensor of a LoRA
_HEAVIEST = 100.0


@dataclass(frozen=True)
class Lora:
    """One LoRA of a job, checked when it is made.

    Args:
        file: A safetensors file; with ``id`` its name in the repository.
        id: A hub id ``owner/name``.
        weight: How much it counts; negative for the opposite.
        name: What messages call it.
        component: Of a model with two transformers, the one it is for; None for both.

    Raises:
        ValueError: A value that is not allowed.
    """

    file: str | None = None
    id: str | None = None
    weight: float = 1.0
    name: str = ""
    component: str | None = None

    def __post_init__(self) -> None:
        for name in ("file", "id"):
            if (value := getattr(self, name)) is not None:
                text(f"loras {name}", value)
        if not self.file and not self.id:
            raise ValueError("a LoRA needs file: a safetensors file, or id: a hub id")
        if self.file is not None and not self.file.endswith(".safetensors"):
            raise ValueError(
                f"loras file {shown(self.file)} is not read: it must end in .safetensors, since "
                "other formats can run code"
            )
        if self.id is not None and self.id.count("/") != 1:
            raise ValueError(f"loras id must be a hub id like owner/name, got {shown(self.id)}")
        number(f"loras weight of {self.label}", self.weight, -_HEAVIEST, _HEAVIEST)
        if self.component is not None:
            one_of(f"loras component of {self.label}", self.component, COMPONENTS)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or "/".join(part for part in (self.id, self.file) if part)

    @property
    def path(self) -> Path | None:
        """The file on this machine, None for one of the hub."""
        return None if self.id else user_path(self.file or "")

    @property
    def adapter(self) -> str:
        """Name of the adapter: of the content, so that one file is loaded once."""
        own = f"{self.id}-{self.file}" if self.path is None else file_hash(self.path)[:24]
        return safe_name(f"accel-{own}{f'-{self.component}' if self.component else ''}").replace(
            ".", "-"
        )


def parse(loras: Sequence[Mapping[str, Any]]) -> tuple[Lora, ...]:
    """Return the LoRAs of a job.

    Raises ValueError for what is none, and for one that is named twice.
    """
    found = tuple(from_dict(Lora, one, "loras") for one in loras)
    places = [(one.id, one.file, one.component) for one in found]
    for one, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"loras names {one.label} twice; add the weights")
    return found


def problem(loras: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with LoRAs as far as their files alone show, else ""."""
    try:
        for one in parse(loras):
            check_file(one)
    except ValueError as error:
        return str(error)
    return ""


def check_file(lora: Lora) -> None:
    """Raise ValueError for a file that is missing, broken or no LoRA; only its header is read."""
    if lora.path is None:
        return
    if not lora.path.is_file():
        raise ValueError(f"there is no LoRA {lora.file}")
    state = lora.path.stat()
    if why := _why_none(str(lora.path), state.st_size, state.st_mtime_ns):
        raise ValueError(why)


@lru_cache(maxsize=1024)
def _why_none(path: str, size: int, changed: int) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as content:
            names = list(content.keys())
    except (SafetensorError, OSError, ValueError) as error:
        return f"LoRA {path} is broken: {error}"
    if not any(word in name.lower() for name in names for word in _WORDS):
        example = f", such as {names[0]}" if names else ""
        return f"{path} is no LoRA: none of its {len(names)} tensors is one's{example}"
    return ""
