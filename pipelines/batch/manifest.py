"""The manifest: state of every job in an SQLite database (write-ahead log) in the output folder.

It is written by the coordinating process alone. Videos and sidecars remain what counts: a manifest
that is damaged is set aside, and a new one finds the finished files again by their hashes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

from accel.core.standard_streams import encodable
from accel.core.strict_json import dumps
from accel.pipelines.batch.identity import model_fingerprint, plan_digest
from accel.pipelines.job import Job

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY, id TEXT NOT NULL, state TEXT NOT NULL, job TEXT NOT NULL,
    model TEXT, plan TEXT, steps INTEGER, volume INTEGER,
    tries INTEGER NOT NULL DEFAULT 0, cut_off INTEGER NOT NULL DEFAULT 0,
    seconds REAL, peak_bytes INTEGER, sha256 TEXT, error TEXT, updated REAL);
CREATE INDEX IF NOT EXISTS by_id ON jobs (id);
CREATE TABLE IF NOT EXISTS events (
    time REAL NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, event TEXT NOT NULL, detail TEXT);
"""


class State(StrEnum):
    """What a job of the manifest is; the values are stored."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"
    INVALID = "invalid"


def manifest_path(out: Path, shard: tuple[int, int] = (1, 1)) -> Path:
    """Each shard keeps a manifest of its own: SQLite cannot be shared over a network folder."""
    suffix = "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"
    return out / ".accel" / f"manifest{suffix}.sqlite"


class Manifest:
    """An open manifest.

    ``note`` says what was wrong with the file found there, if anything was.
    """

    def __init__(self, path: Path) -> None:
        self.note = ""
        try:
            self._base = _open(path)
        except sqlite3.OperationalError as error:
            raise OSError(f"the manifest {path} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            kept = _set_aside(path)
            self.note = f"the manifest was damaged ({error}); kept as {kept}, finished files stay"
            self._base = _open(path)

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def add(self, rows: Iterable[tuple[str, str, Job]]) -> None:
        """Enter jobs as (name, id, job).

        A known one keeps its state, unless its id is new.
        """
        with self._base:
            self._base.executemany(
                "INSERT INTO jobs (name, id, state, job, model, plan, steps, volume, updated) "
                f"VALUES (?, ?, '{State.PENDING}', ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE "
                "SET id = excluded.id, state = excluded.state, job = excluded.job, tries = 0, "
                "cut_off = 0, model = excluded.model, plan = excluded.plan, "
                "steps = excluded.steps, volume = excluded.volume, sha256 = NULL, error = NULL "
                "WHERE id != excluded.id",
                (_row(name, job_id, job) for name, job_id, job in rows),
            )

    def names(self) -> dict[str, str]:
        """Return id of every job by its name."""
        return dict(self._base.execute("SELECT name, id FROM jobs"))

    def running(self) -> list[str]:
        """Return the jobs that some process was at when it last wrote."""
        query = "SELECT name FROM jobs WHERE state = ?"
        return [name for (name,) in self._base.execute(query, (State.RUNNING,))]

    def cut_offs(self) -> dict[str, int]:
        """Return how often each job was cut off, where it was."""
        return dict(self._base.execute("SELECT name, cut_off FROM jobs WHERE cut_off > 0"))

    def rows(self) -> list[dict[str, Any]]:
        """Return all jobs."""
        cursor = self._base.execute("SELECT * FROM jobs ORDER BY rowid")
        keys = [column[0] for column in cursor.description]
        return [dict(zip(keys, row, strict=True)) for row in cursor]

    def events(self, event: str | None = None) -> list[tuple[str, str, str]]:
        """(job, event, detail) in the order they happened."""
        where = "" if event is None else " WHERE event = ?"
        query = f"SELECT name, event, detail FROM events{where} ORDER BY rowid"
        return list(self._base.execute(query, () if event is None else (event,)))

    def log(self, name: str, event: str, state: State, detail: str = "", **values: Any) -> None:
        """Write down what happened to a job: its new ``state``, and columns to set."""
        values = {"state": state, "updated": time.time(), **values}
        columns = ", ".join(f"{key} = ?" for key in values)
        with self._base:
            self._base.execute(
                f"UPDATE jobs SET {columns} WHERE name = ?", _stored(*values.values(), name)
            )
            self._base.execute(
                "INSERT INTO events SELECT ?, name, id, ?, ? FROM jobs WHERE name = ?",
                _stored(time.time(), event, detail, name),
            )

    def remove(self, name: str) -> None:
        """Drop a job; its events stay."""
        with self._base:
            self._base.execute("DELETE FROM jobs WHERE name = ?", (name,))

    def add_invalid(self, where: str, message: str) -> None:
        """Enter something that is no job."""
        with self._base:
            self._base.execute(
                "INSERT OR REPLACE INTO jobs (name, id, state, job, error, updated) "
                "VALUES (?, '', ?, '', ?, ?)",
                _stored(where, State.INVALID, message, time.time()),
            )

    def forget_invalid(self) -> None:
        """Drop what was no job: the files are being read again."""
        with self._base:
            self._base.execute("DELETE FROM jobs WHERE id = ''")

    def cut_off(self, name: str) -> None:
        """Note that the process that rendered this job is gone."""
        with self._base:
            self._base.execute("UPDATE jobs SET cut_off = cut_off + 1 WHERE name = ?", (name,))
        self.log(name, "cut off", State.PENDING)


def _row(name: str, job_id: str, job: Job) -> tuple[Any, ...]:
    size = (job.width, job.height, job.frames or 1)
    volume = None if None in size else size[0] * size[1] * size[2]  # type: ignore[operator]
    model, plan = model_fingerprint(job.model), plan_digest(job)
    text = dumps(job.to_dict())
    return name, job_id, text, model, plan, job.steps, volume, time.time()


def _stored(*values: Any) -> tuple[Any, ...]:
    """Return values that SQLite takes: a path in a text may hold what is no UTF-8."""
    return tuple(encodable(value) if isinstance(value, str) else value for value in values)


def _open(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=30, check_same_thread=False)  # its users take turns
    try:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        (verdict,) = base.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        base.executescript(_SCHEMA)
        base.execute("SELECT name, id, state, cut_off, sha256 FROM jobs LIMIT 1")
    except BaseException:
        base.close()
        raise
    return base


def _set_aside(path: Path) -> Path:
    """Move a damaged database and its log files out of the way, keeping them."""
    kept = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(kept.with_name(kept.name + suffix))
    return kept
