"""``accel render``: names that stay, equal jobs that are told, streams that end no queue."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.cli import main
from accel.pipelines.batch.events import End
from accel.pipelines.batch.manifest import Manifest, State, manifest_path
from accel.pipelines.batch.progress import Progress
from accel.pipelines.video import read_comment

pytestmark = pytest.mark.slow

Render = Callable[..., int]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Render jobs, or what a path names, into ``out``; the exit code."""

    def run(*jobs: dict[str, object] | Path, options: tuple[str, ...] = ()) -> int:
        paths = [str(job) for job in jobs if isinstance(job, Path)]
        if not paths:
            paths = [str(tmp_path / "jobs.json")]
            defaults = {"prompt": "p", "steps": 1, "frames": 1}
            Path(paths[0]).write_text(json.dumps({"defaults": defaults, "jobs": jobs}))
        out = str(tmp_path / "out")
        return main(["render", *paths, "--out", out, "--engine", "inline", *options])

    return run


def shown(out: Path) -> dict[str, bytes]:
    """Content of everything visible, by its path."""
    files = [file for file in out.rglob("*") if file.is_file()]
    names = {str(file.relative_to(out)): file for file in files}
    return {name: f.read_bytes() for name, f in names.items() if not name.startswith(".accel")}


def test_finished_videos_stay_until_overwrite_is_asked_for(
    render: Render, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert render({"name": "hero", "seed": 1}, {"name": "b.mp4", "format": "png"}) == 0
    first = shown(out)
    assert render({"name": "hero", "seed": 2}, {"name": "b", "seed": 2}) == 0
    told = capsys.readouterr().err
    assert "job 'hero' is named hero-" in told and "--overwrite" in told
    assert "the finished job 'b.mp4' has the path b.mp4" in told
    assert render(out / "hero.mp4", out / "b.mp4", options=("--set", "seed=9")) == 0
    second = shown(out)
    assert first.items() <= second.items() and len(list(out.glob("hero*.mp4"))) == 3
    assert render({"name": "hero", "seed": 2}, {"name": "b", "seed": 2}) == 0
    assert "0 rendered, 2 already done" in capsys.readouterr().err and shown(out) == second
    assert render({"name": "hero", "seed": 3}, options=("--overwrite",)) == 0
    assert '"seed": 3' in read_comment(out / "hero.mp4")
    assert set(shown(out)) == set(second)


def test_an_interrupted_overwrite_leaves_the_old_video(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert render({"name": "hero", "seed": 1}) == 0
    before = shown(tmp_path / "out")
    monkeypatch.setattr("accel.pipelines.batch.worker.generate", lambda *a, **k: 1 / 0)
    assert render({"name": "hero", "seed": 2}, options=("--overwrite",)) == 1
    monkeypatch.undo()
    assert shown(tmp_path / "out") == before
    assert render({"name": "hero", "seed": 1}) == 0 and shown(tmp_path / "out") == before


def test_equal_jobs_are_named_at_the_end(
    render: Render, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {"name": "a"}, {"name": "b"}, {"name": "a"}, {}, {"name": "c", "seed": 1}, {"name": "a"}
    assert render(*jobs, options=("--dry-run",)) == 0
    assert "3 jobs are equal to 'a' and to be rendered once" in capsys.readouterr().err
    assert render(*jobs) == 0
    told = capsys.readouterr().err
    assert "3 jobs are equal to 'a' and rendered once" in told
    assert "1 job is the same video as 'a', and copied" in told
    assert render(*jobs, options=("--progress", "json")) == 0
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (end["event"], end["skipped"], end["equal"]) == ("end", 3, {"a": 3})
    assert "copied" not in end


class Closed(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(("stream", "code"), [("stdout", 141), ("stderr", 0)])
def test_a_reader_that_goes_away_does_not_end_the_queue(
    stream: str, code: int, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, stream, Closed())
    assert render({"name": "a"}, {"name": "b"}, {"name": "c", "seed": 1}) == code
    assert {f"{name}.mp4" for name in "abc"} < set(shown(tmp_path / "out"))


def test_names_and_errors_that_cannot_be_printed_or_written_end_nothing(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "ascii"))
    jobs = (
        {"name": "雲" * 120},
        {"model": "./\udcff雲"},
        {"name": "é" * 99},
    )
    assert render(*jobs, options=("--retries", "0")) == 1
    assert set(shown(tmp_path / "out")) == {
        f"{name}{suffix}" for name in ("雲" * 60, "é" * 90) for suffix in (".mp4", ".json")
    }
    sys.stdout.flush()
    assert b"\\u96f2" in raw.getvalue()

    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("no \ud800 such 雲")

    monkeypatch.setattr("accel.pipelines.batch.worker.generate", fails)
    assert render({"name": "雲", "seed": 5}, options=("--retries", "0")) == 1
    kept = tmp_path / "out" / ".accel" / "failures"
    assert "no \\ud800 such 雲" in (kept / "雲.txt").read_text("utf-8")
    manifest = Manifest(manifest_path(tmp_path / "out"))
    states = {row["name"]: row["state"] for row in manifest.rows()}
    manifest.close()
    assert states["雲"] == State.FAILED


def test_many_equal_jobs_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    equal = {name: number for number, name in enumerate("abcdef", 1)}
    Progress(False)(End(0, 1, 0, 0, 0, 0, "", equal))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "3 jobs are equal to 'c' and rendered once; 15 more equal to others and rendered once"
    )
