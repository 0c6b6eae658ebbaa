"""Models that a page offers, from its command line and from an allow-list file.

accel ui --models models.yaml

Wan 14B in 8 bits:                 # what the menu shows
  model: /models/wan-14b           # folder, file or hub id
  load: {weights: int8}            # as in a job file
Wan 1.3B: /models/wan-1.3b         # the same in short
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel.core.plain_values import check, shown
from accel.core.validate import known_keys, text
from accel.pipelines.batch.bounds import read_raw, text_of
from accel.pipelines.batch.yaml_stream import parts
from accel.pipelines.job import JobError
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.paths import with_home

_LONGEST = 80  # characters of a label


@dataclass(frozen=True)
class Offer:
    """A model with its ``load:``, as a job has them."""

    model: str
    load: Mapping[str, Any] | None = field(default=None, hash=False)


def read_offers(path: Path) -> dict[str, Offer]:
    """Return the offers of an allow-list file by label.

    Raises JobError for a file that cannot be read or holds anything else.
    """
    found = dict(_read(path))
    if not found:
        raise JobError(f"--models {path} offers nothing; write lines such as LABEL: FOLDER")
    return found


def _read(path: Path) -> Iterator[tuple[str, Offer]]:
    for part in parts(text_of(read_raw(path), path), path, ""):
        where = f"--models {path}, line {part.line}"
        if part.key is None:
            raise JobError(f"{where} needs LABEL: MODEL, got {shown(part.value)}")
        try:
            check(part.value, where)
            text(where, part.key)
            yield part.key, _offer(part.value, where)
        except ValueError as error:
            raise JobError(str(error)) from error
        if not 0 < len(part.key) <= _LONGEST:
            raise JobError(f"{where}: a label has 1 to {_LONGEST} characters")


def _offer(value: Any, where: str) -> Offer:
    data = {"model": value} if isinstance(value, str) else value
    data = known_keys(data, ("model", "load"), where)
    text(f"{where}: model", data.get("model"))
    try:
        LoadOptions.parse(data.get("load"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Offer(with_home(data["model"]), with_home(data.get("load")))


def unlike(name: str, taken: Container[str]) -> str:
    """Return the name, with as many primes as make it new."""
    while name in taken:
        name += "'"
    return name


def loras_in(folder: Path | None) -> dict[str, Path]:
    """Return the LoRA files of a folder by name, in order; none without a folder.

    Raises JobError for a folder that is missing or holds none.
    """
    if folder is None:
        return {}
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise JobError(f"--loras {folder} is no folder with .safetensors files")
    return {file.stem: file for file in files}


def chosen_loras(
    names: Sequence[str], weight: float, known: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Return ``loras`` of a job for names that a browser sent.

    Raises JobError for one that is not offered.
    """
    for name in names:
        if name not in known:
            raise JobError(f"LoRA {shown(name)} is not offered here; choose one of {list(known)}")
    return [{"file": str(known[name]), "weight": weight} for name in names]


def known_loras(
    loras: Sequence[Mapping[str, Any]], known: Mapping[str, Path]
) -> tuple[list[str], float, list[str]]:
    """Return names and weight of a job's LoRAs as the form has them, and notes on what it cannot.

    The form has one weight for all.
    """
    names, weights, notes = [], [], []
    for lora in loras:
        name = next((n for n, path in known.items() if str(path) == lora.get("file")), None)
        if name is None:
            notes.append(f"its LoRA {shown(lora.get('name') or Path(str(lora.get('file'))).stem)} "
                         "is not offered here")  # fmt: skip
            continue
        names.append(name)
        weights.append(float(lora.get("weight", 1.0)))
    if len(set(weights)) > 1:
        notes.append(f"its LoRAs have weights {weights}; the form gives all of them the first")
    return names, weights[0] if weights else 1.0, notes
