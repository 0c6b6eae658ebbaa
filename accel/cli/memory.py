"""``accel memory``: predicts peak memory from a model's config, without downloading it."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from accel.core.plain_values import shown
from accel.core.strict_json import dumps

if TYPE_CHECKING:
    from accel.memory.simulate import Peaks

_MOST = 99_999  # pixels of a side, frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel memory``."""
    parser.add_argument("model", help="tiny, a folder, a hub id, or a name such as wan-14b")
    parser.add_argument("--size", required=True, metavar="WxH", help="pixels, such as 832x480")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="frames (1)")
    parser.add_argument("--budget", metavar="SIZE", help="such as 8GiB: find the fewest slices")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the predicted peaks and, with a budget, the fewest slices that fit.

    Returns the exit code. Raises ValueError for a size, budget or model that cannot be read.
    """
    from accel.core.units import parse_bytes
    from accel.memory.fit import DoesNotFit, of_peaks
    from accel.memory.meta_models import Video, find
    from accel.memory.simulate import simulate
    from accel.pipelines.load import TINY, tiny_folder

    width, height = _pixels(args.size)
    if args.frames > _MOST:
        raise ValueError(f"--frames must be from 1 to {_MOST}, got {shown(args.frames)}")
    budget = None if args.budget is None else parse_bytes(args.budget)
    model = find(str(tiny_folder()) if args.model == TINY else args.model)
    peaks = simulate(model, Video(width, height, args.frames))
    slices, why = None, ""
    if budget is not None:
        try:
            slices = of_peaks(model, peaks).fewest_slices(budget)
        except DoesNotFit as error:
            why = str(error)
    if args.json:
        chosen = {} if budget is None else {"budget": budget, "slices": slices}
        print(dumps({**vars(peaks), **chosen}, indent=2))
        return 0
    print(table(peaks))
    if budget is not None:
        found = f"{slices} slices" if slices != 1 else "fits without slices"
        print(f"within {_size(budget)}, one component loaded at a time: {why or found}")
    return 0


def _pixels(text: str) -> tuple[int, int]:
    """Return width and height of ``--size``.

    Raises ValueError for anything else.
    """
    found = re.fullmatch(r"([0-9]{1,6})[xX×]([0-9]{1,6})", text.strip())
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= width <= _MOST and 1 <= height <= _MOST):
        raise ValueError(
            f"--size must look like 832x480, width and height from 1 to {_MOST} pixels, got "
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
    lines += [f"not counted: {', '.join(peaks.not_counted)}"] if peaks.not_counted else []
    return "\n".join(lines)
