"""One Wan-1.3B transformer block at real width, patched against unpatched, and long sequences.

    python tests/bench/bench_wan_block.py [--tokens 8190] [--slices 8 | --long] [--json FILE]

Random weights (1536 channels, 12 heads of 128, ffn 8960), fp32, the two variants in turn; 8-bit
linear layers, other dtypes and other models are in ``bench_blocks.py``.
``--slices``: instead, INT8 in so many slices, keys and values quantized once against once a slice.
``--long`` also runs attention of a whole 480p clip, (1, 12, 32760, 128), once each, and the error
with an attention sink at 32 768 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from real_blocks import real_block
from rows import append, flat

import accel
from accel import AttentionConfig, Plan, SlicingConfig
from accel.kernels.attention import attention
from accel.kernels.shared_keys import shared_keys
from accel.slicing.program.run import run


def block_times(tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per forward of a block, unpatched and with each precision, in turn."""
    block, inputs = real_block("wan", tokens)
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in ("unpatched", "int8", "int6", "int4"):
            if name != "unpatched":
                accel.patch(block, plan=Plan("bench", AttentionConfig(name, check_rows=0)))
            start = time.perf_counter()
            with torch.no_grad():
                block(*inputs)
            times.setdefault(name, []).append(time.perf_counter() - start)
            accel.unpatch(block)
    return times


def shared_times(tokens: int, slices: int, repeats: int) -> None:
    """Sliced INT8 block with keys and values quantized once, and once a slice, in turn."""
    block, inputs = real_block("wan", tokens)
    plan = Plan("bench", AttentionConfig("int8", check_rows=0), SlicingConfig(slices))
    ways = {"once": shared_keys, "each slice": nullcontext}
    outputs: dict[str, torch.Tensor] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for i in range(repeats + 1):
        for name in sorted(ways, reverse=bool(i % 2)):
            run.shared_keys = ways[name]
            with accel.patched(block, plan=plan) as handle, torch.no_grad():
                start = time.perf_counter()
                outputs[name] = block(*inputs)
                seconds = time.perf_counter() - start
                spent = sum(site.seconds for site in handle.report().sites)
            times[name] += [(seconds, spent)] if i else []  # the first round warms up
        assert torch.equal(*outputs.values())
    for j, what in enumerate(("block", "attention")):
        mine, other = ([t[j] for t in times[name]] for name in ways)
        ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
        print(f"{what}, {tokens} tokens, int8, {slices} slices: keys quantized once "
              f"{statistics.median(mine):.2f} s, each slice {statistics.median(other):.2f} s, "
              f"{ratio:.3f}x")  # fmt: skip


def long_sequence() -> None:
    """Attention of a Wan-1.3B 480p clip, once per contender."""
    q, k, v = (torch.randn(1, 12, 32760, 128) for _ in range(3))
    start = time.perf_counter()
    F.scaled_dot_product_attention(q, k, v)
    base = time.perf_counter() - start
    print(f"(1, 12, 32760, 128): sdpa {base:.1f} s", end="")
    for precision in ("int8", "int6", "int4"):
        start = time.perf_counter()
        attention(q, k, v, precision=precision, impl="cpu")
        seconds = time.perf_counter() - start
        print(f" | {precision} {seconds:.1f} s {base / seconds:.2f}x", end="", flush=True)
    print()


def attention_sink(tokens: int = 32768) -> None:
    """Relative L1 where one key draws far more attention than the rest and V has a mean of 1."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, tokens, 64, generator=g) for _ in range(3))
    q, k, v = q[..., :512, :].abs(), 0.05 * k, v + 1.0
    k[..., 0, :] = 13.7 * 8 / float(q.sum(-1).mean())
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for smooth_v in (False, True):
        out = attention(q, k, v, precision="int8", impl="cpu", smooth_v=smooth_v)
        error = float((out - exact).abs().sum() / exact.abs().sum())
        print(f"attention sink, {tokens} keys, smooth_v={smooth_v}: relative L1 {error:.4f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8190)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.slices:
        shared_times(args.tokens, args.slices, args.repeats)
        return
    times = block_times(args.tokens, args.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: medians["unpatched"] / median for name, median in medians.items()}
    for name, median in medians.items():
        print(f"Wan-1.3B block, {args.tokens} tokens, {name}: {median:.2f} s {ratios[name]:.2f}x")
    if args.json:
        found = {"seconds": medians, "speedup": ratios}
        figures = flat(found, f"wan-block/{args.tokens} tokens", {"speedup": "×", "": "s"})
        append(args.json, figures, weights=None)
    if args.long:
        long_sequence()
        attention_sink()


if __name__ == "__main__":
    main()
