"""Quantized attention against torch's: speed side by side, correctness first.

    python tests/bench/bench_attention.py [--quick] [--crossover] [--json FILE]

For each shape the result of every precision is first checked against torch's attention (relative
L1); then all contenders run in turn, A B C A B C ..., and the median over the repeats is compared.
Times include everything from the caller's fp32 tensors to the fp32 result: smoothing, quantization,
layout. ``--crossover`` measures short sequences through ``impl="auto"`` as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import append, flat
from torch import Tensor

from accel.kernels.attention import attention
from accel.kernels.dispatch import environment

SHAPES = [(1, 8, 4096, 128), (1, 8, 4096, 64), (1, 2, 16384, 128), (1, 3, 320, 64)]
# Short sequences come in batches (temporal attention over all pixels); 4096 tokens in all.
LENGTHS = (16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 32768)
SHORT = [(max(1, 4096 // t), 8 if t < 8192 else 1, t, d) for d in (40, 64, 128) for t in LENGTHS]
UNITS = {"seconds": "s", "speedup": "×", "relative_l1": "relative L1"}
BOUNDS = {"int8": 0.03, "int6": 0.06, "int4": 0.22}  # relative L1 on N(0, 1), with margin


def contenders(q: Tensor, k: Tensor, v: Tensor, *, auto: bool) -> dict[str, Callable[[], Tensor]]:
    """Torch first, then every precision of the native kernel, and "auto" if asked."""
    runs: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v)
    }
    for precision in BOUNDS:
        runs[precision] = lambda p=precision: attention(q, k, v, precision=p, impl="cpu")
    if auto:
        runs["auto int8"] = lambda: attention(q, k, v, precision="int8")
    return runs


def check(runs: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Relative L1 to torch's result; raises if one is out of bounds."""
    exact = runs["sdpa"]()
    errors = {}
    for name, run in runs.items():
        errors[name] = float((run() - exact).abs().sum() / exact.abs().sum())
        if errors[name] > BOUNDS.get(name, 0.03):
            raise SystemExit(f"{name}: relative L1 {errors[name]:.4f}, not timing a wrong result")
    return errors


def measure(shape: tuple[int, ...], repeats: int, *, auto: bool = False) -> dict[str, object]:
    """Median seconds and speed-up over torch for every contender at ``shape`` = (B, H, T, D)."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=g) for _ in range(3))
    runs = contenders(q, k, v, auto=auto)
    errors = check(runs)
    work = shape[0] * shape[1] * shape[2] ** 2 * shape[3]
    inner = max(1, int(1e8 / work))  # at least some ms per sample
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(inner):
                run()
            times[name].append((time.perf_counter() - start) / inner)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "shape": shape,
        "seconds": medians,
        "speedup": {name: medians["sdpa"] / value for name, value in medians.items()},
        "relative_l1": errors,
    }


def main() -> None:
    """Measure, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--crossover", action="store_true", help="short sequences and auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    repeats, shapes = (3, SHAPES) if args.quick else (9, SHAPES)
    if args.crossover:
        shapes = SHORT
    print(environment())
    rows = []
    for shape in shapes:
        row = measure(shape, repeats, auto=args.crossover)
        rows.append(row)
        cells = [
            f"{name} {row['seconds'][name] * 1e3:.2f} ms {ratio:.2f}x"  # type: ignore[index]
            for name, ratio in row["speedup"].items()  # type: ignore[attr-defined]
        ]
        print(f"{shape!s:22s}", " | ".join(cells), flush=True)
    if args.json:
        for row in rows:
            append(args.json, flat(row, f"attention/{row['shape']}", UNITS), weights=None)


if __name__ == "__main__":
    main()
