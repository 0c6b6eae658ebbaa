"""Optical flow between frames: OpenCV's DIS in both directions, occlusions and scene cuts found.

A pixel whose forward and backward flow do not lead back to it (within a hundredth of their squared
lengths plus half a squared pixel; Sundaram et al., ECCV 2010) is occluded. Where 7 pixels in 10
are so and even the compensated pictures differ by 0.4 of the contrast, there is a scene cut. (On
real cuts both were above 0.88 and 0.55, on fast motion below 0.67 and 0.5.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from accel.core.extras import how_to_install

OUT = 1e6  # a displacement that leaves every picture
CUT_OCCLUDED, CUT_DIFFERENCE = 0.7, 0.4


class PairFlow(NamedTuple):
    """Flow between two neighboring frames.

    ``ahead`` and ``back`` are [H, W, 2] pixels, from the first frame to the second and from the
    second to the first; ``lost`` and ``found`` are boolean [H, W], true where those lead nowhere;
    ``cut`` tells whether a scene ends between the two.
    """

    ahead: np.ndarray
    back: np.ndarray
    lost: np.ndarray
    found: np.ndarray
    cut: bool


def opencv() -> Any:
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


def neighbor_flows(frames: Iterable[np.ndarray]) -> Iterator[PairFlow]:
    """Yield the flow between each two neighbors of ``frames``, uint8 [H, W, 3] each.

    Raises ValueError where OpenCV is missing.
    """
    cv2 = opencv()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for (first, _), (second, scale) in pairwise(map(_gray, frames)):
        ahead, back = dis.calc(first, second, None), dis.calc(second, first, None)
        lost, found = occluded(ahead, back), occluded(back, ahead)
        difference = np.abs(sample(second, ahead) - first.astype(np.float32)).mean()
        difference /= max(float(first.std()), 1.0)
        cut = bool(lost.mean() > CUT_OCCLUDED and difference > CUT_DIFFERENCE)
        size = (first.shape[1] // scale, first.shape[0] // scale)
        flows = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) / scale for f in (ahead, back)]
        hidden = [
            cv2.resize(bad.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
            for bad in (lost, found)
        ]
        yield PairFlow(flows[0], flows[1], hidden[0], hidden[1], cut)


def _gray(frame: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a frame in gray, enlarged for DIS, and by how much.

    It needs 8 x 8 patches on several scales.
    """
    cv2 = opencv()
    height, width = frame.shape[:2]
    scale = max(1, int(np.ceil(256 / min(height, width))))
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    large = cv2.resize(gray, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    return large, scale


def estimate(
    frames: Iterable[np.ndarray], between: int = 1
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Estimate forward and backward flow of every ``between``-th of ``frames``, uint8 [H, W, 3].

    Args:
        frames: n * between + 1 frames, looked at one after the other.
        between: Flows of so many neighbors are added up along the motion, since frames that far
            apart would be matched wrong.

    Returns:
        Forward and backward flow float32 [n, H, W, 2] pixels, and the numbers, from 1, of the steps
        that end in another scene. Occluded pixels are sent ``OUT``, so that what moves along the
        flow neither disappears under something nor is torn from it.
    """
    forward: list[np.ndarray] = []
    backward: list[np.ndarray] = []
    cuts: list[int] = []
    for k, pair in enumerate(neighbor_flows(frames)):
        step = k // between
        if pair.cut and step + 1 not in cuts:
            cuts.append(step + 1)
        ahead = np.where(pair.lost[..., None], np.float32(OUT), pair.ahead)
        back = np.where(pair.found[..., None], np.float32(OUT), pair.back)
        if k % between == 0:
            forward.append(ahead)
            backward.append(back)
        else:
            forward[-1], backward[-1] = along(forward[-1], ahead), along(back, backward[-1])
    return np.stack(forward), np.stack(backward), cuts


def along(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the flow [H, W, 2] of following ``first`` and then ``second``.

    What leaves the picture on the way (``OUT``) stays outside.
    """
    gone = first[..., 0] >= OUT / 2
    way = np.where(gone[..., None], np.float32(0), first)
    missing = second[..., 0] >= OUT / 2
    rest = sample(np.where(missing[..., None], np.float32(0), second), way)
    gone |= sample(missing.astype(np.float32), way) > 0.5
    return np.where(gone[..., None], np.float32(OUT), way + rest)


def occluded(flow: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Return boolean [H, W]: where following ``flow`` and then ``back`` does not lead home."""
    there = sample(back, flow)
    apart = np.square(flow + there).sum(-1)
    return apart > 0.01 * (np.square(flow).sum(-1) + np.square(there).sum(-1)) + 0.5


def sample(field: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """``field [H, W, ...]`` at p + flow(p), bilinear, edges clamped; float32."""
    cv2 = opencv()
    y, x = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
    where = (x + flow[..., 0], y + flow[..., 1])
    return cv2.remap(
        field.astype(np.float32), *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
