"""8-bit linear layers on this machine's GPU: checked, then timed against what users have.

    python tests/bench/gpu_linear.py [--repeats 7] [--shapes wan flux] [--json FILE]

Shapes are layers of real models. Our time includes quantizing rows, scales and bias. Baselines:
torch's layer in bf16, and torchao's INT8 and E4M3 with activations quantized for each row, compiled
as torchao advises, where it is installed; what is not is named. Median of alternating repeats. A
layer whose result is not near fp64 is not timed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import append, card, flat, why_no_card
from torch import Tensor, nn

from accel.kernels import measured
from accel.kernels.gpu.support import capability
from accel.kernels.linear import linear, pack, why_not

# Rows (tokens), inputs, channels.
SHAPES = {
    "wan-1.3b attention": (32760, 1536, 1536),
    "wan-1.3b ffn up": (32760, 1536, 8960),
    "wan-1.3b ffn down": (32760, 8960, 1536),
    "wan-14b attention": (32760, 5120, 5120),
    "wan-14b ffn up": (32760, 5120, 13824),
    "flux attention": (4608, 3072, 3072),
    "flux ffn up": (4608, 3072, 12288),
    "sdxl attention": (8192, 640, 640),
    "sdxl ffn down": (2048, 5120, 1280),
}
UNITS = {"/ms/": "ms", "/speedup/": "×", "error": "relative"}
WORST = 0.08  # relative error beyond which a layer counts as wrong; E4M3 has 0.037 on N(0, 1)
BURST = 5  # calls of a turn

Layer = Callable[[Tensor], Any]


def contenders(layer: nn.Linear, x: Tensor) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by name, and why others are missing."""
    found: dict[str, Layer] = {"torch bf16": layer}
    missing: dict[str, str] = {}
    for precision in ("int8", "fp8"):
        name = f"accel {precision}"
        if why := why_not(x, layer.weight, precision, impl="gpu"):  # type: ignore[arg-type]
            missing[name] = why
            continue
        packed = pack(layer.weight, precision=precision, impl="gpu")  # type: ignore[arg-type]
        found[name] = partial(_ours, packed, layer.bias)
    theirs, missing_theirs = _torchao(layer)
    return {**found, **theirs}, {**missing, **missing_theirs}


def _ours(packed: Any, bias: Tensor | None, x: Tensor) -> Tensor:
    return linear(x, packed, bias)


def _torchao(layer: nn.Linear) -> tuple[dict[str, Layer], dict[str, str]]:
    """torchao's layers in INT8 and E4M3, and why there are none."""
    names = ("torchao int8", "torchao fp8")
    try:
        from torchao import quantization as ao
    except ImportError as error:
        return {}, dict.fromkeys(names, str(error))
    found: dict[str, Layer] = {}
    missing: dict[str, str] = {}
    kinds: dict[str, Callable[[], Any]] = {
        names[0]: ao.Int8DynamicActivationInt8WeightConfig,
        names[1]: partial(ao.Float8DynamicActivationFloat8WeightConfig, granularity=ao.PerRow()),
    }
    for name, kind in kinds.items():
        model = nn.Sequential(copy.deepcopy(layer))
        try:
            ao.quantize_(model, kind())
        except Exception as failure:  # such as a card without E4M3
            missing[name] = _named(failure)
            continue
        found[name] = torch.compile(model) if layer.weight.is_cuda else model
    return found, missing


def _named(failure: Exception) -> str:
    lines = str(failure).splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0]}"[:200]


@torch.no_grad()
def measure(
    device: torch.device, repeats: int, shapes: Mapping[str, tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """One row a shape: error and milliseconds of each layer, or why it has none."""
    rows = []
    for name, (tokens, inputs, channels) in shapes.items():
        torch.manual_seed(0)
        layer = nn.Linear(inputs, channels, device=device, dtype=torch.bfloat16)
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
        layers, failed = contenders(layer, x)
        some = torch.arange(0, tokens, max(1, tokens // 64), device=device)
        exact = nn.functional.linear(x[some].double(), *(p.double() for p in layer.parameters()))
        row: dict[str, Any] = {"shape": name, "size": (tokens, inputs, channels), "error": {}}
        jobs: dict[str, Callable[[], object]] = {}
        for label, run in layers.items():
            try:
                error = float((run(x)[some].double() - exact).norm() / exact.norm())
            except Exception as failure:
                failed[label] = _named(failure)
                continue
            row["error"][label] = error
            if error < WORST:
                jobs[label] = partial(run, x)
            else:
                failed[label] = f"relative error {error:.3f}"
        times = measured.alternate(list(jobs.values()), device, repeats, BURST)
        rows.append({**row, "ms": dict(zip(jobs, times, strict=True)), "failed": failed})
        print("\n".join(lines(rows[-1])), flush=True)
    return rows


def lines(row: dict[str, Any]) -> list[str]:
    """One layer as text: milliseconds, gain over torch, error, and what did not run."""
    tokens, inputs, channels = row["size"]
    base = row["ms"]["torch bf16"]
    found = [f"{row['shape']}, {tokens} x {inputs} -> {channels}"]
    found += [
        f"  {label}: {ms:.3f} ms, {base / ms:.2f}x, relative error {row['error'][label]:.4f}"
        for label, ms in row["ms"].items()
    ]
    return found + [f"  {label}: not timed, {why}" for label, why in row["failed"].items()]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By shape, milliseconds, speed-up over torch and error."""
    return {
        row["shape"]: {
            "ms": row["ms"],
            "speedup": {k: row["ms"]["torch bf16"] / ms for k, ms in row["ms"].items()},
            "error": row["error"],
        }
        for row in rows
    }


def main() -> None:
    """Measure and print, or say why there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", help="parts of names, such as wan")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    if reason := why_no_card(device):
        print(reason)
        return
    name, (major, minor) = torch.cuda.get_device_name(device), capability(device)
    print(f"{name}: compute capability {major}.{minor}, torch {torch.__version__}")
    parts = args.shapes or [""]
    shapes = {n: size for n, size in SHAPES.items() if any(part in n for part in parts)}
    rows = measure(device, args.repeats, shapes)
    if args.json:
        append(args.json, flat(figures(rows), "gpu-linear", UNITS), weights=None, on=card())


if __name__ == "__main__":
    main()
