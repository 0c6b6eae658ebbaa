"""What each option of 8-bit linear layers costs in accuracy, on a block of a real model.

    python tests/bench/bench_linear_errors.py [--block wan] [--tokens 1024] [--loud 1000]

Relative L1 error of what the block adds to its input, against the unpatched block in fp32. The
weights are random, at real width; in a second row one channel of the input is ``--loud`` times as
large, as single channels of trained models are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from real_blocks import BLOCKS, Block, real_block
from rows import append, flat
from torch import Tensor

import accel
from accel import LinearConfig, Plan

OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "smooth": {"smooth": True},
    "16 outliers": {"outliers": 16},
    "hadamard": {"hadamard": True},
    "smooth, 16 outliers": {"smooth": True, "outliers": 16},
}
CHANNEL = 7  # that is made loud
UNITS = {"": "relative L1"}


def added(block: Block) -> Tensor:
    """What a block adds to its first input, fp64, flat."""
    x = block.inputs[0].flatten().double()
    out = block().double()
    return out[-x.numel() :] - x  # Flux returns its text first


def errors(block: Block) -> dict[str, float]:
    """Relative L1 error by option; layers that were too far off for the guard run as they would."""
    exact, found = added(block), {}
    for name, options in OPTIONS.items():
        linear = LinearConfig(impl="cpu", check_rows=0, **options)
        with accel.patched(block.module, plan=Plan("errors", None, linear=linear)) as handle:
            found[name] = float((added(block) - exact).abs().sum() / exact.abs().sum())
            report = handle.report().linear
            assert report is not None and report.ran and not report.left
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--block", choices=BLOCKS, default="wan")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--loud", type=float, default=1000.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    block = real_block(args.block, args.tokens)
    every = {"as it is": errors(block)}
    x, *others = block.inputs
    x = x.clone()
    x.select(1 if x.dim() == 4 else -1, CHANNEL).mul_(args.loud)
    every[f"one channel times {args.loud:g}"] = errors(Block(block.module, (x, *others)))
    for row, found in every.items():
        each = ", ".join(f"{name} {error:.4f}" for name, error in found.items())
        print(f"{args.block}, {args.tokens} tokens, {row}: {each}", flush=True)
    if args.json:
        append(args.json, flat({args.block: every}, "linear-errors", UNITS), weights=None)


if __name__ == "__main__":
    main()
