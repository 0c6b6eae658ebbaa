"""The sidecar of a finished video: the one reader, which trusts nothing it finds in a folder.

A sidecar that is not whole is skipped with a reason, whatever is odd about it: its type, size,
depth or one of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from json import loads
from pathlib import Path
from typing import Any

from accel.core.strict_json import finite

LARGEST = 16 * 2**20  # bytes; a real one has some hundred per attention site

_NUMBER = (int, float, type(None))
_MAYBE = (dict, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "video": (dict,), "job": (dict,), "seconds": _NUMBER, "peak_bytes": _NUMBER,
    "phase_peak_bytes": _MAYBE, "frames": (int,), "report": _MAYBE, "comparison": _MAYBE,
    "memory": (list,), "resumed_from_step": (int,), "steps_not_saved": (str,),
    "environment": _MAYBE, "prompt_cut": (list,), "inputs": (list,),
}  # fmt: skip
_COMPARED: dict[str, tuple[type, ...]] = {
    "psnr_db": _NUMBER, "ssim": _NUMBER, "reference_seconds": _NUMBER, "speedup": _NUMBER,
    "reference": (str,), "psnr_frames": (list,),
}  # fmt: skip


def read_sidecar(
    path: Path, note: Callable[[str], None] = lambda text: None
) -> dict[str, Any] | None:
    """Return a sidecar's content, or None for what is none; ``note`` is told why not.

    A file that is missing is not worth a note.
    """
    try:
        return load_sidecar(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        note(f"{path} is skipped: {error}")
        return None


def load_sidecar(path: Path) -> dict[str, Any]:
    """Return a sidecar's content, its values of the types that ``Output`` writes.

    A comparison without a number of dB was of equal videos: JSON cannot say infinity.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is not one of ours; the message says what is odd.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")  # reading a pipe would wait for ever
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")
    try:
        data = finite(loads(content))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("it holds no mapping")
    _check(data, _TYPES, ("id", "video"))
    _check(data["video"], {"sha256": (str,), "file": (str,)}, ("sha256",))
    if compared := data.get("comparison"):
        _check(compared, _COMPARED)
        if compared.get("psnr_db", 0) is None:
            compared["psnr_db"] = math.inf
        _check_all(compared, "psnr_frames", (int, float))
    _check_all(data, "memory", (str,))
    _check_all(data, "prompt_cut", (str,))
    _check_all(data, "inputs", (dict,))
    _check_all(data, "environment", (str,))
    _check_all(data, "phase_peak_bytes", (int, float))
    return data


def _check(
    data: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], needed: tuple[str, ...] = ()
) -> None:
    """Raise ValueError for a value of another type, or one that is missing but ``needed``."""
    for name, kinds in types.items():
        if name not in data and name not in needed:
            continue
        value = data.get(name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"its {name} is {value!r:.60}")


def _check_all(data: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> None:
    """Raise ValueError unless all values of a list or mapping in ``data`` are of these types."""
    values = data.get(name) or {}
    values = values if isinstance(values, dict) else dict(enumerate(values))
    _check(values, dict.fromkeys(values, kinds))
