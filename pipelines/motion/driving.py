"""Flow of a driving video: OpenCV's DIS in both directions, occlusions and scene cuts found.

A pixel whose forward and backward flow do not lead back to it (within a hundredth of their squared
lengths plus half a squared pixel; Sundaram et al., ECCV 2010) is occluded: it is sent out of the
picture, so that noise neither disappears under something nor is torn from it. Where 7 pixels in 10
are so and even the compensated pictures differ by 0.4 of the contrast, there is a scene cut. (On
real cuts both were above 0.88 and 0.55, on fast motion below 0.67 and 0.5.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.extras import how_to_install
from accel.core.run_log import logger
from accel.core.validate import one_of, whole
from accel.pipelines.video_reading import read_spread

OUT = 1e6  # a displacement that leaves every picture
APART = 3  # frames from one that is used to the next, beyond which there is a warning
CUT_OCCLUDED, CUT_DIFFERENCE = 0.7, 0.4


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


def _opencv() -> Any:
    """Return the module cv2.

    Raises ValueError with the way out where it is missing.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"motion from a video needs OpenCV: {how_to_install('opencv-python-headless')}"
        ) from error
    return cv2


def estimate(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Estimate forward and backward flow [F - 1, H, W, 2] of uint8 frames [F, H, W, 3].

    Occluded pixels are sent ``OUT``. Also returns the frames that begin with a scene cut.
    """
    cv2 = _opencv()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = frames.shape[1:3]
    # DIS needs 8 x 8 patches on several scales: small pictures are enlarged for it.
    scale = max(1, int(np.ceil(256 / min(height, width))))
    size = (width * scale, height * scale)
    gray = [
        cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
        for f in frames
    ]
    forward: list[np.ndarray] = []
    backward: list[np.ndarray] = []
    cuts: list[int] = []
    for k in range(len(gray) - 1):
        ahead, back = dis.calc(gray[k], gray[k + 1], None), dis.calc(gray[k + 1], gray[k], None)
        lost, found = occluded(ahead, back), occluded(back, ahead)
        difference = np.abs(sample(gray[k + 1], ahead) - gray[k].astype(np.float32)).mean()
        difference /= max(float(gray[k].std()), 1.0)
        if lost.mean() > CUT_OCCLUDED and difference > CUT_DIFFERENCE:
            cuts.append(k + 1)
        for flow, bad, out in ((ahead, lost, forward), (back, found, backward)):
            small = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / scale
            hidden = cv2.resize(
                bad.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
            )
            out.append(np.where(hidden[..., None] > 0.5, np.float32(OUT), small))
    return np.stack(forward), np.stack(backward), cuts


def occluded(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Return boolean [H, W]: where following ``flow`` and then ``back`` does not lead home."""
    there = sample(back, flow)
    apart = np.square(flow + there).sum(-1)
    return apart > 0.01 * (np.square(flow).sum(-1) + np.square(there).sum(-1)) + 0.5


def sample(field: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """``field [H, W, ...]`` at p + flow(p), bilinear, edges clamped; float32."""
    cv2 = _opencv()
    y, x = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
    where = (x + flow[..., 0], y + flow[..., 1])
    return cv2.remap(
        field.astype(np.float32), *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
