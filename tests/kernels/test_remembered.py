"""What a process measured goes on to another one with a run that is continued there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel.kernels import measured


@dataclass(frozen=True)
class Found:
    order: tuple[str, ...]


@pytest.fixture
def empty(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "_memories", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "accel-diffusion"


def test_what_was_measured_is_taken_over(empty, monkeypatch):
    measured.memory("a")[empty / "a-x.json", "kind"] = 1.5
    measured.memory("b")[empty / "b-x.json", "kind"] = Found(("one", "two"))
    saved = json.loads(json.dumps(measured.remembered()))
    monkeypatch.setattr(measured, "_memories", {})
    measured.memory("a")[empty / "a-x.json", "other"] = 2.0
    measured.remember(saved)
    assert measured.memory("a") == {
        (empty / "a-x.json", "kind"): 1.5, (empty / "a-x.json", "other"): 2.0
    }  # fmt: skip
    assert measured.memory("b") == {(empty / "b-x.json", "kind"): {"order": ["one", "two"]}}


def test_what_is_known_here_stays(empty):
    measured.memory("a")[empty / "a-x.json", "kind"] = 1.5
    measured.remember({"a": {"a-x.json": {"kind": 9.0}, "a-y.json": {"kind": 3.0}}})
    assert measured.memory("a")[empty / "a-x.json", "kind"] == 1.5
    assert measured.memory("a")[Path(empty, "a-y.json"), "kind"] == 3.0
