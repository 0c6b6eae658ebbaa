"""8-bit linear layers against torch's: speed side by side, correctness first.

    python tests/bench/bench_linear.py [--rows 1024] [--dtypes fp32 bf16] [--shapes wan]

Shapes are layers of transformer blocks. Each result is first checked against fp64; then all
contenders run in turn, A B C A B C ..., and medians are compared. Ours includes quantizing x,
scales, bias and, after "ffn up", GELU; a weight is packed once, as in a pipeline. Beside it:

- ``ready``: ours with the rows quantized before, so the rest of ours is what quantizing costs;
- ``int_mm``: ``torch._int_mm``, the product of codes that are there already, and nothing else;
- ``apart``: ours without GELU, then torch's, where GELU follows;
- ``three`` and ``once``: three layers with the same input, each quantizing it, and one for all;
- ``rate``: products per second of the product alone (``ready``) over what the multiply units do
  from registers, measured in this run (``peak.cpp``; needs a C++ compiler, "-" without one).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_limits import FLAGS, rates
from rows import append, flat
from torch import Tensor

from accel.kernels.cpu import linear as cpu
from accel.kernels.cpu.native import library
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
ACTIVATED, SHARED = ("ffn up",), ("attention",)
BOUND = 0.03  # relative error on N(0, 1), twice what eight bits give
UNITS = {"seconds": "s", "speedup": "×", "error": "relative", "rate": "of the multiply rate"}
SLOWEST = 20.0  # seconds that one call of a contender may take to be timed again

Runs = dict[str, Callable[[], object]]


def contenders(x: Tensor, w: Tensor, b: Tensor, activated: bool, shared: bool) -> Runs:
    """Ours, torch's layer, and what the module's text names."""
    packed = pack(w, impl="cpu")
    codes, weight = (t.float().mul(20).clamp(-127, 127).to(torch.int8) for t in (x, w))
    quantized, then = cpu.quantize(x, packed), "gelu_tanh" if activated else None

    def torchs() -> Tensor:
        return gelu(F.linear(x, w, b)) if activated else F.linear(x, w, b)

    def gelu(y: Tensor) -> Tensor:
        return F.gelu(y, approximate="tanh")

    def once() -> None:
        rows = cpu.quantize(x, packed)
        for _ in range(3):
            cpu.multiply(rows, x, packed, b, "none")

    runs: Runs = {
        "torch": torchs,
        "ours": lambda: linear(x, packed, b, activation=then),  # type: ignore[arg-type]
        "ready": partial(cpu.multiply, quantized, x, packed, b, then or "none"),
        "int_mm": lambda: torch._int_mm(codes, weight.T),
    }
    if activated:
        runs["apart"] = lambda: gelu(linear(x, packed, b))
    if shared:
        runs |= {"three": lambda: [linear(x, packed, b) for _ in range(3)], "once": once}
    return runs


def check(x: Tensor, w: Tensor, b: Tensor, ours: Callable[[], object], activated: bool) -> float:
    """Relative error of some rows against fp64; raises if it is out of bounds."""
    some = torch.arange(0, x.shape[0], max(1, x.shape[0] // 64))
    exact = F.linear(x[some].double(), w.double(), b.double())
    if activated:
        exact = F.gelu(exact, approximate="tanh")
    out = ours()
    assert isinstance(out, Tensor)
    error = float((out[some].double() - exact).norm() / exact.norm())
    if error > BOUND:
        raise SystemExit(f"relative error {error:.4f}, not timing a wrong result")
    return error


def measure(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, repeats: int, peak: float | None
) -> dict[str, object]:
    """Median seconds of each contender, how much faster than each ours is, and its rate."""
    rows, inputs, channels = shape
    activated = name.endswith(ACTIVATED)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=g).to(dtype)
    w = (torch.randn(channels, inputs, generator=g) / inputs**0.5).to(dtype)
    b = torch.randn(channels, generator=g).to(dtype)
    runs = contenders(x, w, b, activated, name.endswith(SHARED))
    error = check(x, w, b, runs["ours"], activated)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for contender, run in runs.items():
            if times[contender] and max(times[contender]) > SLOWEST:
                continue
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if i or seconds > SLOWEST:  # the first round warms up
                times[contender].append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    over = {key: medians[key] / medians["ours"] for key in runs if key in OVER}
    if "once" in runs:
        over["once"] = medians["three"] / medians["once"]
    rate = {} if peak is None else {"rate": rows * inputs * channels / medians["ready"] / peak}
    return {"seconds": medians, "speedup": over, "error": error, **rate}


OVER = ("torch", "ready", "int_mm", "apart")
HEADER = (
    f"{'layer':20} {'rows x inputs -> channels':26} {'':5} {'torch':>9} {'ours':>9} {'GOPS':>5} "
    f"{'x torch':>7} {'x ready':>7} {'x int_mm':>8} {'x apart':>7} {'once':>6} {'rate':>5} "
    f"{'error':>6}"
)


def line(name: str, shape: tuple[int, int, int], kind: str, row: dict[str, object]) -> str:
    """One layer in the columns of ``HEADER``; "x torch" is torch's time over ours."""
    seconds, over = row["seconds"], row["speedup"]
    assert isinstance(seconds, dict) and isinstance(over, dict)
    rows, inputs, channels = shape
    speed = 2e-9 * rows * inputs * channels / seconds["ours"]
    size = f"{rows} x {inputs} -> {channels}"
    apart, once = (f"{over[key]:.2f}x" if key in over else "-" for key in ("apart", "once"))
    rate = f"{row['rate']:.0%}" if "rate" in row else "-"
    return (
        f"{name:20} {size:26} {kind:5} {seconds['torch'] * 1e3:6.1f} ms "
        f"{seconds['ours'] * 1e3:6.1f} ms {speed:5.0f} {over['torch']:6.2f}x {over['ready']:6.2f}x "
        f"{over['int_mm']:7.2f}x {apart:>7} {once:>6} {rate:>5} {row['error']:6.4f}"
    )


def multiply_rate() -> float | None:
    """8-bit multiply-adds per second of all threads from registers, None if not measured."""
    isa = library().isa
    if isa not in FLAGS:
        return None
    try:
        return max(rates(isa)["multiply_adds_per_second"] for _ in range(3))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the multiply rate was not measured: {error}")
        return None


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
    peak = multiply_rate()
    if peak is not None:
        print(f"multiply units: {2e-9 * peak:.0f} GOPS from registers")
    print(HEADER)
    found: dict[str, object] = {}
    for name, (rows, inputs, channels) in SHAPES.items():
        if args.shapes and not any(part in name for part in args.shapes):
            continue
        shape = (min(rows, args.rows or rows), inputs, channels)
        for kind in args.dtypes:
            row = measure(name, shape, DTYPES[kind], args.repeats, peak)
            found[f"{name} {kind}"] = row
            print(line(name, shape, kind, row), flush=True)
    if args.json:
        append(args.json, flat(found, "linear", UNITS), weights=None)


if __name__ == "__main__":
    main()
