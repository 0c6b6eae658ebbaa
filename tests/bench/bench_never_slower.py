"""A patch beside none: attention of many lengths, in turn, after the first seconds.

    python tests/bench/bench_never_slower.py [--dtype fp32|bf16] [--rounds N] [--tokens N ...]

Four attention modules of diffusers, with their projections, run patched with INT8 and
"auto", which measures each kind of call once, and unpatched. Both take turns, A B A B ..., and the
median of the ratios of the rounds is printed: at 1.00x a patch is as fast as none. A turn is as
many calls as take about 20 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

import accel
from accel.kernels.dispatch import environment

LENGTHS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SIZES = (40, 64, 128)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TURN = 0.02  # seconds
BLOCKS = 4


class Denoiser(nn.Module):
    """A few attention modules one after the other."""

    def __init__(self, heads: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        width = heads * size
        self.blocks = nn.ModuleList(
            Attention(width, heads=heads, dim_head=size, processor=AttnProcessor2_0())
            for _ in range(BLOCKS)
        ).to(dtype)

    def forward(self, hidden_states: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """Attend to ``hidden_states`` [B, T, C]."""
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def seconds(model: nn.Module, x: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        model(x)
    return (time.perf_counter() - start) / calls


@torch.no_grad()
def ratio(tokens: int, size: int, dtype: torch.dtype, rounds: int) -> tuple[float, float, str]:
    """Return how many times as fast the patched one is, the spread, and what ran."""
    heads = 2 if tokens > 4096 else 8
    plain, patched = (Denoiser(heads, size, dtype).eval() for _ in range(2))
    x = torch.randn(1, tokens, heads * size, dtype=torch.float32).to(dtype)
    handle = accel.patch(patched, plan=accel.Plan("int8", accel.AttentionConfig("int8")))
    for _ in range(3):
        patched(x)
        once = seconds(plain, x, 1)
    calls = max(1, min(2000, round(TURN / once)))
    found = []
    for _ in range(rounds):
        theirs = seconds(plain, x, calls)
        found.append(theirs / seconds(patched, x, calls))
    site = next(s for s in handle.report().sites if s.name == "blocks.0")
    handle.unpatch()
    quarter = statistics.quantiles(found, n=4)
    return statistics.median(found), quarter[2] - quarter[0], next(iter(site.ran), "torch")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    args = parser.parse_args()
    print(environment())
    print(f"{args.dtype}: times as fast as unpatched (half of the rounds within), and what ran")
    lowest = 9.9
    for size in SIZES:
        for tokens in args.tokens:
            gain, spread, ran = ratio(tokens, size, DTYPES[args.dtype], args.rounds)
            lowest = min(lowest, gain)
            print(
                f"head {size:>3}, T {tokens:>5}: {gain:.3f}x (+-{spread / 2:.3f}) {ran}", flush=True
            )
    print(f"lowest: {lowest:.3f}x")


if __name__ == "__main__":
    main()
