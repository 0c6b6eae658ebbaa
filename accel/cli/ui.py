"""``accel ui``: serves the web page on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from accel.core.extras import how_to_install
from accel.pipelines.paths import user_path, with_home


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel ui``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_port, help="port (the first free one from 7860)")
    text = "path or address under which a proxy serves the page (GRADIO_ROOT_PATH, or none)"
    parser.add_argument("--root-path", metavar="PATH", help=text)
    parser.add_argument("--out", type=user_path, default=Path("out"), help="output folder (out)")
    text = "also offer this folder or hub id, besides the embedded model; may be repeated"
    parser.add_argument(
        "--model", action="append", type=with_home, default=[], metavar="MODEL", help=text
    )
    text = "also offer the models of this YAML file: LABEL: {model: ..., load: {...}}"
    parser.add_argument("--models", type=user_path, metavar="FILE", help=text)
    text = "offer the LoRAs (.safetensors) of this folder"
    parser.add_argument("--loras", type=user_path, metavar="FOLDER", help=text)
    text = "also offer the plan in this JSON file, besides the presets; may be repeated"
    parser.add_argument(
        "--plan", action="append", default=[], type=user_path, metavar="PLAN", help=text
    )
    parser.add_argument("--auth-file", type=user_path, help="file with one line USER:PASSWORD")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, and return the exit code.

    Raises ValueError where Gradio is not installed.
    """
    try:
        from accel.pipelines.ui.page import run as serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(f"the page needs Gradio: {how_to_install('gradio')}") from error
    return serve(args)
