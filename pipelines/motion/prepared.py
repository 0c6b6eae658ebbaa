"""A job's motion, made ready; what is wrong with it or its files is found without a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from accel.families.family import Geometry
from accel.pipelines.job import Job
from accel.pipelines.motion.flows import Motion, open_motion
from accel.pipelines.motion.grid import Moving
from accel.pipelines.motion.latents import arrange, degraded, followed
from accel.pipelines.motion.noise_options import read_noise
from accel.pipelines.motion.strength import make_strength


@dataclass(frozen=True)
class Prepared:
    """What a job's ``motion`` comes to before any noise is warped: source, strength, latent grid.

    ``source``: where the flow comes from, or noise [F', C, H', W'] that was made elsewhere.
    ``size``: frames, height and width. ``motion``: the job's.
    """

    source: Moving | Tensor
    strength: float | Tensor
    geometry: Geometry
    size: tuple[int, int, int]
    motion: Motion

    def latents(self, seed: int) -> Tensor:
        """Return warped initial latents, laid out as the pipeline takes them."""
        geometry, version = self.geometry, self.motion.version
        if isinstance(self.source, Tensor):
            latents = degraded(
                self.source, geometry, seed=seed, strength=self.strength, version=version
            )
        else:
            latents = followed(
                self.source, geometry, self.size, seed=seed, strength=self.strength,
                options=self.motion.noise, version=version,
            )  # fmt: skip
        return arrange(latents, geometry.layout)


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
    motion, shape = job.movement, (job.frames, job.height, job.width)
    source: Moving | Tensor
    if motion.noise.file is not None:
        source = read_noise(motion.noise, geometry, shape)
    else:
        source = open_motion(motion, **size)
    return Prepared(source, strength, geometry, shape, motion)
