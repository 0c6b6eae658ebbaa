"""What others read stays as it is: lines of ``--progress json``, words in manifest and queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from accel.pipelines.batch import events, ray_engine
from accel.pipelines.batch.events import Part
from accel.pipelines.batch.manifest import State
from accel.pipelines.batch.progress import Progress
from accel.pipelines.batch.tasks import Check, Kind, Outcome
from accel.pipelines.ui.entry import EntryState

SIDECAR = {
    "seconds": 1.5, "frames": 5, "report": {"runs": 1}, "comparison": None, "memory": [],
    "resumed_from_step": 0, "steps_not_saved": "",
}  # fmt: skip
LINES = [
    (events.Start("a", "1f", 0), '{"event": "start", "job": "a", "id": "1f", "slot": 0}'),
    (events.Resume("a"), '{"event": "resume", "job": "a"}'),
    (
        events.Step("a", 1, 2, Part.RENDER, slot=0),
        '{"event": "step", "job": "a", "step": 1, "steps": 2, "part": "render", "slot": 0, '
        '"eta_s": null}',
    ),
    (
        events.Step("a", 1, 2, Part.UNACCELERATED),
        '{"event": "step", "job": "a", "step": 1, "steps": 2, "part": "unaccelerated", '
        '"eta_s": null}',
    ),
    (
        events.Done("a", "1f", 0, "o/a.mp4", "2e", SIDECAR, "a text"),
        '{"event": "done", "job": "a", "id": "1f", "slot": 0, "file": "o/a.mp4", "sha256": "2e", '
        '"seconds": 1.5, "frames": 5, "comparison": null, "memory": [], "resumed_from_step": 0, '
        '"steps_not_saved": ""}',
    ),
    (
        events.Skip("a", "1f", "o/a.mp4"),
        '{"event": "skip", "job": "a", "id": "1f", "file": "o/a.mp4"}',
    ),
    (events.Wait("a"), '{"event": "wait", "job": "a"}'),
    (
        events.Retry("a", "bad", " with less memory"),
        '{"event": "retry", "job": "a", "error": "bad", "how": " with less memory"}',
    ),
    (
        events.Failed("a", "1f", 0, "bad", "Traceback", "accel render x"),
        '{"event": "failed", "job": "a", "id": "1f", "slot": 0, "error": "bad", '
        '"reproduce": "accel render x"}',
    ),
    (
        events.Invalid("f, job 2", "bad"),
        '{"event": "invalid", "where": "f, job 2", "error": "bad"}',
    ),
    (events.Note("x"), '{"event": "note", "text": "x"}'),
    (events.Note("x", job="a"), '{"event": "note", "job": "a", "text": "x"}'),
    (events.Stopping("SIGINT"), '{"event": "stopping", "signal": "SIGINT"}'),
    (
        events.End(1, done=2, skipped=0, failed=1, invalid=0, left=3, disk=""),
        '{"event": "end", "exit_code": 1, "done": 2, "skipped": 0, "failed": 1, "invalid": 0, '
        '"left": 3, "disk": ""}',
    ),
    (events.Preview("a", b"\xff", slot=0), '{"event": "preview", "job": "a", "slot": 0}'),
    (
        events.Preview("a", why_not="no preview: x"),
        '{"event": "preview", "job": "a", "why_not": "no preview: x"}',
    ),
]


@pytest.mark.parametrize(("event", "line"), LINES)
def test_an_event_is_its_line(
    event: events.Event, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.dumps(event.to_dict()) == line
    Progress(as_json=True)(event)
    assert capsys.readouterr().out == f"{line}\n"


def test_every_event_has_a_line() -> None:
    assert {type(event) for event, _ in LINES} == set(get_args(events.Event))


def test_states_are_stored_as_the_words_they_always_were() -> None:
    assert json.dumps([*State]) == (
        '["pending", "running", "stopped", "done", "failed", "invalid"]'
    )
    assert ", ".join(Kind) == (
        "done, found, busy, stopped, invalid, failed, oom, disk, died, lost, checked"
    )
    assert ", ".join(EntryState) == "waiting, running, stopped, failed"


def test_a_task_is_cancelled_on_another_machine_before_and_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor without Ray: which of its tasks are to stop."""
    asked: list[bool] = []

    class Asking:
        def __init__(self, *arguments: Any) -> None:
            self.stop = next(value for value in arguments if callable(value))

        def perform(self, task: Check) -> Outcome:
            asked.append(self.stop())
            return Outcome(Kind.CHECKED)

    monkeypatch.setattr(ray_engine, "Worker", Asking)
    actor = ray_engine._Renderer(str(tmp_path), "token", gpu=False)
    actor.perform(Check("tiny", {}), 1)
    actor.cancel(2)
    actor.perform(Check("tiny", {}), 2)
    actor.perform(Check("tiny", {}), 3)
    actor.stop()
    actor.perform(Check("tiny", {}), 4)
    assert asked == [False, True, False, True]
