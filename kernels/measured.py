"""Time contenders in turn, and keep what was measured as JSON in the user's cache.

A file's name says what its figures hold for: the device, the versions, and a hash of the code that
was timed, so that changed code is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from accel.kernels.cpu import native

MIN_GAIN = 1.05  # time of what would run over what is tried, from which it is used
SPREAD = 0.25  # of ratios of rounds; on a quiet machine it is a few hundredths


def cache_file(kind: str, holds_for: str, code: Iterable[Path]) -> Path:
    """Return ``$XDG_CACHE_HOME/accel-diffusion/<kind>-<what it holds for>-<hash of code>.json``."""
    own = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(code))).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{holds_for} {own}")
    return _folder() / f"{kind}-{name}.json"


def times_file(
    kind: str, device: torch.device, threads: int, code: Iterable[str | Path], also: str = ""
) -> Path:
    """Return the file of times that hold for a device, its instructions, torch and some code.

    ``code``: patterns of files of this package, or files; the compiled library belongs to it.
    ``also``: what else the times hold for.
    """
    folder, library = Path(__file__).parent, native.library()
    files = [
        file for part in code for file in ([part] if isinstance(part, Path) else folder.glob(part))
    ]
    files += [] if library.lib is None else [Path(library.lib._name)]
    where = f"{machine(device, library.isa, threads)} torch {torch.__version__}{also}"
    return cache_file(kind, where, files)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "accel-diffusion"


_memories: dict[str, dict[tuple[Path, str], Any]] = {}


def memory(what: str) -> dict[tuple[Path, str], Any]:
    """Return what this process knows of ``what``, by the file that it would be kept in and kind."""
    return _memories.setdefault(what, {})


def remembered() -> dict[str, dict[str, dict[str, Any]]]:
    """Return all that this process knows as plain values, also what is too doubtful to be kept.

    By what it is about, the name of its file, and kind: for a run that goes on in another process.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for what, known in _memories.items():
        for (file, kind), value in known.items():
            plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            found.setdefault(what, {}).setdefault(file.name, {})[kind] = plain
    return found


def remember(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Take over what ``remembered`` gave in another process; what is known here stays."""
    for what, files in found.items():
        for name, kinds in files.items():
            for kind, value in kinds.items():
                memory(what).setdefault((_folder() / name, kind), value)


def measuring() -> bool:
    """Return whether this process measures at all; ``ACCEL_MEASURE=0`` says no."""
    return os.environ.get("ACCEL_MEASURE", "1") != "0"


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds; one that cannot be read counts as empty."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(path: Path, data: dict[str, Any]) -> None:
    """Store ``data``; a folder that cannot be written to costs a measurement per process."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, indent=2) + "\n")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()


def add(path: Path, key: str, value: Any) -> None:
    """Store one value beside the others of a file."""
    write(path, {**read(path), key: value})


def recall(known: dict[tuple[Path, str], float], path: Path, key: str) -> float | None:
    """Return the number of ``key`` that ``known`` or else the file has, None without one."""
    if (path, key) not in known:
        stored = read(path).get(key)
        if not isinstance(stored, (int, float)):
            return None
        known[path, key] = float(stored)
    return known[path, key]


def gain(
    known: dict[tuple[Path, str], float], path: Path, key: str,
    jobs: tuple[Callable[[], object], Callable[[], object]], device: torch.device, repeats: int,
    burst: int = 1,
) -> tuple[float, str]:  # fmt: skip
    """Time two jobs, ours and torch's; return how many times as fast ours is, and the doubt.

    The gain goes to ``known``, and to the file if there is no doubt (``busy``).
    """
    mine, theirs = turns(list(jobs), device, repeats, burst)
    found = known[path, key] = statistics.median(theirs) / max(statistics.median(mine), 1e-9)
    doubt = busy(mine, theirs)
    if not doubt:
        add(path, key, found)
    return found, doubt


def alternate(
    jobs: list[Callable[[], object]], device: torch.device, repeats: int, burst: int = 1
) -> list[float]:
    """Return the median milliseconds of each job over ``repeats`` rounds of one turn per job.

    A turn is ``burst`` calls in a row. Each job is called once before, not timed.
    """
    return [statistics.median(t) for t in turns(jobs, device, repeats, burst)]


def turns(
    jobs: list[Callable[[], object]], device: torch.device, repeats: int, burst: int = 1
) -> list[list[float]]:
    """Return the milliseconds of each job in each round, as ``alternate`` times them."""
    times: list[list[float]] = [[] for _ in jobs]
    clock = _on_card if device.type == "cuda" else _on_cpu
    for job in jobs:
        job()
    for _ in range(repeats):
        for job, out in zip(jobs, times, strict=True):
            out.append(clock(job, device, burst) / burst)
    return times


def busy(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Return why other work on the machine made two jobs' turns doubtful, or "".

    Two signs: the ratio of a round moves from round to round (its middle half spans more than
    ``SPREAD`` of the median), or more threads are ready to run than there are processors, which
    this process alone, with a thread for each, does not do.
    """
    low, middle, high = statistics.quantiles([b / a for a, b in zip(mine, theirs, strict=True)])
    if high - low > SPREAD * middle:
        return f"its rounds gave {low:.2f}x to {high:.2f}x"
    waiting, processors = _load(), os.cpu_count() or 1
    if waiting > 1.25 * processors:
        return f"{waiting:.1f} threads wanted {processors} processors"
    return ""


def _load() -> float:
    """Return the threads that were ready to run in the last minute, 0 where that is unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _on_cpu(job: Callable[[], object], device: torch.device, burst: int) -> float:
    start = time.perf_counter()
    for _ in range(burst):
        job()
    return 1e3 * (time.perf_counter() - start)


def _on_card(job: Callable[[], object], device: torch.device, burst: int) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(burst):
            job()
        end.record()
        end.synchronize()
    return start.elapsed_time(end)


def machine(device: torch.device, isa: str, threads: int) -> str:
    """Return what times on a device hold for: the card, or processor, instructions, threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()} {isa} {threads} threads"


@cache
def processor() -> str:
    """Return the model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
