"""``accel memory``: predicts peak memory from a model's config, without downloading it."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from accel.config import LinearConfig
from accel.core.plain_values import shown
from accel.core.strict_json import dumps

if TYPE_CHECKING:
    from accel.memory.simulate import Peaks

MOST = 99_999  # pixels of a side, frames
KINDS = ("bf16", "int8", "fp8", "nf4")  # of weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel memory``."""
    parser.add_argument("model", help="tiny, a folder, a hub id, or a name such as wan-14b")
    parser.add_argument("--size", required=True, metavar="WxH", help="pixels, such as 832x480")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="frames (1)")
    parser.add_argument(
        "--budget", metavar="SIZE", help="memory of a card, such as 24GB: find the way that fits"
    )
    parser.add_argument("--host", metavar="SIZE", help="memory of the host beside it (64GB)")
    parser.add_argument(
        "--weights", choices=KINDS, default=KINDS[0],
        help="kind of weights of denoiser and text encoders (bf16)",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", choices=KINDS[1:], default=[],
        help="kind of weights that may be taken where others would move at each denoiser call",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the predicted peaks and the way of placing weights that fits each card, or a budget.

    Returns the exit code. Raises ValueError for a size, budget or model that cannot be read.
    """
    from accel.core.units import parse_bytes
    from accel.memory import cards
    from accel.memory.meta_models import Video, find
    from accel.memory.pieces import demand
    from accel.memory.simulate import simulate
    from accel.pipelines.load import TINY, tiny_folder

    width, height = pixels(args.size)
    if args.frames > MOST:
        raise ValueError(f"--frames must be from 1 to {MOST}, got {shown(args.frames)}")
    sizes = cards.CARDS if args.budget is None else (parse_bytes(args.budget),)
    host = cards.HOST if args.host is None else parse_bytes(args.host)
    model = find(str(tiny_folder()) if args.model == TINY else args.model)
    peaks = simulate(model, Video(width, height, args.frames))
    needed = demand(model, peaks, kind=args.weights)
    allowed = {kind: demand(model, peaks, kind=kind) for kind in args.allow}
    found = cards.by_card(needed, sizes, host, allowed)
    if args.json:
        chosen: dict[str, Any] = {
            "weights": args.weights,
            "placement": cards.to_dict(found, needed, host),
        }
        if args.budget is not None:
            taken = found[sizes[0]].chosen
            chosen |= {"budget": sizes[0], "slices": None if taken is None else taken.slices}
        chosen["packed"] = peaks.packed.bytes(LinearConfig())
        print(dumps({**vars(peaks), **chosen}, indent=2))
        return 0
    print(table(peaks))
    print(cards.text(found, needed, host) if args.budget is None else next(iter(found.values())))
    return 0


def pixels(text: str) -> tuple[int, int]:
    """Return width and height of ``--size``.

    Raises ValueError for anything else.
    """
    found = re.fullmatch(r"([0-9]{1,6})[xX×]([0-9]{1,6})", text.strip())
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= width <= MOST and 1 <= height <= MOST):
        raise ValueError(
            f"--size must look like 832x480, width and height from 1 to {MOST} pixels, got "
            f"{shown(text)}"
        )
    return width, height


def _size(size: int) -> str:
    """Return bytes as text in both units that people use."""
    return f"{size / 2**30:.3f} GiB ({size / 1e9:.3f} GB)"


def table(peaks: Peaks) -> str:
    """Return the peaks as text, with a bar for each."""
    rows = [(f"encode, {name}", b) for name, b in peaks.encode.items()]
    rows += (
        [("encode, image or video by the VAE", peaks.encode_image)] if peaks.encode_image else []
    )
    rows += [(f"denoise, {n} slices" if n > 1 else "denoise", b) for n, b in peaks.denoise.items()]
    rows += [(f"decode, {name}", b) for name, b in peaks.decode.items()]
    most = max(b for _, b in rows)
    known = {"denoiser": peaks.denoiser_weights, "VAE": peaks.vae_weights, **peaks.encoder_weights}
    sizes = peaks.weights or known
    weights = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
    lines = [f"weights: {weights}", "activations in addition:"]
    for name, size in rows:
        lines.append(f"  {name:<40}{_size(size):>26}  {'█' * max(1, round(30 * size / most))}")
    levels = ", ".join(f"{name}: {_size(size)}" for name, size in peaks.rehash.items())
    lines.append(f"step rehash keeps, per denoiser call in a step, at level {levels}")
    packed = _size(peaks.packed.bytes(LinearConfig()))
    lines.append(f"8-bit linear layers add at most {packed} of packed weights")
    lines += [f"not counted: {', '.join(peaks.not_counted)}"] if peaks.not_counted else []
    return "\n".join(lines)
