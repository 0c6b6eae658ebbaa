"""What attention sinks cost INT8 on the CPU: its error by keys and gaps, and its time.

    python tests/bench/bench_sinks.py [--quick] [--other LIBRARY]

The error is relative L1 to fp64 on N(0, 1) with keys whose logits stand "gap" nats above the mean
of the others (``tests/helpers/sinks.py``), the worst of all head sizes, places, numbers of sinks
and sizes of their values; ends with status 1 where one is over 0.05. Times are medians of CPU
seconds on one thread, in alternation: calls with sinks beside plain ones of the same shape, and
with ``--other`` an accel_cpu library, of an earlier build say, beside the installed one.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.sinks import PLACES, with_sinks
from helpers.tensors import qkv, relative_l1

from accel.kernels.attention import attention
from accel.kernels.attention_call import AttentionCall
from accel.kernels.cpu import attention as cpu
from accel.kernels.cpu import native
from accel.kernels.dispatch import environment

MOST = 0.05
KEYS, QUICK = (128, 512, 2048, 8192, 32768), (128, 1024)
GAPS = (0, 1, 2, 3, 4, 5, 5.5, 6, 7, 8, 9, 10.5, 12)
SHAPES = [(1, 8, 4096, 64), (1, 8, 4096, 128), (1, 2, 16384, 128), (1, 12, 1024, 64)]


def worst(keys: int, gap: float) -> float:
    """Return the largest error of all cases of so many keys at a gap."""
    found = 0.0
    sizes, spreads, sinks = (1.0, 0.3, 0.05, 0.0), (1.0, 0.3), (1, 4)
    cases = itertools.product((64, 128), PLACES, sinks, sizes, spreads)
    for dim, place, n, size, spread in cases:
        queries = 96 if keys < 8192 else 24
        q, k, v = with_sinks(
            keys, gap, dim, place=place, sinks=n, size=size, spread=spread, queries=queries
        )
        exact = attention(q.double(), k.double(), v.double(), precision="full")
        found = max(found, relative_l1(attention(q, k, v, impl="cpu"), exact))
    return found


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each contender's median CPU seconds; they run in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def call(library: ctypes.CDLL, tensors: list[Tensor]) -> Callable[[], object]:
    """Return an INT8 call that runs in ``library``."""

    def run() -> object:
        cpu.require = lambda: library
        return cpu.attention(AttentionCall(*tensors), 8)

    return run


def cases() -> dict[str, list[Tensor]]:
    """Return named inputs: plain ones, ones with sinks, and peaked ones."""
    found = {f"N(0, 1) {s}": qkv(s[2], dim=s[3], heads=s[1]) for s in SHAPES}
    for place, n in (("first", 1), ("every", 1), ("every", 4)):
        how = {"place": place, "sinks": n, "queries": 4096, "heads": 2}
        for dim in (64, 128):
            name = f"{n} sinks, {place}, (1, 2, 4096, {dim})"
            found[name] = with_sinks(4096, 7, dim, **how)  # type: ignore[arg-type]
    for steep in (2, 4):
        q, k, v = qkv(4096)
        found[f"logits of N(0, {steep}^2), (1, 2, 4096, 64)"] = [q * steep, k, v]
    return found


def main() -> int:
    """Print errors, then times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few keys, three repeats")
    parser.add_argument("--other", type=Path, help="a library to compare with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    print("keys    " + "".join(f"{gap:>8}" for gap in GAPS))
    over = 0.0
    for keys in QUICK if options.quick else KEYS:
        errors = [worst(keys, gap) for gap in GAPS]
        over = max(over, *errors)
        print(f"{keys:<8}" + "".join(f"{error:8.3f}" for error in errors), flush=True)
    libraries = {"installed": native.require()}
    if options.other:
        libraries["other"] = ctypes.CDLL(str(options.other))
        native._declare(libraries["other"])
    for name, tensors in cases().items():
        runs = {which: call(library, tensors) for which, library in libraries.items()}
        plain = qkv(tensors[0].shape[2], dim=tensors[0].shape[3], heads=tensors[0].shape[1])
        runs["plain"] = call(libraries["installed"], plain)
        found = medians(runs, 3 if options.quick else 15)
        rest = [f"{found['installed'] / found[n]:.3f} of {n}" for n in runs if n != "installed"]
        print(f"{name}: {found['installed'] * 1e3:.1f} ms, {', '.join(rest)}", flush=True)
    return int(over > MOST)


if __name__ == "__main__":
    sys.exit(main())
