"""The metrics by name, and how they are asked for.

A metric of one's own is a ``Metric`` record: give it to ``measure``, or ``register`` it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from accel.core.extras import how_to_install
from accel.core.quality.color_video_vdp import jod, why_not_jod
from accel.core.quality.lpips_alexnet import Lpips, why_not_lpips
from accel.core.quality.pixel_metrics import CannotMeasure, check_pair, ms_ssim, psnr, ssim
from accel.core.quality.temporal_metrics import (
    dynamic_degree_by_flow,
    motion_smoothness_by_flow,
    temporal_flickering,
    warping_error,
)
from accel.core.quality.vmaf_ffmpeg import vmaf, why_not_vmaf
from accel.core.validate import one_of

Function = Callable[[np.ndarray, np.ndarray], float]


def nothing() -> str:
    """Return "": what a metric needs that needs nothing."""
    return ""


@dataclass(frozen=True)
class Metric:
    """One number for a video beside its reference.

    ``function(reference, frames)`` gives it for two uint8 videos [F, H, W, 3] of one shape; a
    metric of a single video looks at ``frames`` alone. ``unit`` is "" for a plain number.
    ``higher_is_better``: None where neither is. ``needs()`` says what is missing here, "" if
    nothing is. ``of_each``: the reference has a value of its own, ``function(reference,
    reference)``, and the two values are what to look at.
    """

    name: str
    function: Function
    title: str = ""
    unit: str = ""
    higher_is_better: bool | None = True
    needs: Callable[[], str] = nothing
    of_each: bool = False


@dataclass(frozen=True)
class Score:
    """A metric's value, that of the reference if it has one, or why there is none."""

    metric: Metric
    value: float | None
    of_reference: float | None = None
    why_not: str = ""


def _needs_opencv() -> str:
    if find_spec("cv2") is None:
        return f"optical flow needs OpenCV: {how_to_install('opencv-python-headless')}"
    return ""


def _without_weights(a: np.ndarray, b: np.ndarray) -> float:
    raise CannotMeasure(why_not_lpips())


def _second(function: Callable[[np.ndarray], float]) -> Function:
    return lambda reference, frames: function(frames)


_KNOWN = {
    metric.name: metric
    for metric in (
        Metric("psnr", psnr, "PSNR", "dB"),
        Metric("ssim", ssim, "SSIM"),
        Metric("ms_ssim", ms_ssim, "MS-SSIM"),
        Metric("lpips", _without_weights, "LPIPS (AlexNet)", "", False, why_not_lpips),
        Metric("vmaf", vmaf, "VMAF", "of 100", True, why_not_vmaf),
        Metric("jod", jod, "ColorVideoVDP", "JOD of 10", True, why_not_jod),
        Metric("warping_error", warping_error, "warping error", "", False, _needs_opencv, True),
        Metric(
            "temporal_flickering", _second(temporal_flickering), "temporal flickering",
            of_each=True,
        ),
        Metric(
            "motion_smoothness_by_flow", _second(motion_smoothness_by_flow),
            "motion smoothness by flow", needs=_needs_opencv, of_each=True,
        ),
        Metric(
            "dynamic_degree_by_flow", _second(dynamic_degree_by_flow), "dynamic degree by flow",
            higher_is_better=None, needs=_needs_opencv, of_each=True,
        ),
    )
}  # fmt: skip


def register(metric: Metric) -> None:
    """Make a metric known by its name, in place of one that has it.

    Raises ValueError for what is no ``Metric``.
    """
    if not isinstance(metric, Metric):
        raise ValueError(f"register takes a Metric, got {metric!r}")
    _KNOWN[metric.name] = metric


def known_metrics() -> dict[str, Metric]:
    """Return all metrics by name."""
    return dict(_KNOWN)


def lpips(backbone: str | Path, linear: str | Path | None = None) -> Metric:
    """Return the metric LPIPS with given weights, for ``measure`` or ``register``.

    Args:
        backbone: torchvision's weights of AlexNet, ``alexnet-owt-7be5be79.pth``.
        linear: LPIPS's own ``alex.pth``; by default that of an installed ``torchmetrics``.

    Raises:
        ValueError: A file is missing or holds something else.
    """
    return Metric("lpips", Lpips(backbone, linear), "LPIPS (AlexNet)", "", False)


def measure(
    a: np.ndarray, b: np.ndarray, metrics: Iterable[str | Metric] = ("psnr", "ssim")
) -> dict[str, float]:
    """Return the metrics of video ``b`` beside its reference ``a``, by name.

    Args:
        a: The reference, uint8 [F, H, W, 3].
        b: Another video of the same shape.
        metrics: Names (``known_metrics()``), or ``Metric`` records.

    Raises:
        ValueError: Another dtype, different shapes, an unknown name, or a metric that cannot be
            measured; the message says what is missing.
    """
    found = scores(a, b, metrics)
    for score in found:
        if score.value is None:
            raise CannotMeasure(f"{score.metric.name}: {score.why_not}")
    return {score.metric.name: score.value for score in found if score.value is not None}


def scores(
    a: np.ndarray, b: np.ndarray, metrics: Iterable[str | Metric] | None = None
) -> list[Score]:
    """Return what can be measured of video ``b`` beside its reference ``a``, and why others cannot.

    Args:
        a: The reference, uint8 [F, H, W, 3].
        b: Another video of the same shape.
        metrics: Names, or ``Metric`` records; all that are known by default.

    Raises:
        ValueError: Another dtype, different shapes, or an unknown name.
    """
    check_pair(a, b)
    return [_score(a, b, metric) for metric in chosen(metrics)]


def chosen(metrics: Iterable[str | Metric] | None) -> list[Metric]:
    """Return the metrics of names or records; all that are known for None.

    Raises ValueError for an unknown name.
    """
    if metrics is None:
        return list(_KNOWN.values())
    names = [metrics] if isinstance(metrics, (str, Metric)) else list(metrics)
    for name in names:
        if not isinstance(name, Metric):
            one_of("metric", name, list(_KNOWN))
    return [name if isinstance(name, Metric) else _KNOWN[name] for name in names]


def _score(a: np.ndarray, b: np.ndarray, metric: Metric) -> Score:
    if reason := metric.needs():
        return Score(metric, None, why_not=reason)
    try:
        value = float(metric.function(a, b))
        own = float(metric.function(a, a)) if metric.of_each else None
    except CannotMeasure as error:
        return Score(metric, None, why_not=str(error))
    return Score(metric, value, own)
