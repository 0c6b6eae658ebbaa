"""The page keeps an uploaded driving video, and does not decode it for that."""

from __future__ import annotations

import numpy as np
import pytest

from accel.pipelines import video_decoding as decoding
from accel.pipelines.job import JobError
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import write_video


def test_an_upload_is_kept_without_decoding_it(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", np.zeros((12, 48, 64, 3), np.uint8), fps=8)
    (tmp_path / "b.mp4").write_text("no video")
    monkeypatch.setattr(decoding, "frames", None)
    studio = Studio(tmp_path / "out")
    try:
        kept = studio.keep_driving([tmp_path / "a.mp4"])
        assert kept.read_bytes() == (tmp_path / "a.mp4").read_bytes()
        for name, limit, message in (
            ("b.mp4", 10**6, "^the file cannot be read as a video"),
            ("a.mp4", 11, "^the file cannot .* more than 11 frames; cut it$"),
        ):
            monkeypatch.setattr(decoding, "MOST_FRAMES", limit)
            with pytest.raises(JobError, match=message):
                studio.keep_driving([tmp_path / name])
    finally:
        studio.close()
