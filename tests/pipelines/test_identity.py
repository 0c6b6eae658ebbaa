"""Ids of stored jobs stay while what the jobs mean stays: twenty of them, with their jobs.

Those with preset "balanced" are of 30 November 2026, when it got 8-bit layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accel.pipelines.batch.identity import job_id
from accel.pipelines.job import Job, make_job

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads(Path(__file__).with_name("stored_ids.json").read_text())


def test_there_are_twenty() -> None:
    assert len(STORED) == 20 == len({row["id"] for row in STORED})


@pytest.mark.parametrize("row", STORED, ids=range(len(STORED)))
def test_an_id_is_what_it_was(row: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # one of them names a file
    job = make_job(row["job"])
    assert job_id(job) == row["id"]
    assert job_id(Job(**json.loads(json.dumps(job.to_dict())))) == row["id"]


def test_a_limit_that_was_once_the_default_is_not_todays_default() -> None:
    plan = {"attention": {"precision": "int8"}}
    limited = {"attention": {"precision": "int8", "max_error": 0.5}}
    ids = [job_id(Job("p", preset=None, plan=each)) for each in (plan, limited)]
    assert ids[0] != ids[1]
