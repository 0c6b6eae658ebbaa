"""A job's motion, made ready; what is wrong with it or its files is found without a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from accel.families.family import Geometry
from accel.kernels.warp import check_flow
from accel.pipelines.job import Job
from accel.pipelines.motion.flows import make_flow
from accel.pipelines.motion.latents import arrange, warped_latents
from accel.pipelines.motion.strength import make_strength


@dataclass(frozen=True)
class Prepared:
    """What a job's ``motion`` comes to before any noise is warped: flows, strength, latent grid."""

    flow: Tensor
    backward: Tensor | None
    strength: float | Tensor
    geometry: Geometry

    def latents(self, seed: int) -> Tensor:
        """Return warped initial latents, laid out as the pipeline takes them."""
        latents = warped_latents(
            self.flow, self.geometry, seed=seed, strength=self.strength, backward=self.backward
        )
        return arrange(latents, self.geometry.layout)


def check_motion_size(job: Job, geometry: Geometry) -> None:
    """Raise ValueError if a motion needs another size than the job has."""
    if job.frames is None or job.height is None or job.width is None:
        raise ValueError("motion needs frames, height and width in the job")
    if job.frames == 1:
        raise ValueError("motion needs 2 frames or more, got frames 1")
    geometry.latent_frames(job.frames)


def prepare(job: Job, geometry: Geometry) -> Prepared:
    """Return the motion of a job that has one, which is long work for a driving video.

    Raises ValueError if it cannot be had, naming the file or the value.
    """
    check_motion_size(job, geometry)
    assert job.movement is not None and job.frames and job.height and job.width
    size = {"frames": job.frames, "height": job.height, "width": job.width}
    strength = make_strength(job.gamma, **size)
    flow, backward = make_flow(job.movement, **size)
    check_flow("flow", flow)
    return Prepared(flow, backward, strength, geometry)
