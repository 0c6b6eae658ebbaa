"""Figures as JSON rows, which benchmarks append to and ``tables.py`` makes the README's tables of.

A row is ``{figure, value, unit, machine, weights, date, commit, command}``. ``figure``: a name like
"attention/(1, 8, 4096, 128)/speedup/int8"; ``value``: a number, or [lowest, highest] of several
runs; ``machine``: processor, instruction set, cores and torch's device type; ``weights``: the model
that was measured and a hash of its files, null for a figure that needs no weights. What is not
known is null. A ``note`` says what else a figure depends on. Rows are only ever added, and the last
one of a figure counts.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("figure", "value", "unit", "machine", "weights", "date", "commit", "command")
SIMULATED = {"processor": "simulated", "isa": None, "cores": None, "device": "meta"}
HASH = 12  # hexadecimal digits of a model's hash


class Figure(NamedTuple):
    """One measured number, or the [lowest, highest] of several runs."""

    name: str
    value: float | list[float]
    unit: str


def flat(nested: Mapping[Any, Any], prefix: str, units: Mapping[str, str]) -> Iterator[Figure]:
    """Yield the numbers in ``nested``, not lists or text; keys are joined by "/" after ``prefix``.
    The first key of ``units`` that is part of a figure's name says its unit.
    """
    for key, value in nested.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from flat(value, name, units)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield Figure(name, value, next((u for part, u in units.items() if part in name), ""))


def machine() -> dict[str, Any]:
    """Processor, instruction set of the native library, and cores in use."""
    from accel.kernels.cpu.native import library

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    return {"processor": processor, "isa": library().isa, "cores": cores, "device": "cpu"}


def card() -> dict[str, Any]:
    """The same of the GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    return {"processor": name, "isa": f"sm_{major}{minor}", "cores": None, "device": "cuda"}


def weights_of(model: str) -> dict[str, str]:
    """The name of a model's folder and the beginning of what stands for its content in job ids.

    Args:
        model: "tiny", a folder that a pipeline was saved to, or a hub id, whose commit counts.

    Raises:
        FileNotFoundError: There is no such folder, or no pipeline in it.
    """
    from accel.pipelines.batch.identity import model_fingerprint
    from accel.pipelines.load import local_folder

    folder = local_folder(model)
    name = model if folder is None else folder.resolve().name
    return {"model": name, "hash": model_fingerprint(model).rpartition("@")[2][:HASH]}


def why_no_card(device: torch.device) -> str:
    """Why our kernels cannot be measured on a GPU, or ""."""
    import torch

    from accel.kernels.gpu.support import why_not_gpu

    if not torch.cuda.is_available():
        return "no GPU is visible to torch: nothing was measured"
    reason = why_not_gpu(device)
    return f"the kernels cannot run on this GPU: {reason}" if reason else ""


def commit() -> str | None:
    """The commit that is checked out, "-dirty" behind it if there are changes; None outside git."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def command() -> str:
    """The command that is running, with ``ACCEL_ISA`` if it is set and without ``--json FILE``."""
    words = [os.path.relpath(os.path.abspath(sys.argv[0]), ROOT), *sys.argv[1:]]
    kept, skip = [], False
    for word in words:
        if not skip and word != "--json" and not word.startswith("--json="):
            kept.append(word)
        skip = word == "--json"
    isa = os.environ.get("ACCEL_ISA")
    return (f"ACCEL_ISA={isa} " if isa else "") + shlex.join(["python", *kept])


def append(
    path: Path,
    figures: Iterable[Figure],
    *,
    weights: Mapping[str, str] | None,
    on: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Add figures of this run to the rows in ``path``, which is made where it is missing.

    Args:
        path: A JSON file of rows, such as ``tests/bench/results/memory.json``.
        figures: What was measured.
        weights: ``weights_of(model)`` of the model that was measured, None if there was none.
        on: The machine, ``machine()`` by default.

    Returns:
        The rows that were added.
    """
    rows = json.loads(path.read_text()) if path.is_file() else []
    if not isinstance(rows, list) or not all(set(KEYS) <= set(row) for row in rows):
        other = path.with_suffix(".rows.json")  # what was measured is not thrown away
        print(f"{path} holds something else than rows; they go to {other}", file=sys.stderr)
        return append(other, figures, weights=weights, on=on)
    same = {
        "machine": dict(on or machine()),
        "weights": None if weights is None else dict(weights),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": command(),
    }
    added = [{"figure": f.name, "value": _short(f.value), "unit": f.unit, **same} for f in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, [*rows, *added])
    return added


def _short(value: float | list[float]) -> float | list[float]:
    return [float(f"{v:.6g}") for v in value] if isinstance(value, list) else float(f"{value:.6g}")


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one a line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")
