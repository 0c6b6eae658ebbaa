"""Block-sparse attention: what is left out, how far off the result is, and what time it saves.

    python tests/bench/bench_sparse.py [--model | --synthetic | --estimates | --short] [--repeats 5]
                                       [--json FILE]

``--model``: queries, keys and values of the embedded model, of every layer at three steps of a
ten-step run. ``--synthetic``: heads on a grid of frames, rows and columns whose tokens attend to
near ones, to their own place in all frames, or to content like theirs, with noise; and N(0, 1),
where nothing can be gained. ``--short``: the model's calls cut to fewer tokens. Errors are relative
L1 to torch's attention, mean and worst over heads. For times torch's attention, dense INT8 and
sparse INT8 run in turn, and medians are compared; they include the choice of the blocks. Both by
default.

``--estimates`` compares ways to choose the blocks and to make up for those left out, at full
precision on the model's calls: pools of the kernel's own blocks (SpargeAttn's, without its
threshold of similarity), the pools that are used, and the true weights; each block left out gone,
or added as its mean key and value; tokens in the model's order or in tiles of frames, rows and
columns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import append, flat, weights_of
from torch import Tensor

from accel.kernels import sparse
from accel.kernels.attention import attention
from accel.kernels.attention_call import AttentionCall
from accel.kernels.dispatch import environment
from accel.kernels.sparse import KEY_BLOCK, QUERY_BLOCK
from accel.pipelines.load import load

SHARES = (0.9, 0.95, 0.98)
SIZES = ((128, 65), (192, 33), (256, 33))  # pixels a side, frames
SAMPLED = (0, 4, 7)  # steps of STEPS whose calls are kept
STEPS, LAYERS, PATCH, TEXT = 10, 6, 8, 32  # PATCH: pixels of a token; TEXT: tokens of a prompt
GRIDS = ((4, 32, 32), (8, 32, 32), (21, 30, 52))
KINDS = ("near 3", "near 12", "own place", "content", "noise")
UNITS = {"speedup": "×", "computed": "of all blocks", "error": "relative L1"}
Triple = tuple[Tensor, Tensor, Tensor]


def of_model(pixels: int, frames: int) -> Iterator[Triple]:
    """Q, K and V [1, H, T, D] of the embedded model's attention to its own tokens."""
    original, calls = F.scaled_dot_product_attention, []

    def record(
        query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        if query.shape == key.shape and key.shape[2] > TEXT:
            if record.count // LAYERS in (2 * step for step in SAMPLED):  # one branch of guidance
                calls.append(tuple(x[:1].clone() for x in (query, key, value)))
            record.count += 1
        return original(query, key, value, *args, **kwargs)

    record.count = 0
    pipe = load("tiny", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    F.scaled_dot_product_attention = record
    try:
        pipe(
            prompt="a red circle on a striped blue background", height=pixels, width=pixels,
            num_frames=frames, num_inference_steps=STEPS, guidance_scale=2.0, output_type="latent",
            max_sequence_length=TEXT, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
    finally:
        F.scaled_dot_product_attention = original
    assert len(calls) == len(SAMPLED) * LAYERS
    yield from calls


def synthetic(grid: tuple[int, int, int], kind: str, dim: int = 64, heads: int = 2) -> Triple:
    """Q, K and V [1, H, T, D] of tokens on a grid (frames, rows, columns).

    Random Fourier features of place make the logits a Gaussian of distance: 12 at no distance.
    "near": 1.5 frames and 3 or 12 tokens wide; "own place": any frame, 12 tokens; "content": a
    field of features that changes over 12 tokens and 8 frames, so that also far tokens are alike.
    """
    g = torch.Generator().manual_seed(0)
    tokens = math.prod(grid)
    noise = [torch.randn(1, heads, tokens, dim, generator=g) for _ in range(3)]
    if kind == "noise":
        return noise[0], noise[1], noise[2]
    axes = [torch.arange(n, dtype=torch.float32, device="cpu") for n in grid]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(tokens, 3)
    width = {
        "near 3": (1.5, 3, 3), "near 12": (1.5, 12, 12), "own place": (1e9, 12, 12),
        "content": (8, 12, 12),
    }[kind]  # fmt: skip
    if kind == "content":  # a smooth map of place to a few features, which many places share
        turn = (
            torch.randn(3, 4, generator=g)
            / torch.tensor(width, dtype=torch.float32, device="cpu")[:, None]
        )
        place, width = (place @ turn).sin(), (0.5,) * 4
    scale = torch.tensor(width, dtype=torch.float32, device="cpu")
    turn = torch.randn(heads, len(width), dim, generator=g) / scale[:, None]
    shift = 2 * math.pi * torch.rand(heads, 1, dim, generator=g)
    feature = (place @ turn + shift).cos() * math.sqrt(2 * 12) / dim**0.25
    q, k = feature[None] + 0.3 * noise[0], feature[None] + 0.3 * noise[1]
    return q, k, noise[2] + feature[None].roll(1, 1)


def errors(out: Tensor, exact: Tensor) -> Tensor:
    """Relative L1 of each head [H]."""
    return (out - exact).abs().sum((0, 2, 3)) / exact.abs().sum((0, 2, 3))


def timed(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(calls: list[Triple], repeats: int) -> dict[str, dict[str, float]]:
    """Blocks computed, errors and speed-ups of dense and of sparse INT8, over all calls."""
    found: dict[str, dict[str, list[float]]] = {}
    for n, (q, k, v) in enumerate(calls):
        exact = F.scaled_dot_product_attention(q, k, v)
        runs: dict[str, Callable[[], Tensor]] = {
            "torch": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)
        }
        for share in (1.0, *SHARES):
            runs[f"{share:g}"] = lambda q=q, k=k, v=v, share=share: attention(
                q, k, v, impl="cpu", kept_share=share
            )
        seconds = timed(runs, repeats) if n % LAYERS == n // LAYERS else {}
        for share in (1.0, *SHARES):
            name = f"{share:g}"
            row = found.setdefault(name, {})
            row.setdefault("error", []).extend(errors(runs[name](), exact).tolist())
            call = sparse.with_block_mask(AttentionCall(q, k, v), share, None)
            row.setdefault("computed", []).append(sparse.computed(call))
            if seconds:
                row.setdefault("speedup over int8", []).append(seconds["1"] / seconds[name])
                row.setdefault("speedup over torch", []).append(seconds["torch"] / seconds[name])
    return {
        name: {"worst error": max(row["error"])}
        | {what: statistics.mean(values) for what, values in row.items()}
        for name, row in found.items()
    }


def show(name: str, table: dict[str, dict[str, float]], json: Path | None) -> None:
    """Print the rows of one set of calls, and keep them."""
    for share, row in table.items():
        print(
            f"{name:34s} kept {share:5s} computed {row['computed']:4.0%}  error {row['error']:.4f} "
            f"(worst head {row['worst error']:.3f})  {row['speedup over int8']:.2f}x of INT8  "
            f"{row['speedup over torch']:.2f}x of torch",
            flush=True,
        )
    if json:
        weights = weights_of("tiny") if name.startswith("model") else None
        append(json, flat(table, f"sparse/{name}", UNITS), weights=weights)


# ------------------------------------------------------------------------------------- estimates


def tiles(grid: tuple[int, int, int], size: tuple[int, int, int]) -> Tensor:
    """The tokens of a grid, tile after tile, int64 [T]."""
    axes = [torch.arange(n, dtype=torch.int64, device="cpu") for n in grid]
    place = torch.meshgrid(*axes, indexing="ij")
    key = torch.zeros(grid, dtype=torch.int64, device="cpu")
    pairs = list(zip(place, size, strict=True))
    for x in [x // n for x, n in pairs] + [x % n for x, n in pairs]:
        key = key * 1000 + x
    return key.flatten().argsort()


def chosen(weights: Tensor, share: float) -> Tensor:
    """The heaviest blocks that hold a share of each row's weight, bool as ``weights``."""
    heaviest, order = weights.sort(-1, descending=True)
    needed = heaviest.cumsum(-1) - heaviest < share
    return torch.zeros_like(needed).scatter_(-1, order, needed)


def by_blocks(x: Tensor, size: int) -> Tensor:
    """Sums over blocks of the last dimension of x."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def pooled(x: Tensor, size: int) -> Tensor:
    """Means of blocks of tokens of x [T, D]."""
    count = by_blocks(torch.ones(len(x), dtype=torch.float32, device=x.device), size)
    return by_blocks(x.T, size).T / count[:, None]


def estimates(q: Tensor, k: Tensor, v: Tensor, share: float) -> dict[str, tuple[float, float]]:
    """Blocks computed and relative L1 of each way to choose blocks for a head, [T, D] each."""
    scale, last = q.shape[-1] ** -0.5, len(k) - (len(k) - 1) // KEY_BLOCK * KEY_BLOCK
    logits = q @ k.T * scale
    weights = logits.softmax(-1)
    exact = weights @ v
    true = by_blocks(by_blocks(weights, KEY_BLOCK).T, QUERY_BLOCK).T
    means, values = pooled(k, KEY_BLOCK), pooled(v, KEY_BLOCK)
    count = torch.full((len(means),), float(KEY_BLOCK), dtype=torch.float32, device=q.device)
    count[-1] = last
    coarse = (pooled(q, QUERY_BLOCK) @ means.T * scale + count.log()).softmax(-1)
    fine = sparse.block_mask(q[None, None], k[None, None], share, scale=scale)[0, 0].bool()
    masks = {
        "kernel's blocks": chosen(coarse, share),
        "pools of 32": fine,
        "true weights": chosen(true / true.sum(-1, keepdim=True), share),
    }
    found = {}
    for name, mask in masks.items():
        rows = mask.repeat_interleave(QUERY_BLOCK, 0)[: len(q)]
        hidden = ~rows.repeat_interleave(KEY_BLOCK, 1)[:, : len(k)]
        kept = logits.masked_fill(hidden, -math.inf)
        part = float(mask.float().mean())
        found[name] = part, float((kept.softmax(-1) @ v - exact).abs().sum() / exact.abs().sum())
        rest = (q @ means.T * scale + count.log()).masked_fill(rows, -math.inf)
        p = torch.cat([kept, rest], 1).softmax(-1)
        out = p @ torch.cat([v, values])
        found[f"{name}, mean of the rest"] = (
            part,
            float((out - exact).abs().sum() / exact.abs().sum()),
        )
    return found


def compare_estimates() -> None:
    """Print blocks computed and error of every estimate, mean over heads of some of the calls."""
    pixels, frames = SIZES[1]
    grid = ((frames - 1) // 4 + 1, pixels // PATCH, pixels // PATCH)
    calls = list(of_model(pixels, frames))[1::4]
    for order in (None, (4, 4, 8)):
        place = slice(None) if order is None else tiles(grid, order)
        for share in SHARES[:2]:
            found: dict[str, list[tuple[float, float]]] = {}
            for call in calls:
                for h in range(call[0].shape[1]):
                    head = [x[0, h, place] for x in call]
                    for name, row in estimates(*head, share).items():
                        found.setdefault(name, []).append(row)
            for name, rows in found.items():
                part, error = map(statistics.mean, zip(*rows, strict=True))
                worst = max(error for _, error in rows)
                print(
                    f"order {order!s:10s} kept {share:<5g} {name:34s} computed {part:4.0%}  "
                    f"error {error:.4f}  worst {worst:.3f}",
                    flush=True,
                )


def main() -> None:
    """Measure what was asked for, print tables, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("model", "synthetic", "estimates", "short"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(environment())
    if args.estimates:
        return compare_estimates()
    everything = not (args.model or args.synthetic or args.short)
    if args.model or everything:
        for pixels, frames in SIZES:
            calls = list(of_model(pixels, frames))
            name = f"model {pixels}x{pixels}x{frames}, {calls[0][0].shape[2]} tokens"
            show(name, measure(calls, args.repeats), args.json)
    if args.synthetic or everything:
        for grid in GRIDS:
            for kind in KINDS:
                name = f"{kind}, {math.prod(grid)} tokens"
                show(name, measure([synthetic(grid, kind)], args.repeats), args.json)
    if args.short:
        calls = list(of_model(*SIZES[1]))
        for tokens in (512, 1024, 1536, 2048, 3072, 4096):
            cut = [tuple(x[:, :, :tokens] for x in call) for call in calls]
            show(f"model, {tokens} tokens", measure(cut, args.repeats), args.json)


if __name__ == "__main__":
    main()
