"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import accel
from accel.core.atomic_write import write_atomic


def test_text_and_bytes_in_a_new_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "x.txt", "motte é\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == "motte é\n".encode()
    write_atomic(str(tmp_path / "x.bin"), b"\x00\x01")
    assert (tmp_path / "x.bin").read_bytes() == b"\x00\x01"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["x.bin", "x.txt"]


def test_only_its_own_unfinished_file_is_removed(tmp_path: Path) -> None:
    for name in ("x.txt.part", "x.part", "x.txt.tmp"):
        (tmp_path / name).write_text("of somebody else")
    write_atomic(tmp_path / "x.txt", "new")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_error_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "plan.json"
    accel.Plan("old").save(file)
    before = file.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        accel.Plan("new").save(file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["plan.json"]
