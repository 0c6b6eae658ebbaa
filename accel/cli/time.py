"""``accel time``: predicts the seconds of a job from a model's config, without downloading it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from accel.cli.memory import MOST, pixels
from accel.core.strict_json import dumps
from accel.core.validate import whole
from accel.pipelines.paths import user_path
from accel.plans import PRESETS, Plan

DTYPES = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel time``."""
    parser.add_argument("model", help="tiny, a folder, a hub id, or a name such as wan-14b")
    parser.add_argument("--size", required=True, metavar="WxH", help="pixels, such as 832x480")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="frames (1)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps (what the pipeline does)")
    parser.add_argument("--guidance", type=float, metavar="X", help="guidance scale (its own)")
    parser.add_argument(
        "--plan", action="append", default=[], metavar="PLAN",
        help=f"a preset ({', '.join(PRESETS)}) or a plan's file, several times for several plans",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (fp32, on a card bf16)")
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the predicted seconds of each phase, of the plain model and of each plan.

    Returns the exit code. Raises ValueError for a size, plan, device or model that cannot be read.
    """
    from accel.cli.bench_attention import device_of
    from accel.memory.seconds.time_prediction import predict_time
    from accel.pipelines.load import DTYPES as KINDS
    from accel.pipelines.load import TINY, tiny_folder

    width, height = pixels(args.size)
    whole("--frames", args.frames, 1, MOST)
    if args.steps is not None:
        whole("--steps", args.steps, 1, MOST)
    job = SimpleNamespace(
        width=width, height=height, frames=args.frames, steps=args.steps, guidance=args.guidance
    )
    plans = {"plain": None, **{name: _plan(name) for name in args.plan}}
    model = str(tiny_folder()) if args.model == TINY else args.model
    found: dict[str, Any] = {}
    for name, plan in plans.items():
        found[name] = predict_time(
            model, job, plan, device=device_of(args.device),
            dtype=None if args.dtype is None else KINDS[args.dtype],
            say=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
    if args.json:
        rows = {name: {**asdict(one), "total": one.total} for name, one in found.items()}
        print(dumps(rows, indent=2))
        return 0
    for name, one in found.items():
        gain = found["plain"].total / one.total
        print(name if name == "plain" else f"{name}, {gain:.2f} times as fast")
        print(one)
    return 0


def _plan(name: str) -> Plan:
    return Plan.preset(name) if name in PRESETS else Plan.load(user_path(name))
