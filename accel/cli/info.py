"""``accel info``: prints the settings that a video was rendered with."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel info``."""
    parser.add_argument("file", metavar="FILE.mp4", help="a video that accel render wrote")


def run(args: argparse.Namespace) -> int:
    """Print the settings in the file as JSON, and return the exit code."""
    from accel.core.strict_json import dumps
    from accel.pipelines.job_settings import job_from_settings
    from accel.pipelines.paths import user_path
    from accel.pipelines.video import existing, read_comment

    comment = read_comment(existing(user_path(args.file)))
    job_from_settings(comment, args.file)
    print(dumps(json.loads(comment), indent=2))
    return 0
