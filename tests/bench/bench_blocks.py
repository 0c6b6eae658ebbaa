"""Blocks of real models: INT8 attention, 8-bit linear layers and both, against none, in turn.

    python tests/bench/bench_blocks.py [--blocks wan flux] [--dtypes float32 bfloat16] [--tokens N]

Random weights at real widths (``real_blocks.py``), all variants in one process, one after another
in each round; the first round packs weights and is not timed. Ratios are medians of those of the
rounds. Which layers pay is measured anew. The relative L1 error of the result is printed too.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from real_blocks import BLOCKS, Block, real_block
from rows import append, flat
from torch import nn

import accel
from accel import AttentionConfig, LinearConfig, Plan
from accel.kernels.dispatch import environment

UNITS = {"seconds": "s", "speedup": "×", "error": "relative L1"}
ATTENTION, LINEARS = AttentionConfig("int8", check_rows=0), LinearConfig(check_rows=0)
PLANS = {
    "unpatched": None,
    "attention": Plan("attention", ATTENTION),
    "linears": Plan("linears", None, linear=LINEARS),
    "both": Plan("both", ATTENTION, linear=LINEARS),
}


class Model(nn.Module):
    """A denoiser of one block: layers that stand in no block of a denoiser are none of ours."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, *inputs: Any) -> Any:
        """The block's result."""
        return self.blocks[0](*inputs)


def variants(block: Block) -> dict[str, Block]:
    """The block unpatched and patched, all with the same weights in memory."""
    shared = {id(x): x for x in block.module.parameters()}
    copies = {
        name: Block(Model(copy.deepcopy(block.module, dict(shared))), block.inputs)
        for name in PLANS
    }
    for name, plan in PLANS.items():
        if plan is not None:
            accel.patch(copies[name].module, plan=plan)
    return copies


def measure(block: Block, repeats: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Seconds, speed-up and error by variant, and what the report says of linear layers."""
    copies, exact = variants(block), block().double()
    seconds: dict[str, list[float]] = {name: [] for name in PLANS}
    errors: dict[str, float] = {}
    for i in range(repeats + 1):
        for name, one in copies.items():
            start = time.perf_counter()
            out = one()
            spent = time.perf_counter() - start
            if i:
                seconds[name].append(spent)
                continue
            errors[name] = float((out.double() - exact).abs().sum() / exact.abs().sum())
    found: dict[str, dict[str, float]] = {"seconds": {}, "speedup": {}, "error": errors}
    for name, mine in seconds.items():
        found["seconds"][name] = statistics.median(mine)
        pairs = zip(seconds["unpatched"], mine, strict=True)
        found["speedup"][name] = statistics.median(a / b for a, b in pairs)
    report = accel.report(copies["both"].module)
    return found, [*([] if report.linear is None else report.linear.lines()), *report.notes]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--tokens", type=int, help="instead of each block's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", action="store_true", help="print what was measured of layers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(environment(), "load", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # which layers pay is measured anew
        every = run(args)
    if args.json:
        append(args.json, flat(every, "blocks", UNITS), weights=None)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure and print each block in each dtype."""
    every: dict[str, object] = {}
    for name in args.blocks:
        tokens = args.tokens or BLOCKS[name][1]
        for dtype in args.dtypes:
            block = real_block(name, tokens, getattr(torch, dtype))
            found, said = measure(block, args.repeats)
            every[f"{name} {tokens} tokens {dtype}"] = found
            for variant, ratio in found["speedup"].items():
                print(f"{name}, {tokens} tokens, {dtype}, {variant}: "
                      f"{found['seconds'][variant]:.3f} s {ratio:.2f}x, "
                      f"relative L1 {found['error'][variant]:.4f}", flush=True)  # fmt: skip
            for line in said:
                if args.layers or "busy machine" in line:
                    print(f"    {line}")
    return every


if __name__ == "__main__":
    main()
