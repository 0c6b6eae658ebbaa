"""``accel render``: its arguments, signals and exit codes."""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from accel.core.strict_json import dumps
from accel.pipelines.batch import events
from accel.pipelines.batch.helper_process import Aside
from accel.pipelines.batch.items import Item, changed_since, items, job_files, parse_shard
from accel.pipelines.batch.jobfile import Invalid, parse_override
from accel.pipelines.batch.naming import Naming
from accel.pipelines.batch.output import Output
from accel.pipelines.batch.predict import Prediction, Predictor, Totals, measured_rows
from accel.pipelines.batch.progress import Progress, counted
from accel.pipelines.batch.simulated import Simulator
from accel.pipelines.job import JobError
from accel.pipelines.job_settings import settings_text
from accel.pipelines.limits import StoredLimits
from accel.pipelines.paths import user_path

if TYPE_CHECKING:  # a dry run needs none of them
    from accel.pipelines.batch.engines import Engine, Stop


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return number


_OPTIONS: dict[str, dict[str, Any]] = {
    "--out": {"type": user_path, "metavar": "DIR", "help": "output folder"},
    "--set": {
        "action": "append", "default": [], "metavar": "KEY=VALUE", "dest": "overrides",
        "help": "change every job, such as --set steps=30 --set motion.camera.zoom=1.02",
    },
    "--list-arguments": {
        "metavar": "MODEL", "help": "print what a job for a model, or a pipeline's class, may say",
    },
    "--json": {"action": "store_true", "help": "print --list-arguments as JSON"},
    "--dry-run": {"action": "store_true", "help": "print the expanded jobs, load no model"},
    "--progress": {
        "choices": ["auto", "json"], "default": "auto", "help": "json: an event per line on stdout",
    },
    "--fail-fast": {"action": "store_true", "help": "stop at the first failed or invalid job"},
    "--retries": {
        "type": _count, "default": 1, "metavar": "N",
        "help": "retries of a failed job (1); 0 also turns off the memory ladder",
    },
    "--checkpoint-steps": {
        "type": _count, "default": 5, "metavar": "K",
        "help": "save a running job every K steps (5); 0: never",
    },
    "--stall-timeout": {
        "type": _count, "default": 0, "metavar": "S",
        "help": "end and retry a job that shows no progress for S seconds (0: never)",
    },
    "--engine": {
        "default": "local", "metavar": "NAME",
        "help": "local (a process per device), inline (this process), ray or ray://HOST:PORT",
    },
    "--shard": {"default": "1/1", "metavar": "i/n", "help": "render only the i-th of n parts"},
    "--compare": {
        "action": "store_true",
        "help": "also render without acceleration and measure dB and time",
    },
    "--overwrite": {
        "action": "store_true",
        "help": "replace finished videos of other jobs that have the names of these",
    },
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel render``."""
    text = "YAML, JSON, JSON Lines or CSV with jobs, or a rendered video to render again"
    parser.add_argument("jobfiles", nargs="*", metavar="JOBFILE", help=text)
    parser.set_defaults(usage_error=parser.error)
    for name, options in _OPTIONS.items():
        parser.add_argument(name, **options)


def run(args: argparse.Namespace) -> int:
    """Run a parsed command line and return the exit code.

    Raises ValueError or OSError, which mean exit code 2.
    """
    if args.list_arguments:
        return _list_arguments(args.list_arguments, args.json)
    if not args.jobfiles or args.out is None:
        missing = "JOBFILE" if not args.jobfiles else "--out DIR"
        args.usage_error(f"the following arguments are required: {missing}")
    overrides = [parse_override(text) for text in args.overrides]
    shard = parse_shard(args.shard)
    if args.dry_run:
        return _dry_run(args, overrides, shard)
    return _render(args, overrides, shard)


def _list_arguments(model: str, as_json: bool) -> int:
    from accel.pipelines.inputs import listing

    taken = listing.listed(model)
    text = dumps(listing.as_json(taken), indent=2) if as_json else "\n".join(listing.lines(taken))
    print(text)
    return 0


def _render(args: argparse.Namespace, overrides: list, shard: tuple[int, int]) -> int:
    from accel.pipelines.batch.batch_run import BatchRun, exit_code
    from accel.pipelines.batch.engines import Stop, make_engine
    from accel.pipelines.batch.manifest import Manifest, manifest_path
    from accel.pipelines.batch.output import prepare_folder
    from accel.pipelines.batch.queue import Options

    naming = Naming(args.out, list(measured_rows(args.out)), args.overwrite)
    entries = list(items(args.jobfiles, overrides, naming, shard))
    prepare_folder(args.out)
    progress, stop = Progress(args.progress == "json"), Stop()
    for text in filter(None, map(changed_since, job_files(args.jobfiles))):
        progress(events.Note(text))
    options = Options(
        args.out, args.compare, args.fail_fast, args.retries, args.checkpoint_steps, args.overwrite
    )
    manifest = Manifest(manifest_path(args.out, shard))
    if manifest.note:
        progress(events.Note(manifest.note))
    engine = make_engine(args.engine, args.out, stop, progress, args.stall_timeout)
    batch = BatchRun(options, engine, manifest, progress, stop, naming.repeats)
    try:
        with _signals(stop, engine, progress):
            summary = batch.run(entries)
    except sqlite3.OperationalError as error:
        raise OSError(f"the manifest in {args.out} cannot be written: {error}") from error
    finally:
        manifest.close()
    code = exit_code(summary, stop)
    progress(events.End(code, **vars(summary)))
    if summary.disk:
        raise JobError(
            f"{summary.disk}; make room and run the same command again: it continues from here"
        )
    return code


@contextmanager
def _signals(stop: Stop, engine: Engine, progress: Progress) -> Iterator[None]:
    """Let running jobs save their step at the first Ctrl-C or SIGTERM; the second ends at once."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        for known in before:
            signal.signal(known, signal.SIG_DFL)
        stop.number = number
        engine.stop()
        progress(events.Stopping(signal.Signals(number).name))

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dry_run(args: argparse.Namespace, overrides: list, shard: tuple[int, int]) -> int:
    """Print each job as it is read: id, file, what would happen, prediction."""
    rows = list(measured_rows(args.out))
    naming = Naming(args.out, rows, args.overwrite)
    totals = Totals()
    with closing(Aside()) as aside:
        predictor, limits = Predictor(rows, Simulator(aside)), StoredLimits(aside)
        for entry in items(args.jobfiles, overrides, naming, shard):
            if isinstance(entry, Invalid):
                totals.invalid += 1
                print(f"invalid: {entry.message}", file=sys.stderr)
                continue
            output = Output(args.out, entry.name, entry.job.format, args.overwrite)
            reason = output.why_not_done(entry.id, args.compare)
            if reason and (refusal := limits.why_not(entry.job) or _not_ours(output, entry)):
                totals.invalid += 1
                print(f"invalid: job {entry.name!r}: {refusal}", file=sys.stderr)
                continue
            if reason and entry.note:
                print(entry.note, file=sys.stderr)
            prediction = predictor.predict(entry.job)
            totals.add(prediction, wanted=bool(reason))
            _print_entry(entry, output, reason, prediction, args.progress == "json")
    equal = counted(naming.repeats, "equal to {} and to be rendered once")
    print(f"{totals}{equal}", file=sys.stderr)
    return 1 if totals.invalid else 0


def _not_ours(output: Output, item: Item) -> str:
    try:
        output.check_ours(item.id)
    except JobError as error:
        return str(error)
    return ""


def _print_entry(
    item: Item, output: Output, reason: str, prediction: Prediction, as_json: bool
) -> None:
    action = "render" if reason else "skip"
    if as_json:
        settings, predicted = json.loads(settings_text(item.job)), prediction.to_dict()
        planned = events.Planned(
            item.name, item.id, str(output.video), action, reason, predicted, settings
        )
        print(dumps(planned.to_dict()))
    else:
        why = f" ({reason})" if reason not in ("", "not rendered yet") else ""
        print(f"{item.id[:12]}  {action}{why}  {output.video}  {prediction}  {_brief(item)}")


def _brief(item: Item) -> str:
    """Return the settings that differ from a job's defaults, in one line."""
    settings = json.loads(settings_text(item.job))
    kept = {k: v for k, v in settings.items() if v not in (None, "") and k != "accel_job"}
    return dumps(kept, ascii_only=False)
