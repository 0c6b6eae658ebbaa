"""How far an accelerated video is from its reference: ``accel.quality``.

    from accel import quality
    quality.measure(reference, frames)                       # {"psnr": 41.2, "ssim": 0.991}
    quality.measure(reference, frames, ["vmaf", "warping_error"])
    quality.scores(reference, frames)                        # all, and why others cannot

Videos are uint8 [F, H, W, 3]. Each metric is a function here too; ``known_metrics()`` lists them,
and ``register(Metric(...))`` adds one. ``docs/quality.md`` says what each is and what it needs.
"""

from __future__ import annotations

from accel.core.quality.color_video_vdp import jod as jod
from accel.core.quality.metric_registry import Metric as Metric
from accel.core.quality.metric_registry import Score as Score
from accel.core.quality.metric_registry import known_metrics as known_metrics
from accel.core.quality.metric_registry import lpips as lpips
from accel.core.quality.metric_registry import measure as measure
from accel.core.quality.metric_registry import register as register
from accel.core.quality.metric_registry import scores as scores
from accel.core.quality.pixel_metrics import CannotMeasure as CannotMeasure
from accel.core.quality.pixel_metrics import ms_ssim as ms_ssim
from accel.core.quality.pixel_metrics import psnr as psnr
from accel.core.quality.pixel_metrics import psnr_by_frame as psnr_by_frame
from accel.core.quality.pixel_metrics import ssim as ssim
from accel.core.quality.pixel_metrics import ssim_by_frame as ssim_by_frame
from accel.core.quality.temporal_metrics import (
    dynamic_degree_by_flow as dynamic_degree_by_flow,
)
from accel.core.quality.temporal_metrics import (
    motion_smoothness_by_flow as motion_smoothness_by_flow,
)
from accel.core.quality.temporal_metrics import temporal_flickering as temporal_flickering
from accel.core.quality.temporal_metrics import warping_error as warping_error
from accel.core.quality.vmaf_ffmpeg import vmaf as vmaf
