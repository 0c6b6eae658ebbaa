"""The command ``accel``: one file per command, loaded only when it is used.

A command's file has ``add_arguments(parser)`` and ``run(args)``, which returns the exit code. Exit
codes: 0 all done, 1 a job failed or was invalid, 2 wrong usage or environment, 130 and 143
interrupted, 141 all done but nobody read standard output to its end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any

import accel
from accel.core.standard_streams import StandardStreams

COMMANDS = {
    "render": "render job files to videos",
    "motion": "draw the motion of job files, without a model",
    "info": "print the settings a video was rendered with",
    "compare": "measure how far videos are from their references",
    "calibrate": "measure what each precision costs a model, and make a plan",
    "plan": "find the fastest plan that keeps a quality and fits a memory",
    "plan-diff": "print what two plans do differently",
    "bench-attention": "time attention on this machine: torch, accel, and what is installed",
    "memory": "predict peak memory from a model's config, without downloading it",
    "time": "predict seconds from a model's config, without downloading it",
    "ui": "serve the web page on this machine",
    "env": "print what a bug report needs: versions, devices, kernels",
}


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the file of the command ``wanted`` is loaded."""
    parser = argparse.ArgumentParser(
        prog="accel", description="Accelerate video and image diffusion with diffusers."
    )
    parser.add_argument("--version", action="version", version=f"accel {accel.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == wanted:
            _module(name).add_arguments(command)
    return parser


def _module(name: str) -> Any:
    return import_module(f"accel.cli.{name.replace('-', '_')}")


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: Arguments after the program's name; those of ``sys.argv`` by default.

    Returns:
        The exit code.
    """
    with StandardStreams() as streams:
        code = _run(sys.argv[1:] if argv is None else list(argv))
    return streams.exit_code(code)


def _run(argv: list[str]) -> int:
    wanted = next((word for word in argv if word in COMMANDS), None)
    try:
        args = _parser(wanted).parse_args(argv)
        signal.signal(signal.SIGTERM, _terminated)
        return int(_module(args.command).run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"accel: error: {error}", file=sys.stderr)
        return 2
