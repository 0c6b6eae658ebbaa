"""Whether an 8-bit layer pays: timed once per kind of call on this machine, kept for later runs.

A kind is precision and options, dtype, sizes of the weight, and rows to a power of two, since few
rows share the cost of a call between them. The layer's own weight and the rows of a real call are
used, ours and torch's product taking turns. More than ``MOST_ROWS`` rows cost what that many cost,
each. A file of the user's cache holds the results for one device, number of threads, instruction
set, version of torch and code of ours. What was measured while the machine was busy with other work
holds for this process only, and the next one measures again. With ``ACCEL_MEASURE=0`` nothing is
measured, and every layer that a kernel takes runs in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from accel.config import LinearConfig
from accel.kernels import measured

MOST_ROWS = 2048
REPEATS = 7
TURN = 2e8  # operations of a turn, about a millisecond, so that a call of a few is well timed
MOST_CALLS = 32  # of a turn
MIN_GAIN = measured.MIN_GAIN  # quantization of the rows included

_known: dict[tuple[Path, str], float] = measured.memory("linear")
_doubts: dict[tuple[Path, str], str] = {}


def rows_of(rows: int) -> int:
    """Return the rows that a call of ``rows`` rows is timed with: a power of two."""
    return int(min(1 << (max(rows, 1).bit_length() - 1), MOST_ROWS))


def kind(x: Tensor, features: int, precision: str, config: LinearConfig) -> str:
    """Return what decides how fast a call is; ``x`` [rows, K] is its input."""
    options = [config.hadamard * "hadamard", config.smooth * "smooth"]
    options += [f"{config.outliers} outliers"] if config.outliers else []
    size = f"{rows_of(x.shape[0])} x {x.shape[1]} -> {features}"
    return " ".join(filter(None, [precision, *options, str(x.dtype).split(".")[-1], size]))


def known(device: torch.device, name: str) -> float | None:
    """Return the gain of calls of the kind ``name``, None where it was never measured here."""
    file = _file(device, torch.get_num_threads())
    return measured.recall(_known, file, name)


def doubt(device: torch.device, name: str) -> str:
    """Return why the gain of the kind ``name`` is not kept for later runs, "" if it is."""
    return _doubts.get((_file(device, torch.get_num_threads()), name), "")


def gain(
    x: Tensor,
    features: int,
    name: str,
    ours: Callable[[Tensor], object],
    torchs: Callable[[Tensor], object],
) -> float:
    """Measure how many times as fast as torch's our call is, with rows of ``x`` [rows, K]."""
    if not measured.measuring():
        return math.inf
    file = _file(x.device, torch.get_num_threads())
    rows = x[: rows_of(x.shape[0])]
    work = 2 * rows.shape[0] * x.shape[1] * features
    calls = max(1, min(MOST_CALLS, round(TURN / max(work, 1))))
    jobs = (partial(ours, rows), partial(torchs, rows))
    found, _doubts[file, name] = measured.gain(_known, file, name, jobs, x.device, REPEATS, calls)
    return found


def why_not(gained: float) -> str:
    """Return the reason why "auto" leaves calls of that gain to torch, or ""."""
    if gained >= MIN_GAIN:
        return ""
    return f"torch's own linear layer is faster on this machine: measured {gained:.2f}x"


@cache
def _file(device: torch.device, threads: int) -> Path:
    code = ("*linear*.py", "*/*linear*.py", "packed_weight.py")
    return measured.times_file("linear", device, threads, code)
