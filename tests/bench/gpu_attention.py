"""Attention on this machine's GPU: checked, then timed against what users have; README table.

    python tests/bench/gpu_attention.py [--repeats 7] [--tiles] [--json FILE]

Shapes are those of real models (research table). Quantization is included in our time and in
SageAttention's. Baselines: torch's attention as it chooses its backend and with cuDNN's,
FlashAttention (``flash_attn``) and SageAttention (``sageattention``) where they are installed; what
is not is named. Median of alternating repeats. A kernel whose result is not near fp32 attention is
not timed. ``--tiles``: instead, what each way to cut the kernel takes, and packing alone; it is for
choosing the candidates of a new card.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import append, card, flat, why_no_card
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from accel.kernels.attention import attention
from accel.kernels.attention_call import AttentionCall
from accel.kernels.dispatch import decide
from accel.kernels.gpu import attention as fused
from accel.kernels.gpu import pack, tuning
from accel.kernels.gpu.layout import Tile
from accel.kernels.gpu.support import (
    capability,
    describe,
    value_format,
    why_not_precision,
)

SHAPES = {
    "SDXL 1024²": (2, 10, 4096, 64),
    "Flux 1024²": (1, 24, 4608, 128),
    "Qwen-Image 1328²": (1, 24, 6978, 128),
    "CogVideoX-2B 49 f": (2, 30, 17776, 64),
    "Wan 1.3B 480p 81 f": (1, 12, 32760, 128),
    "Wan 14B 720p 81 f": (1, 40, 75600, 128),
}
UNITS = {"/ms/": "ms", "/speedup/": "×", "error": "relative L1"}
WORST = 0.3  # relative L1 to fp32 attention beyond which a kernel counts as wrong


def contenders() -> tuple[dict[str, Callable[..., Tensor]], list[str]]:
    """Kernels by name, [B, H, T, D] in and out, and the reasons for those that are missing."""
    found: dict[str, Callable[..., Tensor]] = {
        "torch": sdpa,
        "torch, cuDNN": _cudnn,
        "accel int8": partial(attention, precision="int8", impl="gpu"),
    }
    missing = []
    if torch.cuda.is_available():
        if why := why_not_precision("int4", capability(torch.device("cuda", 0))):
            missing.append(f"accel int4: {why}")
        else:
            found["accel int4"] = partial(attention, precision="int4", impl="gpu", smooth_q=True)
    for package, name in (("flash_attn", "FlashAttention"), ("sageattention", "SageAttention")):
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            missing.append(f"{name}: {error}")
            continue
        found[name] = partial(_flash, module) if package == "flash_attn" else module.sageattn
    return found, missing


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v)


def _flash(module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = module.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative L1 to fp32 attention on 64 rows of each head."""
    rows = torch.linspace(0, q.shape[2] - 1, 64, device=q.device).long()
    exact = sdpa(q[:, :, rows].float(), k.float(), v.float())
    return float((out[:, :, rows].float() - exact).abs().sum() / exact.abs().sum())


def measure(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row per shape: error and milliseconds of each kernel, or why it has none."""
    kernels, _ = contenders()
    tuning.REPEATS = repeats
    rows = []
    for name, shape in SHAPES.items():
        generator = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(3)
        )
        row: dict[str, Any] = {"shape": name, "size": shape, "error": {}, "ms": {}, "failed": {}}
        jobs: dict[str, Callable[[], object]] = {}
        for label, kernel in kernels.items():
            try:
                row["error"][label] = error(kernel(q, k, v), q, k, v)
            except Exception as failure:
                row["failed"][label] = f"{type(failure).__name__}: {failure}"[:200]
                continue
            if row["error"][label] < WORST:
                jobs[label] = partial(kernel, q, k, v)
            else:
                row["failed"][label] = f"relative L1 {row['error'][label]:.3f}"
        times = tuning.alternate(list(jobs.values()), device)
        row["ms"] = dict(zip(jobs, times, strict=True))
        row["auto"] = decide(AttentionCall(q, k, v), "int8", "auto").why or "accel"
        rows.append(row)
        print(markdown([row])[-1], flush=True)
    return rows


TILES = tuple(
    Tile(rows, keys, warps, stages)
    for rows, keys, warps, depths in (
        (64, 64, 4, (3, 4)), (64, 128, 4, (2, 3)), (128, 64, 4, (3,)), (128, 64, 8, (2, 3, 4)),
        (128, 128, 8, (2, 3)), (128, 256, 8, (2,)),
    )
    for stages in depths
)  # fmt: skip


def tiles(device: torch.device, repeats: int) -> None:
    """Print, for a shape of each head size, milliseconds and TFLOP/s of every tile."""
    tuning.REPEATS = repeats
    values = value_format(capability(device), "int8")
    for shape in ((2, 30, 8192, 64), (1, 24, 8192, 128)):
        q, k, v = (torch.randn(shape, device=device).bfloat16() for _ in range(3))
        call = AttentionCall(q, k, v)
        packed = pack.pack(k, v, values=values)
        jobs: dict[str, Callable[[], object]] = {
            "torch": partial(sdpa, q, k, v),
            "torch, cuDNN": partial(_cudnn, q, k, v),
            "packing K and V": partial(pack.pack, k, v, values=values),
            "packing Q": partial(pack.pack_queries, q, packed, scale=call.softmax_scale),
        }
        for tile in TILES:
            job = partial(fused.attention, call, tile=tile, values=values)
            try:
                worst = error(job()[0], q, k, v)
            except Exception as failure:
                print(f"{tile}: {type(failure).__name__}: {failure}"[:160])
                continue
            jobs[f"{tile}, L1 {worst:.4f}"] = job
        work = 4.0 * shape[0] * shape[1] * shape[2] ** 2 * shape[3]
        for name, ms in zip(jobs, tuning.alternate(list(jobs.values()), device), strict=True):
            print(f"{shape} {name}: {ms:.3f} ms, {work / ms * 1e-9:.0f} TFLOP/s", flush=True)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """README table: milliseconds, gain over torch, relative L1."""
    labels = list(dict.fromkeys(label for row in rows for label in row["error"]))
    lines = [f"| shape (B, H, T, D) | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for row in rows:
        cells = []
        for label in labels:
            if label not in row["ms"]:
                cells.append(row["failed"].get(label, "-"))
                continue
            gain = row["ms"]["torch"] / row["ms"][label]
            cells.append(f"{row['ms'][label]:.2f} ms, {gain:.2f}x, L1 {row['error'][label]:.4f}")
        lines.append(f"| {row['shape']} {tuple(row['size'])} | {' | '.join(cells)} |")
    return lines


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By shape, milliseconds, speed-up over torch and error; the worst error of each kernel."""
    found: dict[str, Any] = {
        row["shape"]: {
            "ms": row["ms"],
            "speedup": {label: row["ms"]["torch"] / ms for label, ms in row["ms"].items()},
            "error": row["error"],
        }
        for row in rows
    }
    labels = {label for row in rows for label in row["error"]}
    worst = {label: max(row["error"].get(label, 0.0) for row in rows) for label in sorted(labels)}
    return {**found, "worst error": worst}


def main() -> None:
    """Measure and print, or say why there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    if reason := why_no_card(device):
        print(reason)
        return
    print(f"{torch.cuda.get_device_name(device)}: {describe(capability(device))}")
    if args.tiles:
        tiles(device, args.repeats)
        return
    for reason in contenders()[1]:
        print(f"not installed, so not compared: {reason}")
    rows = measure(device, args.repeats)
    print("\n".join(markdown(rows)))
    if args.json:
        append(args.json, flat(figures(rows), "gpu-attention", UNITS), weights=None, on=card())


if __name__ == "__main__":
    main()
