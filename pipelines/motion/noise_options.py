"""How warped noise is made, for checkpoints that were trained on noise of another kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.core.validate import from_dict, one_of, text, whole
from accel.families.family import Geometry
from accel.kernels.warp import Mode
from accel.pipelines.motion.array_formats import open_array

TEMPORAL = ("nearest", "blend-norm")
ROUNDING = ("dither", "round")
UNUSUAL = 0.2  # distance of a noise file's deviation from 1


@dataclass(frozen=True)
class NoiseOptions:
    """The noise of a motion.

    ``temporal``: how latent frames come from frames: "nearest" keeps one of each group,
    "blend-norm" takes the mean of each group and divides it by its deviation. ``rounding``: of the
    flow to whole samples, "dither" or the released code's "round". ``supersample``: samples a pixel
    and side, None for the family's. ``file``: noise that was made elsewhere, an array [frames, H',
    W', C] or [F', H', W', C] on the latent grid, instead of any other motion.
    """

    temporal: str = "nearest"
    rounding: str = "dither"
    supersample: int | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        one_of("motion noise temporal", self.temporal, TEMPORAL)
        one_of("motion noise rounding", self.rounding, ROUNDING)
        if self.supersample is not None:
            whole("motion noise supersample", self.supersample, 1, 16)
        if self.file is not None:
            text("motion noise file", self.file)

    @classmethod
    def parse(cls, data: Any) -> NoiseOptions:
        """Return the ``noise`` of a job's motion: a mapping, or the path of a file.

        Raises:
            ValueError: Anything else, or a bad value in it.
        """
        if isinstance(data, (cls, Mapping)):
            return from_dict(cls, data, "motion noise")
        return cls(file=data)

    @property
    def mode(self) -> Mode:
        """``rounding``, as the warp takes it."""
        return "round" if self.rounding == "round" else "dither"

    def groups(self, frames: int, geometry: Geometry) -> Iterator[range]:
        """Yield the frames that each latent frame is made of."""
        count = geometry.latent_frames(frames)
        for i in range(count):
            if self.temporal == "nearest":
                yield range(i * geometry.temporal, i * geometry.temporal + 1)
            else:
                yield range(i * frames // count, (i + 1) * frames // count)

    def joined(self, pooled: list[Tensor]) -> Tensor:
        """Return the latent frame [C, H', W'] of a group's noise."""
        if self.temporal == "nearest":
            return pooled[0]
        mean = torch.stack(pooled).mean(0)
        return mean / mean.std((-1, -2), keepdim=True)


def read_noise(options: NoiseOptions, geometry: Geometry, size: tuple[int, int, int]) -> Tensor:
    """Return the noise [F', C, H', W'] of ``options.file`` for a clip of frames, height and width.

    Raises ValueError for an array of another shape, or one that is no noise.
    """
    assert options.file is not None
    frames, height, width = size
    grid = (height // geometry.spatial, width // geometry.spatial, geometry.channels)
    count = geometry.latent_frames(frames)
    file = open_array("noise file", options.file)
    if file.kind != "array" or file.shape not in ((frames, *grid), (count, *grid)):
        raise ValueError(
            f"noise file {options.file} has shape {file.shape}, the job needs {(frames, *grid)} = "
            f"[frames, H', W', C] or {(count, *grid)} on its latent grid"
        )
    noise = torch.from_numpy(file.numbers()).permute(0, 3, 1, 2)
    if abs(float(noise.std()) - 1) > UNUSUAL:
        raise ValueError(
            f"noise file {options.file} has a standard deviation of {float(noise.std()):.3g}; "
            "noise has 1"
        )
    if len(noise) == count:
        return noise.contiguous()
    return torch.stack(
        [options.joined([noise[k] for k in group]) for group in options.groups(frames, geometry)]
    )
