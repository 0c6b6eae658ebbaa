"""A run that is led by a crude animation of the job's picture (``motion/clocks.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool3d

from accel import families
from accel.core.diffusers_bridge import execution_device
from accel.core.held_steps import held_steps
from accel.families.family import Geometry
from accel.pipelines.inputs import media
from accel.pipelines.inputs.media import Used
from accel.pipelines.inputs.resizing import fitted
from accel.pipelines.inputs.taken import takes
from accel.pipelines.job import Job
from accel.pipelines.motion.clocks import DualClock
from accel.pipelines.motion.crude import Crude, animate
from accel.pipelines.motion.encode import encode_frames
from accel.pipelines.motion.latents import arrange, fresh_noise


def animation_of(job: Job) -> tuple[Crude, Used]:
    """Return the crude animation of a resolved job's picture, and what became of the picture.

    Raises ValueError for a picture or a motion that cannot be used.
    """
    assert job.image is not None and job.movement is not None
    assert job.frames and job.height and job.width
    target = (job.width, job.height)
    picture = fitted(media.read_picture("image", job.image), target, job.fit)
    size = media.picture_size("image", job.image)
    crude = animate(np.asarray(picture), job.movement, job.frames)
    return crude, media.used("image", job.image, size, target, job.fit)


def controls(pipe: Any, crude: Crude) -> dict[str, Any]:
    """Return the arguments of a call that follows a video: the animation, and what is free in it.

    A mask is white where the model paints. The first frame is all the picture's.
    """
    taken = takes(pipe.__class__)
    free = ~crude.led
    free[0] = False
    given = {
        "control": [Image.fromarray(frame) for frame in crude.frames],
        "mask": [Image.fromarray(where.astype(np.uint8) * 255) for where in free],
    }
    given["video"] = given["control"]
    return {taken.binds[key]: given[key] for key in taken.control_keys()}


def dual_clock(
    pipe: Any, job: Job, crude: Crude, geometry: Geometry, warped: Tensor | None
) -> DualClock:
    """Return what leads a run of ``job``.

    ``warped``: the run's first noise, which the animation is noised with too; None draws fresh.
    """
    z = encode_frames(pipe.vae, crude.frames, execution_device(pipe))
    fresh = arrange(fresh_noise(z.shape, job.seed), geometry.layout)
    led = _led_cells(torch.from_numpy(crude.led[:: geometry.temporal]), geometry.spatial)
    free = torch.zeros_like(led)
    known = families.pipelines()
    names = [cls.__name__ for cls in type(pipe).__mro__ if cls.__name__ in known]
    free[:, :, 0] = bool(names) and known[names[0]].clean_first
    clocks, follow = geometry.clocks, job.following
    return DualClock(
        animation=arrange(z, geometry.layout),
        noise=fresh if warped is None else warped,
        led=arrange(led, geometry.layout),
        free=arrange(free, geometry.layout),
        loose=clocks[0] if follow.loose is None else follow.loose,
        tight=clocks[1] if follow.tight is None else follow.tight,
    )  # fmt: skip


def _led_cells(led: Tensor, spatial: int) -> Tensor:
    """Return boolean [1, 1, F', H', W']: latent pixels that ``led`` [F', H, W] covers by half.

    Where something is smaller than that, those that it covers most.
    """
    cover = avg_pool3d(led.float()[None, None], (1, spatial, spatial))
    most = cover.amax((-1, -2), keepdim=True)
    return (cover >= most.clamp(max=0.5)) & (cover > 0)


@contextmanager
def computing_led_steps(clock: DualClock | None) -> Iterator[None]:
    """Have every step computed whose latents are replaced, and those of the next prediction."""
    if clock is None:
        yield
        return
    with held_steps(lambda steps: clock.until(steps) + 2):
        yield
