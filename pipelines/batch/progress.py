"""Tells what happens: JSON lines on stdout, or results on stdout, logs and bars on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tqdm import tqdm

_LOGGED = {
    "skip": "{job}: already done ({file})",
    "wait": "{job}: another process renders it",
    "resume": "{job}: goes on from a saved step",
    "invalid": "{error}",
    "retry": "{job}: {error}; trying again{how}",
    "same": "{where}: the same video as {job}, rendered once",
    "stopping": "{signal}: saving the current step, then stopping; once more to stop at once",
    "note": "{text}",
}


class Pace:
    """Adds to step events the seconds left of the job's part, from the steps seen in this run."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with ``eta_s``, None after the first step."""
        job, step, now = f"{event['job']} {event['part']}", event["step"], time.monotonic()
        since, first = self._first.setdefault(job, (now, step))
        pace = (now - since) / (step - first) if step > first else None
        eta = None if pace is None else round(pace * (event["steps"] - step), 2)
        if step == event["steps"]:
            del self._first[job]
        return {**event, "eta_s": eta}

    def forget(self, job: str) -> None:
        """The job ended before its last step."""
        self._first = {k: v for k, v in self._first.items() if not k.startswith(f"{job} ")}


class Progress:
    """Receives events (mappings with the key ``event``) and shows them."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._bars: dict[int, Any] = {}
        self._pace = Pace()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if event["event"] == "step":
            event = self._pace(event)
        if self._json:
            hidden = ("report", "traceback")
            shown = {k: v for k, v in event.items() if k not in hidden}
            print(json.dumps(shown), flush=True)
        if event["event"] == "step":
            self._bar(event)
        elif event["event"] == "done":
            self._close(event.get("slot", 0))
            if not self._json:
                print(_result(event), flush=True)
        elif event["event"] == "failed":
            self._close(event.get("slot", 0))
            self._log(f"{event['job']}: failed\n{event['traceback'] or event['error']}")
            self._log(f"  to reproduce: {event['reproduce']}")
        elif event["event"] == "end":
            self._log(_summary(event))
        elif event["event"] in _LOGGED:
            self._log(_LOGGED[event["event"]].format_map(event))

    def _bar(self, event: dict[str, Any]) -> None:
        if self._json or not sys.stderr.isatty():
            return
        slot, title = event.get("slot", 0), f"{event['job']} ({event['part']})"
        bar = self._bars.get(slot)
        if bar is None or bar.desc != f"{title}: ":
            self._close(slot)
            bar = tqdm(total=event["steps"], desc=title, unit="step", position=slot)
            self._bars[slot] = bar
        bar.update(event["step"] - bar.n)

    def _close(self, slot: int) -> None:
        bar = self._bars.pop(slot, None)
        if bar is not None:
            bar.close()

    def _log(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)


def _result(event: dict[str, Any]) -> str:
    lines = [f"{event['file']}: {event['frames']} frames in {event['seconds']:.2f} s"]
    if event["resumed_from_step"]:
        lines[0] += f", from step {event['resumed_from_step']} on"
    if event["memory"]:
        lines.append(f"  short of memory, rendered with {', '.join(event['memory'])}")
    if event["steps_not_saved"]:
        lines.append(f"  steps were not saved: {event['steps_not_saved']}")
    lines.append(event["report"])
    c = event["comparison"]
    if c is not None:
        slower = "" if c["speedup"] >= 1 else " (slower than not patching)"
        lines.append(
            f"  against the same seed unaccelerated: {c['psnr_db']:.2f} dB PSNR, "
            f"SSIM {c['ssim']:.4f}, {c['reference_seconds']:.2f} s, "
            f"speed {c['speedup']:.2f}x{slower}"
        )
    return "\n".join(lines)


def _summary(event: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{event[key]} {text}"
        for key, text in (
            ("done", "rendered"), ("skipped", "already done"), ("failed", "failed"),
            ("invalid", "invalid"), ("left", "left"),
        )
        if event[key] or key == "done"
    )  # fmt: skip
    again = "; the same command goes on from here" if event["left"] else ""
    return f"{counts}{again}"
