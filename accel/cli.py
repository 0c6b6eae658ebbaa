"""The command ``accel``. An entry point like ``app.py``: it may import accel.pipelines, nothing
imports it.

Exit codes: 0 all done, 1 a job failed or was invalid, 2 wrong usage or environment, 130 and 143
interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


def _parser() -> argparse.ArgumentParser:
    from accel.pipelines.batch.command import add_arguments
    from accel.pipelines.ui.command import add_arguments as add_ui_arguments

    parser = argparse.ArgumentParser(prog="accel", description="Accelerated video diffusion.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_arguments(commands.add_parser("render", help="render job files to videos"))
    motion = commands.add_parser("motion", help="draw the flows of job files, without a model")
    motion.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="YAML or JSON with jobs")
    motion.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder")
    info = commands.add_parser("info", help="print the settings a video was rendered with")
    info.add_argument("file", metavar="FILE.mp4")
    compare = commands.add_parser("compare", help="PSNR and SSIM between two videos")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    _calibrate_arguments(commands.add_parser("calibrate", help="measure precisions, make a plan"))
    memory = commands.add_parser("memory", help="predict a model's memory, before any download")
    memory.add_argument("model", help="tiny, a folder, a hub id, or a name such as wan-14b")
    memory.add_argument("--size", required=True, metavar="WxH", help="pixels, such as 832x480")
    memory.add_argument("--frames", type=int, default=1, metavar="N")
    memory.add_argument("--budget", metavar="SIZE", help="such as 8GiB: find the fewest slices")
    memory.add_argument("--json", action="store_true", help="print JSON")
    add_ui_arguments(commands.add_parser("ui", help="serve the web page on this machine"))
    return parser


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``accel calibrate``."""
    parser.add_argument("jobfiles", nargs="+", metavar="JOBFILE", help="jobs of one model")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder")
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument(
        "--quality", type=float, metavar="DB",
        help="fastest plan with this PSNR to the model's own output (35)",
    )  # fmt: skip
    aim.add_argument("--share", type=float, help="this share of attention in four bits, 0 to 1")
    aim.add_argument("--bound", type=float, help="largest relative L1 error of a call")
    parser.add_argument(
        "--impl", default="auto", choices=["auto", "cpu", "gpu", "reference"],
        help="auto leaves out calls too short to profit",
    )  # fmt: skip
    parser.add_argument(
        "--merge", action="append", default=[], type=Path, metavar="TABLE.json",
        help="tables of earlier calibrations of this model",
    )  # fmt: skip


def _memory(args: argparse.Namespace) -> int:
    from accel.memory import parse_bytes, simulate, table
    from accel.models import Video, find
    from accel.pipelines.load import TINY, tiny_folder

    width, _, height = args.size.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size must look like 832x480, got {args.size!r}")
    budget = None if args.budget is None else parse_bytes(args.budget)
    family = find(str(tiny_folder()) if args.model == TINY else args.model)
    peaks = simulate(family, Video(int(width), int(height), args.frames))
    if args.json:
        chosen = {} if budget is None else {"budget": budget, "slices": peaks.smallest(budget)}
        print(json.dumps({**vars(peaks), **chosen}, indent=2))
    else:
        print(table(peaks, budget))
    return 0


def _render(args: argparse.Namespace) -> int:
    from accel.pipelines.batch.command import run

    return run(args)


def _calibrate(args: argparse.Namespace) -> int:
    from accel.pipelines.calibrate_command import run

    return run(args)


def _ui(args: argparse.Namespace) -> int:
    try:
        from accel.app import run
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs Gradio: pip install 'accel-diffusion[ui]'") from error
    return run(args)


def _motion(args: argparse.Namespace) -> int:
    from accel.pipelines.batch.jobfile import read_jobs
    from accel.pipelines.batch.output import prepare_folder
    from accel.pipelines.motion.preview import draw_job

    jobs = [job.resolved() for file in args.jobfiles for job in read_jobs(file)]
    prepare_folder(args.out)
    for job in jobs:
        for path in draw_job(job, args.out):
            print(path)
    return 0


def _info(args: argparse.Namespace) -> int:
    from accel.pipelines.job import job_from_settings
    from accel.pipelines.video import read_comment

    comment = _of_file(args.file, read_comment)
    job_from_settings(comment, args.file)
    print(json.dumps(json.loads(comment), indent=2))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from accel.pipelines.video import read_video
    from accel.quality import psnr, ssim

    a, b = _of_file(args.a, read_video), _of_file(args.b, read_video)
    print(f"PSNR {psnr(a, b):.2f} dB, SSIM {ssim(a, b):.4f}")
    return 0


def _of_file(path, read):  # type: ignore[no-untyped-def]
    """``read(path)``, after saying clearly that a missing file is missing."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path}")
    return read(path)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminated)
    commands = {"render": _render, "motion": _motion, "info": _info, "compare": _compare,
                "memory": _memory, "calibrate": _calibrate, "ui": _ui}  # fmt: skip
    try:
        return commands[args.command](args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"accel: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
