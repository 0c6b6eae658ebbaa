"""Whatever stands in an output folder under the name of a sidecar, reading it ends nothing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from accel.core.strict_json import dumps
from accel.pipelines.batch import sidecar
from accel.pipelines.batch.sidecar import read_sidecar

WHOLE = {
    "id": "1f", "video": {"file": "a.mp4", "sha256": "2e"}, "job": {"prompt": "p"}, "seconds": 1.5,
    "peak_bytes": 7, "phase_peak_bytes": {"denoise": 7}, "frames": 5, "report": None,
    "comparison": {"psnr_db": 40.0, "psnr_frames": [40.0]}, "memory": ["VAE slicing"],
    "resumed_from_step": 0, "steps_not_saved": "", "environment": {"device": "cpu"},
}  # fmt: skip


def read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    told: list[str] = []
    return read_sidecar(path, told.append), told


def test_a_whole_one_is_read_and_a_missing_one_is_no_news(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(WHOLE))
    assert read(tmp_path / "a.json") == (WHOLE, [])
    assert read(tmp_path / "b.json") == (None, [])


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1, 2]", "null", '"text"', "{}", '{"id": "1f"}', b"\xff\xfe{}", "9" * 5000,
        "[" * 100_000, '{"id": "1f", "video": ' + '{"a": ' * 700 + "1" + "}" * 701,
        *(
            json.dumps({**WHOLE, **odd})
            for odd in (
                {"id": 1}, {"video": "a.mp4"}, {"video": {"sha256": None}}, {"seconds": "1.5"},
                {"peak_bytes": [1]}, {"frames": None}, {"frames": True}, {"comparison": "good"},
                {"comparison": {"psnr_db": "40"}}, {"memory": {}}, {"memory": [1]}, {"job": []},
                {"comparison": {"psnr_frames": [None]}}, {"environment": {"device": 1}},
                {"phase_peak_bytes": {"denoise": "much"}}, {"report": 3},
            )
        ),
    ],
)  # fmt: skip
def test_an_odd_one_is_skipped_with_its_name_and_reason(
    content: str | bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    data, (note,) = read(path)
    assert data is None and note.startswith(f"{path} is skipped: ")


def test_what_is_no_file_or_too_large_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "LARGEST", 10)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "large.json").write_text(json.dumps(WHOLE))
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name in ("folder", "pipe", "large", "loop"):
        data, (note,) = read(tmp_path / f"{name}.json")
        assert data is None and f"{name}.json is skipped" in note


def test_numbers_that_json_has_no_word_for_are_written_as_null_and_read_as_they_were(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    odd = {**WHOLE, "comparison": {"psnr_db": math.inf, "ssim": math.nan}, "seconds": -math.inf}
    for text in (dumps(odd), json.dumps(odd)):  # the second as it was written before
        path.write_text(text)
        data, told = read(path)
        assert data is not None and not told and data["seconds"] is None
        assert data["comparison"] == {"psnr_db": math.inf, "ssim": None}
    assert "Infinity" not in dumps(odd) and "NaN" not in dumps({"a": [(math.nan, 1.0)]})
