"""8-bit linear layers against torch's: speed side by side, correctness first.

    python tests/bench/bench_linear.py [--rows 1024] [--dtypes fp32 bf16] [--shapes wan]

Shapes are layers of transformer blocks. Each result is first checked against fp64; then ours and
torch's run in turn, A B A B ..., and medians are compared. Ours includes quantizing x, scales and
bias; a weight is packed once, as in a pipeline. ``torch._int_mm`` is only the integer product of
codes that are there already, so it shows what fusing the rest costs or saves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import append, flat
from torch import Tensor

from accel.kernels.dispatch import environment
from accel.kernels.linear import linear, pack

# Rows (tokens), inputs, channels.
SHAPES = {
    "wan-1.3b attention": (8190, 1536, 1536),
    "wan-1.3b ffn up": (8190, 1536, 8960),
    "wan-1.3b ffn down": (8190, 8960, 1536),
    "flux attention": (4096, 3072, 3072),
    "flux ffn up": (4096, 3072, 12288),
    "sd3 ffn up": (4096, 1536, 6144),
    "sdxl attention": (4096, 640, 640),
    "sdxl ffn down": (1024, 5120, 1280),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ACTIVATED = ("ffn up",)
BOUND = 0.03  # relative error on N(0, 1), twice what eight bits give
UNITS = {"seconds": "s", "speedup": "×", "error": "relative"}
SLOWEST = 20.0  # seconds that one call of a contender may take to be timed again


def contenders(x: Tensor, w: Tensor, b: Tensor, activated: bool) -> dict[str, Callable[[], Tensor]]:
    """Ours, torch's layer, and torch's integer product."""
    packed = pack(w, impl="cpu")
    codes, weight = (t.float().mul(20).clamp(-127, 127).to(torch.int8) for t in (x, w))
    turned = weight.T

    def torchs() -> Tensor:
        y = F.linear(x, w, b)
        return F.gelu(y, approximate="tanh") if activated else y

    return {
        "torch": torchs,
        "ours": lambda: linear(x, packed, b, activation="gelu_tanh" if activated else None),
        "int_mm": lambda: torch._int_mm(codes, turned),
    }


def check(x: Tensor, w: Tensor, b: Tensor, ours: Callable[[], Tensor], activated: bool) -> float:
    """Relative error of some rows against fp64; raises if it is out of bounds."""
    some = torch.arange(0, x.shape[0], max(1, x.shape[0] // 64))
    exact = F.linear(x[some].double(), w.double(), b.double())
    if activated:
        exact = F.gelu(exact, approximate="tanh")
    error = float((ours()[some].double() - exact).norm() / exact.norm())
    if error > BOUND:
        raise SystemExit(f"relative error {error:.4f}, not timing a wrong result")
    return error


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, repeats: int, activated: bool
) -> dict[str, object]:
    """Median seconds of each contender, and how much faster than each ours is."""
    rows, inputs, channels = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=g).to(dtype)
    w = (torch.randn(channels, inputs, generator=g) / inputs**0.5).to(dtype)
    b = torch.randn(channels, generator=g).to(dtype)
    runs = contenders(x, w, b, activated)
    error = check(x, w, b, runs["ours"], activated)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            if times[name] and max(times[name]) > SLOWEST:
                continue
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if i or seconds > SLOWEST:  # the first round warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    over = {name: medians[name] / medians["ours"] for name in ("torch", "int_mm")}
    return {"seconds": medians, "speedup": over, "error": error}


def main() -> None:
    """Measure, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, help="at most so many rows of x")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--shapes", nargs="+", help="parts of names, such as wan")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(environment(), "load", os.getloadavg()[0])
    print(f"{'layer':20} {'rows x inputs -> channels':26} {'':5} {'torch':>9} {'ours':>9} "
          f"{'GOPS':>5} {'over torch':>10} {'over int_mm':>11} {'error':>6}")  # fmt: skip
    found: dict[str, object] = {}
    for name, (rows, inputs, channels) in SHAPES.items():
        if args.shapes and not any(part in name for part in args.shapes):
            continue
        shape = (min(rows, args.rows or rows), inputs, channels)
        for kind in args.dtypes:
            row = measure(shape, DTYPES[kind], args.repeats, name.endswith(ACTIVATED))
            found[f"{name} {kind}"] = row
            seconds, over = row["seconds"], row["speedup"]
            speed = 2e-9 * shape[0] * inputs * channels / seconds["ours"]  # type: ignore[index]
            print(
                f"{name:20} {f'{shape[0]} x {inputs} -> {channels}':26} {kind:5} "
                f"{seconds['torch'] * 1e3:6.1f} ms {seconds['ours'] * 1e3:6.1f} ms "  # type: ignore[index]
                f"{speed:5.0f} {over['torch']:9.2f}x {over['int_mm']:10.2f}x "  # type: ignore[index]
                f"{row['error']:6.4f}",
                flush=True,
            )
    if args.json:
        append(args.json, flat(found, "linear", UNITS))


if __name__ == "__main__":
    main()
