"""Measure the tables of times on this machine, and keep them in the user's cache.

Only tables that a prediction needs are measured, one after the other, in seconds each: every kind
of operator in torch's own code, and attention and linear layers of fewer bits as "auto" would run
them. Then the operators that most of a model's time goes to are measured in their own sizes. A file
of the cache holds all that for one device, number of threads, instruction set, version of torch and
code of ours. Before and after, the same small product is timed; where that shows that the machine
was busy a table is measured once more, and if it still was, it holds for this process only.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from accel.kernels import measured
from accel.memory.seconds.operator_calls import DTYPES, Job, block, of_operator
from accel.memory.seconds.operators import GLUE, Operator, Sizes, count
from accel.memory.seconds.rates import Points, Rates, corner

LONGEST = 0.12  # seconds of a point, larger ones are derived
ROUNDS = 5
TURN = 1e-3  # seconds of a turn, so that a call of a few microseconds is well timed
CHECKS = 7  # turns of the product that shows whether the machine is busy
SHARE = 0.98  # of a job's predicted seconds whose operators are measured in their own sizes
BUDGET = 30.0  # seconds for all of those
LEAST_GLUE = 1e-7  # seconds, where noise hides it

STREAM = ((2**12, 2**16, 2**20, 2**23, 2**26),)  # bytes
GRIDS: dict[str, tuple[Sizes, ...]] = {
    "matmul": ((1, 64, 1024), (64, 512, 4096), (64, 512, 4096)),
    "linear": ((128, 1024), (64, 512, 4096), (64, 512, 4096)),
    "attention": ((1, 8), (64, 512, 4096), (64, 512, 4096), (32, 128)),
    "conv": ((256, 16384), (8, 64, 512), (8, 64, 512)),
    "depthwise": ((256, 16384), (32, 512), (1,)),
    GLUE: (),
}
_known: dict[tuple[Path, str], Any] = measured.memory("seconds")
_doubts: dict[tuple[Path, str], str] = {}


def rates(device: torch.device, say: Callable[[str], None] = lambda text: None) -> Rates:
    """Return what is known of a device; tables that are not are measured when they are needed.

    ``say`` is called with one line of text before a table is measured. The same value is returned
    for a device and number of threads while this process runs.
    """
    found = _rates(device, torch.get_num_threads())
    found.measure = partial(_table, device, say)
    return found


@cache
def _rates(device: torch.device, threads: int) -> Rates:
    return Rates()


def doubts(device: torch.device) -> list[str]:
    """Return why times on a device are doubtful, each with what was measured."""
    file = _file(device, torch.get_num_threads())
    return [f"{name}, {why}" for (where, name), why in _doubts.items() if where == file and why]


def _table(device: torch.device, say: Callable[[str], None], name: str) -> Points | None:
    """Return the table ``name`` from the cache, or measured; None for one that cannot be."""
    kind, _, dtype = name.rpartition(" ") if name != GLUE else (GLUE, "", "")
    words = kind.split(" ")
    grid = GRIDS.get("depthwise" if "depthwise" in words else words[0], STREAM)
    smallest = Operator(kind, dtype, tuple(axis[0] for axis in grid))
    if kind != GLUE and (dtype not in DTYPES or of_operator(smallest, device) is None):
        return None

    def make(sizes: Sizes) -> Job:
        call = of_operator(replace(smallest, sizes=sizes), device)
        assert call is not None
        return call

    def run() -> dict[str, float]:
        say(f"measuring {name}")
        points = {(): _glue(device)} if kind == GLUE else _grid(grid, make, device)
        return {",".join(map(str, sizes)): seconds for sizes, seconds in points.items()}

    stored = _kept(name, run, device)
    return {tuple(map(int, filter(None, k.split(",")))): float(v) for k, v in stored.items()}


def _kept(name: str, run: Callable[[], dict[str, float]], device: torch.device) -> dict[str, float]:
    """Return what is stored under ``name``, or measure it and store it if there is no doubt."""
    file = _file(device, torch.get_num_threads())
    stored: dict[str, float] | None = _known.get((file, name)) or measured.read(file).get(name)
    if stored is None:
        if not measured.measuring():
            raise ValueError(
                f"seconds of {name!r} were never measured on this machine, and ACCEL_MEASURE=0 "
                "forbids to measure: run once without it"
            )
        for _ in range(2):
            before = _check(device)
            stored = run()
            doubt = _doubts[file, name] = measured.busy(before, _check(device))
            if not doubt:
                measured.add(file, name, stored)
                break
    assert stored is not None
    _known[file, name] = stored
    return stored


def _grid(
    grid: tuple[Sizes, ...], make: Callable[[Sizes], Job], device: torch.device
) -> dict[Sizes, float]:
    """Return seconds by sizes; points that would take too long are left out."""
    points: dict[Sizes, float] = {}
    axes = [sorted(axis) for axis in grid]
    for place in itertools.product(*(range(len(axis)) for axis in reversed(axes))):
        place = place[::-1]  # the first axis is the fastest
        sizes = tuple(axis[i] for axis, i in zip(axes, place, strict=True))
        if any(place) and corner(points, axes, place) > LONGEST:
            continue
        points[sizes] = _seconds(make(sizes), device)
    return points


def _seconds(job: Job, device: torch.device) -> float:
    """Return the seconds of a call: the median of rounds; one of a long one."""
    (once,) = measured.turns([job], device, 1)[0]
    if once > 1e3 * LONGEST:
        return once / 1e3
    burst = max(1, min(256, round(1e3 * TURN / max(once, 1e-4))))
    return max(statistics.median(measured.turns([job], device, ROUNDS, burst)[0]) / 1e3, 1e-9)


def _check(device: torch.device) -> list[float]:
    """Return milliseconds of turns of a small product."""
    a = torch.ones(384, 384, dtype=torch.float32, device=device)
    return measured.turns([lambda: a @ a], device, CHECKS, 2)[0]


def _glue(device: torch.device) -> float:
    """Return what each view and call of a module costs in small blocks, operators taken off."""
    stack, given = block(device)
    on_meta, sizes = block(torch.device("meta"))
    counted, known = count(lambda: on_meta(*sizes)).all(), _rates(device, torch.get_num_threads())
    operators = sum(known.seconds(op) * n for op, n in counted.items() if op.kind != GLUE)
    with torch.no_grad():
        rest = _seconds(lambda: stack(*given), device) - operators
    number = sum(n for op, n in counted.items() if op.kind == GLUE)
    return max(rest / number, LEAST_GLUE)


# ------------------------------------------------------------------------------ A model's own sizes


def measure_own(
    operators: Mapping[Operator, int], rates: Rates, device: torch.device,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure the operators that most of a job's time goes to in their own sizes.

    Where that would take long, a part of their rows, heads or lines is measured. At most
    ``BUDGET`` seconds are spent; the rest is interpolated in the tables.
    """
    spent = {op: rates.seconds(op) * number for op, number in operators.items()}
    total, seen, start = sum(spent.values()), 0.0, time.perf_counter()
    for op in sorted(spent, key=lambda op: -spent[op]):
        seen += spent[op]
        if op.key not in rates.own and op.kind.split(" ")[0] in GRIDS and op.kind != GLUE:
            if time.perf_counter() - start > BUDGET:
                return
            part, times = _part(op, rates.seconds(op))

            def run(part: Operator = part, times: float = times) -> dict[str, float]:
                say(f"measuring {part.key}")
                call = of_operator(part, device)
                assert call is not None
                return {"seconds": times * _seconds(call, device)}

            rates.own[op.key] = _kept(op.key, run, device)["seconds"]
        if seen > SHARE * total:
            return


def _part(op: Operator, seconds: float) -> tuple[Operator, float]:
    """Return a part of an operator that takes a moment, and how many times as long all of it is."""
    share = min(1.0, LONGEST / max(seconds, 1e-9))
    kind, (first, *rest) = op.kind.split(" ")[0], op.sizes
    if share == 1.0 or (kind == "conv" and len(op.shape[0]) < 4):
        return op, 1.0
    if kind == "conv":
        x, kernel = op.shape[0], op.shape[1]
        lines = min(x[-2], max(8 + kernel[-2], round(share * x[-2])))
        shape = ((*x[:-2], lines, x[-1]), *op.shape[1:])
        edge = kernel[-2] - 1 - 2 * op.shape[3][-2]
        return replace(op, shape=shape), (x[-2] - edge) / (lines - edge)
    least = 256 if kind != "attention" else torch.get_num_threads()
    count = min(first, max(least, round(share * first)))
    times, share = first / count, min(1.0, share * first / count)
    if kind == "attention":
        queries = min(rest[0], max(256, round(share * rest[0])))
        times, rest = times * rest[0] / queries, [queries, *rest[1:]]
    return replace(op, sizes=(count, *rest)), times


@cache
def _file(device: torch.device, threads: int) -> Path:
    own = (Path(__file__), Path(__file__).with_name("operator_calls.py"))
    code = ("attention*.py", "*linear*.py", "packed_weight.py", "cpu/*.py", "gpu/*.py", *own)
    return measured.times_file("seconds", device, threads, code)
