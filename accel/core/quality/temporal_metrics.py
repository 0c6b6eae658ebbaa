"""What a video does from frame to frame, by arithmetic and by this package's optical flow.

Three of these ask what VBench (Huang et al., CVPR 2024) asks of a video. ``temporal_flickering`` is
its formula. Its motion smoothness interpolates with the network AMT, and its dynamic degree takes
flow from RAFT; here both are by OpenCV's flow, so they have names of their own, and no value of
theirs is one of VBench's. VBench takes flickering from static videos only, and all of it from its
own prompts: none of these numbers is a VBench score.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from accel.core.optical_flow import PairFlow, neighbor_flows, sample
from accel.core.quality.pixel_metrics import CannotMeasure, check_pair

FPS = 16.0  # frames per second of a video that does not say it
SAMPLED = 8.0  # frames per second that dynamic degree looks at
FASTEST, SPEED, SIDE = 0.05, 6.0, 256.0  # share of the pixels; pixels in a picture of that height


def temporal_flickering(frames: np.ndarray) -> float:
    """Return (255 - d) / 255, d the mean absolute difference of neighboring frames, in 0 to 1.

    VBench's formula. 1 is a still picture; motion lowers it as well as flicker does, so compare
    only videos of one content.

    Args:
        frames: uint8 [F, H, W, 3], 2 frames or more.

    Raises:
        ValueError: Another dtype or shape, or a single frame.
    """
    _check(frames, 2)
    apart = [_difference(x, y.astype(np.float32)) for x, y in pairwise(frames)]
    return (255.0 - float(np.mean(apart))) / 255.0


def warping_error(reference: np.ndarray, frames: np.ndarray) -> float:
    """Return the mean squared difference of each frame and the next one led back along the flow.

    Lai et al., ECCV 2018: values are 0 to 1, occluded pixels do not count. The flow is the
    reference's, by OpenCV's DIS where they have FlowNet 2; pixels are occluded where forward and
    backward flow disagree or leave the picture (they leave out the borders of motions too). Compare
    it with the reference's own, ``warping_error(reference, reference)``.

    Args:
        reference: uint8 [F, H, W, 3], 2 frames or more.
        frames: Another video of the same shape.

    Raises:
        ValueError: Another dtype, different shapes, a single frame, or OpenCV is missing.
    """
    check_pair(reference, frames)
    _check(frames, 2)
    errors = []
    for pair, (now, then) in zip(neighbor_flows(reference), pairwise(frames), strict=True):
        seen = ~pair.lost & _inside(pair.ahead)
        back = sample(then, pair.ahead)
        squared = np.square((back - now) / 255.0).mean(-1)
        errors.append(squared[seen].mean() if seen.any() else squared.mean())
    return float(np.mean(errors))


def motion_smoothness_by_flow(frames: np.ndarray) -> float:
    """Return (255 - d) / 255, d the error of every other frame when made from its neighbors.

    The frame between two is the mean of both, led to the middle along the flow between them (the
    flow at the middle as in Jiang et al., CVPR 2018, formula 4). VBench's motion smoothness asks
    the same of a network.

    Args:
        frames: uint8 [F, H, W, 3], 3 frames or more.

    Raises:
        ValueError: Another dtype or shape, fewer frames, or OpenCV is missing.
    """
    _check(frames, 3)
    kept, dropped = frames[::2], frames[1::2]
    apart = [
        _difference(truth, _between(before, after, pair))
        for pair, (before, after), truth in zip(
            neighbor_flows(kept), pairwise(kept), dropped, strict=False
        )
    ]
    return (255.0 - float(np.mean(apart))) / 255.0


def dynamic_degree_by_flow(frames: np.ndarray, fps: float = FPS) -> float:
    """Return the share of steps, of 1/8 s, in which something moves far.

    It does where the fastest 5 % of the pixels move more than 6 pixels on average, in a picture
    whose smaller side is 256. VBench looks at the same (by RAFT) and calls a video dynamic where
    there are as many such steps as a quarter of the frames looked at.

    Args:
        frames: uint8 [F, H, W, 3], enough for two frames 1/8 s apart.
        fps: Frames per second.

    Raises:
        ValueError: Another dtype or shape, fewer frames, or OpenCV is missing.
    """
    every = max(1, round(fps / SAMPLED))
    _check(frames, every + 1)
    limit = max(1.0, SAMPLED / fps) * SPEED * min(frames.shape[1:3]) / SIDE
    fast = []
    for pair in neighbor_flows(frames[::every]):
        speeds = np.sort(np.hypot(pair.ahead[..., 0], pair.ahead[..., 1]), axis=None)
        fastest = speeds[-max(1, int(speeds.size * FASTEST)) :]
        fast.append(float(fastest.mean()) > limit)
    return float(np.mean(fast))


def _check(frames: np.ndarray, least: int) -> None:
    check_pair(frames, frames)
    if len(frames) < least:
        raise CannotMeasure(f"needs {least} frames or more, got {len(frames)}")


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float32) - b).mean(dtype=np.float64))


def _inside(flow: np.ndarray) -> np.ndarray:
    """Return boolean [H, W]: where a flow [H, W, 2] stays in the picture."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    to_x, to_y = x + flow[..., 0], y + flow[..., 1]
    return (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)


def _between(before: np.ndarray, after: np.ndarray, pair: PairFlow) -> np.ndarray:
    """Return the frame [H, W, 3] in the middle of two, float32."""
    to_before, to_after = (pair.back - pair.ahead) / 4, (pair.ahead - pair.back) / 4
    return (sample(before, to_before) + sample(after, to_after)) / 2
