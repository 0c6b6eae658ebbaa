"""``accel bench-attention``: which attention is the fastest on this machine, for real models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from accel.attention.providers import COMMON, absent
from accel.core.strict_json import dumps

DTYPES = ("auto", "fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel bench-attention``."""
    parser.add_argument(
        "model", nargs="*", help="names of models, or their beginnings, such as wan (all)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the tensors (bf16, on the CPU fp32 too)"
    )
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--plot", metavar="FILE", help="write the speed-ups as an SVG picture")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print milliseconds, gain over torch and error of each contender, shape by shape.

    Returns the exit code. Raises ValueError for a model or device that there is not.
    """
    import torch

    from accel.attention.attention_table import SHAPES, timed
    from accel.core.atomic_write import write_atomic
    from accel.core.bar_chart import bar_chart
    from accel.kernels.dispatch import environment

    shapes = tuple(s for s in SHAPES if not args.model or s.model.startswith(tuple(args.model)))
    if not shapes:
        names = ", ".join(s.model for s in SHAPES)
        raise ValueError(f"no model named {' '.join(args.model)}; there are: {names}")
    device = device_of(args.device)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    usual = ("fp32", "bf16") if device.type == "cpu" else ("bf16",)
    rows = []
    if not args.json:
        print(", ".join(f"{key} {value}" for key, value in environment().items()))
    for name in usual if args.dtype == "auto" else (args.dtype,):
        for row in timed(shapes, dtypes[name], device):
            rows.append(row)
            if not args.json:
                print(text(row), flush=True)
    if not args.json:
        print("\n".join(absent([row["why_not"] for row in rows])))
    if args.json:
        print(dumps({"environment": environment(), "rows": rows}, indent=2))
    if args.plot:
        groups = [
            (f"{r['model']} {r['dtype']}", {"native": 1.0, **r["gain"]}) for r in rows if r["gain"]
        ]
        write_atomic(args.plot, bar_chart("Attention: speed over torch's own", "x", groups))
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0


def device_of(wanted: str | None) -> Any:
    """Return the device that was asked for, or a card if there is one; ValueError for others."""
    import torch

    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {wanted!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no card here; use --device cpu")
    return device


def text(row: Mapping[str, Any]) -> str:
    """Return one shape's row as text: a line per contender, the fastest first."""
    part = f"{row['heads']} heads, {row['queries']} queries timed"
    lines = [f"{row['model']}, {row['shape']}, {row['dtype']} ({part})"]
    for name, ms in sorted(row["milliseconds"].items(), key=lambda item: item[1]):
        gain, error = row["gain"][name], row["errors"].get(name)
        note = "" if error is None else f"  error {error:.4f}"
        bar = "█" * max(1, round(8 * min(gain or 0.0, 5.0)))
        lines.append(f"  {name:<22}{ms:>10.2f} ms  {gain or 0.0:>5.2f}x  {bar}{note}")
    left = {n: why for n, why in row["why_not"].items() if n not in row["milliseconds"]}
    lines += [f"  not {n}: {why}" for n, why in left.items() if why not in COMMON]
    lines += [f"  doubtful, the machine was busy: {row['doubt']}"] if row["doubt"] else []
    return "\n".join(lines)
