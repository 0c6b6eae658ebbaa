"""``accel compare``: PSNR and SSIM between two videos."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel compare``."""
    parser.add_argument("a", metavar="A", help="a video, or a folder of PNG frames")
    parser.add_argument("b", metavar="B", help="another video of the same size and length")


def run(args: argparse.Namespace) -> int:
    """Print PSNR and SSIM of the two videos, and return the exit code."""
    from accel.core.quality import psnr, ssim
    from accel.pipelines.paths import user_path
    from accel.pipelines.video import existing, read_video

    a, b = (read_video(existing(user_path(path))) for path in (args.a, args.b))
    print(f"PSNR {psnr(a, b):.2f} dB, SSIM {ssim(a, b):.4f}")
    return 0
