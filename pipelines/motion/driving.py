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
from accel.pipelines.video_reading import read_spread

APART = 3  # frames from one that is used to the next, beyond which there is a warning


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

    def frames(self, count: int, height: int, width: int) -> np.ndarray:
        """``count`` frames uint8 [count, H, W, 3] of the video, cut and scaled to cover H x W.

        No more than these are held in memory. Raises ValueError for a video that cannot be used.
        """
        if not Path(self.file).exists():
            raise ValueError(f"driving video {self.file} does not exist")
        try:
            frames, head = read_spread(self.file, count, (height, width), self.first, self.last)
        except ValueError as error:
            raise ValueError(f"driving video {error}") from error
        if head.frames < 2:
            raise ValueError(f"driving video {self.file} has {head.frames} frames, needs 2 or more")
        if head.frames > APART * count:
            logger.warning(
                "driving video %s: every %.1fth of %d frames is used; motion between frames that "
                "far apart may be found wrong: choose first and last closer",
                self.file, (head.frames - 1) / (count - 1), head.frames,
            )  # fmt: skip
        if head.variable:
            logger.warning(
                "driving video %s: its frames last unequally long, but each counts as one; encode "
                "it at a constant rate to keep its timing", self.file,
            )  # fmt: skip
        return frames

    def flows(self, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return forward and backward flow, [count - 1, H, W, 2] pixels.

        Raises ValueError for a video that cannot be used, naming its scene cuts.
        """
        frames = self.frames(count, height, width)
        forward, backward, cuts = estimate(frames)
        if cuts and self.cuts == "error":
            raise ValueError(
                f"driving video {self.file} has scene cuts before frame {', '.join(map(str, cuts))}"
                f" (of the {count} used); choose first and last between them or set cuts: fresh"
            )
        for k in cuts:
            forward[k - 1], backward[k - 1] = OUT, OUT
        return forward, backward
