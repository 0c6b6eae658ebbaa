"""Flow of a driving video, estimated between the frames that a job uses (``optical_flow.py``).

An occluded pixel is sent out of the picture, so that noise neither disappears under something nor
is torn from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accel.core.optical_flow import OUT, estimate
from accel.core.run_log import logger
from accel.core.validate import one_of, whole
from accel.pipelines.video_decoding import VideoHead
from accel.pipelines.video_reading import stream_spread, with_head

APART = 3  # frames from one that is looked at to the next, beyond which there is a warning
MOST_BETWEEN = 16  # frames that are looked at for one that is used


@dataclass(frozen=True)
class Driving:
    """``file``: a video, or a folder of PNG frames.

    ``first``, ``last``: its frames to use (default all), spread over the job's frames by number,
    not by time. ``cuts``: "error", or "fresh" to start with new noise at a scene cut.
    """

    file: str
    first: int = 0
    last: int | None = None
    cuts: str = "error"

    def __post_init__(self) -> None:
        if not isinstance(self.file, str):
            raise ValueError(f"motion video file must be a path, got {self.file!r}")
        whole("motion video first", self.first, 0)
        if self.last is not None:
            whole("motion video last", self.last, self.first + 1)
        one_of("motion video cuts", self.cuts, ("error", "fresh"))

    def flows(self, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return forward and backward flow, [count - 1, H, W, 2] pixels.

        The video is cut and scaled to cover H x W. Frames between those that are used are looked at
        too, and few frames are in memory at a time. Raises ValueError for a video that cannot be
        used, naming its scene cuts.
        """
        if not Path(self.file).exists():
            raise ValueError(f"driving video {self.file} does not exist")
        try:
            (forward, backward, cuts), _ = with_head(
                self.file, lambda head: self._estimate(head, count, (height, width))
            )
        except ValueError as error:
            raise ValueError(f"driving video {error}") from error
        if cuts and self.cuts == "error":
            raise ValueError(
                f"driving video {self.file} has scene cuts before frame {', '.join(map(str, cuts))}"
                f" (of the {count} used); choose first and last between them or set cuts: fresh"
            )
        for k in cuts:
            forward[k - 1], backward[k - 1] = OUT, OUT
        return forward, backward

    def _estimate(
        self, head: VideoHead, count: int, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        there = (head.frames if self.last is None else self.last + 1) - self.first
        if head.frames < 2:
            raise ValueError(f"{self.file} has {head.frames} frames, needs 2 or more")
        apart = (there - 1) / (count - 1)
        between = min(max(1, round(apart)), MOST_BETWEEN)
        if apart > APART * between:
            logger.warning(
                "driving video %s: every %.1fth of %d frames is used, and every %.1fth looked at; "
                "motion between frames that far apart may be found wrong: choose first and last "
                "closer", self.file, apart, there, apart / between,
            )  # fmt: skip
        if head.variable:
            logger.warning(
                "driving video %s: its frames last unequally long, but each counts as one; encode "
                "it at a constant rate to keep its timing", self.file,
            )  # fmt: skip
        frames = stream_spread(
            self.file, head, (count - 1) * between + 1, size, self.first, self.last
        )
        return estimate(frames, between)
