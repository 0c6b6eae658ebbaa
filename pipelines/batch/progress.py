"""Tells what happens: JSON lines on stdout, or results on stdout, logs and bars on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

from tqdm import tqdm

from accel.core.strict_json import dumps
from accel.pipelines.batch import events


class Pace:
    """Adds to step events the seconds left of the job's part, from the steps seen in this run."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, event: events.Step) -> events.Step:
        """Return the event with ``eta_s``, None after the first step."""
        job, step, now = f"{event.job} {event.part}", event.step, time.monotonic()
        since, first = self._first.setdefault(job, (now, step))
        pace = (now - since) / (step - first) if step > first else None
        eta = None if pace is None else round(pace * (event.steps - step), 2)
        if step == event.steps:
            del self._first[job]
        return replace(event, eta_s=eta)

    def forget(self, job: str) -> None:
        """Drop what is known of a job that ended before its last step."""
        self._first = {k: v for k, v in self._first.items() if not k.startswith(f"{job} ")}


class Progress:
    """Receives events and shows them."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._bars: dict[int, Any] = {}
        self._pace = Pace()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if isinstance(event, events.Step):
            event = self._pace(event)
        if self._json:
            print(dumps(event.to_dict()), flush=True)
        if isinstance(event, events.Step):
            self._bar(event)
        elif isinstance(event, events.Done | events.Failed):
            self._close(event.slot)
        if isinstance(event, events.Done) and not self._json:
            print(_result(event), flush=True)
        for text in _logged(event):
            tqdm.write(text, file=sys.stderr)

    def _bar(self, event: events.Step) -> None:
        if self._json or not sys.stderr.isatty():
            return
        slot, title = event.slot or 0, f"{event.job} ({event.part})"
        bar = self._bars.get(slot)
        if bar is None or bar.desc != f"{title}: ":
            self._close(slot)
            bar = tqdm(total=event.steps, desc=title, unit="step", position=slot)
            self._bars[slot] = bar
        bar.update(event.step - bar.n)

    def _close(self, slot: int) -> None:
        bar = self._bars.pop(slot, None)
        if bar is not None:
            bar.close()


def _logged(event: events.Event) -> tuple[str, ...]:
    """Return the texts that an event adds to the log."""
    match event:
        case events.Skip(job=job, file=file):
            return (f"{job}: already done ({file})",)
        case events.Wait(job=job):
            return (f"{job}: another process renders it",)
        case events.Resume(job=job):
            return (f"{job}: goes on from a saved step",)
        case events.Invalid(error=error):
            return (error,)
        case events.Retry(job=job, error=error, how=how):
            return (f"{job}: {error}; trying again{how}",)
        case events.Failed():
            what = event.traceback or event.error
            return f"{event.job}: failed\n{what}", f"  to reproduce: {event.reproduce}"
        case events.Note(text=text):
            return (text,)
        case events.Stopping(signal=signal):
            how = "saving the current step, then stopping; once more to stop at once"
            return (f"{signal}: {how}",)
        case events.End():
            return (_summary(event),)
        case events.Step() | events.Preview() | events.Start() | events.Done():
            return ()
        case _:
            assert_never(event)


def _result(event: events.Done) -> str:
    data = event.sidecar
    lines = [f"{event.file}: {data['frames']} frames in {data['seconds']:.2f} s"]
    if data["resumed_from_step"]:
        lines[0] += f", from step {data['resumed_from_step']} on"
    if data["memory"]:
        lines.append(f"  short of memory, rendered with {', '.join(data['memory'])}")
    lines += [f"  {text}" for text in data.get("prompt_cut", ())]
    if data["steps_not_saved"]:
        lines.append(f"  steps were not saved: {data['steps_not_saved']}")
    lines.append(event.report)
    c = data["comparison"]
    if c is not None:
        slower = "" if c["speedup"] >= 1 else " (slower than not patching)"
        lines.append(
            f"  against the same seed unaccelerated: {c['psnr_db']:.2f} dB PSNR, "
            f"SSIM {c['ssim']:.4f}, {c['reference_seconds']:.2f} s, "
            f"speed {c['speedup']:.2f}x{slower}"
        )
    return "\n".join(lines)


def _summary(event: events.End) -> str:
    counts = {
        "rendered": event.done, "already done": event.skipped, "failed": event.failed,
        "invalid": event.invalid, "left": event.left,
    }  # fmt: skip
    told = [f"{n} {text}" for text, n in counts.items() if n or text == "rendered"]
    again = "; the same command goes on from here" if event.left else ""
    equal = counted(event.equal, "equal to {} and rendered once")
    copied = counted(event.copied, "the same video as {}, and copied")
    return f"{', '.join(told)}{again}{equal}{copied}"


def counted(jobs: Mapping[str, int], text: str, most: int = 3) -> str:
    """Return how many jobs are what ``text`` says of the names in ``jobs``, "" for none."""
    told = [
        f"; {'1 job is' if n == 1 else f'{n} jobs are'} {text.format(repr(name))}"
        for name, n in list(jobs.items())[:most]
    ]
    others = sum(list(jobs.values())[most:])
    return "".join(told) + (f"; {others} more {text.format('others')}" if others else "")
