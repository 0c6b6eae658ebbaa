"""The result of measuring step rehash, and the schedules it holds for a speed-up or a quality."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel.config import RehashConfig
from accel.core.atomic_write import write_atomic
from accel.core.key_steps import Multistep
from accel.core.plan_origin import PlanOrigin
from accel.core.validate import from_dict
from accel.rehash.schedule import budget

CERTAINTY = 1.6449  # normal quantile of 19 in 20
LOSSLESS = 100.0  # dB that stand for equal frames
ALONE = 10.0  # dB below the measurement where only one job was measured


@dataclass(frozen=True)
class Point:
    """A schedule and the PSNR in dB that it reached on each measured job.

    ``found`` names the method that proposed it. ``rule``: no schedule, but the rule without a
    measurement; ``keys`` are those of the job where it computed most.
    """

    keys: tuple[int, ...]
    psnr: tuple[float, ...]
    found: str
    multistep: Multistep | None = None
    rule: bool = False

    @property
    def expected(self) -> float:
        """PSNR in dB that 9 of 10 further jobs should reach.

        This is the mean of the measured jobs less a margin, and at most their worst. By Student's
        t, one further job of the same kind falls below the margin in 1 case of 20: ``t s sqrt(1 + 1
        / n)`` for n jobs with standard deviation s. The margin uses 1 in 20, not 1 in 10, because
        the schedule is the best of several on the same jobs. A single job says nothing about
        others, so its margin is 10 dB.
        """
        values, n = np.asarray(self.psnr), len(self.psnr)
        if n == 1:
            return float(values[0]) - ALONE
        off = student(n - 1) * float(values.std(ddof=1)) * math.sqrt(1 + 1 / n)
        return min(float(values.mean()) - off, float(values.min()))


def student(freedom: int) -> float:
    """Return the quantile ``CERTAINTY`` of Student's t for ``freedom`` degrees of freedom.

    It is exact for 1 and 2, else the expansion of Abramowitz and Stegun 26.7.5.
    """
    if freedom <= 2:
        return (6.314, 2.920)[freedom - 1]
    z, v = CERTAINTY, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


@dataclass(frozen=True)
class Measurement:
    """What ``accel.measure_steps`` found.

    ``times`` [steps] are timesteps. ``gram`` [steps][steps] holds inner products of the outputs
    divided by the final latent's own, as a mean over the jobs. ``points`` run from most to fewest
    keys. ``plain`` says why no weights were fitted, if none were. ``origin`` is that of plans made
    of it.
    """

    steps: int
    times: tuple[float, ...]
    gram: tuple[tuple[float, ...], ...]
    config: RehashConfig
    order: int
    points: tuple[Point, ...]
    plain: str = ""
    origin: PlanOrigin | None = None

    def similarity(self) -> np.ndarray:
        """Return the cosine similarity [steps, steps] of the outputs.

        It is the similarity map of Streamlined Inference (Zhan et al. 2024, section 3.3).
        """
        return cosine(np.asarray(self.gram))

    def at_speedup(self, speedup: float) -> RehashConfig:
        """Return the best measured schedule with at most steps / ``speedup`` computed steps.

        Raises ValueError if none is as fast.
        """
        most = budget(self.steps, speedup)
        fits = [p for p in self.points if len(p.keys) <= most]
        if not fits:
            raise ValueError(
                f"no schedule for {speedup:g}× was measured; the fastest is "
                f"{self.steps / len(self.points[-1].keys):.2f}×"
            )
        return self._with(max(fits, key=lambda p: p.expected))

    def at_quality(self, decibel: float) -> RehashConfig:
        """Return the fastest measured schedule that should keep ``decibel`` dB in 9 of 10 jobs.

        The dB are PSNR, and ``Point.expected`` states the rule. If no schedule should keep it,
        every step is computed. This is a promise for jobs with the measured number of steps and
        with similar prompts, size and guidance. A config of the rule does not carry it.
        """
        fits = [p for p in self.points if p.expected >= decibel]
        full = Point(tuple(range(self.steps)), (LOSSLESS,), "every step")
        fastest = min(fits, key=lambda p: len(p.keys), default=full)
        found = self._with(fastest)
        return found if fastest.rule else replace(found, quality=decibel)

    def _with(self, point: Point) -> RehashConfig:
        if point.rule:
            speedup = self.steps / len(point.keys)
            return replace(self.config, speedup=speedup, multistep=None, origin=None)
        return replace(
            self.config, keys=point.keys, steps=self.steps, speedup=self.steps / len(point.keys),
            multistep=point.multistep,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain JSON values."""
        data = asdict(replace(self, origin=None))
        return data | {"origin": None if self.origin is None else self.origin.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Return the measurement of ``to_dict``.

        Raises ValueError for anything else.
        """
        data = dict(data)
        data["config"] = from_dict(RehashConfig, data.get("config"), "rehash measurement config")
        points = [from_dict(Point, p, "rehash measurement point") for p in data.get("points", ())]
        data["points"] = tuple(
            replace(
                p, keys=tuple(p.keys), psnr=tuple(p.psnr),
                multistep=None if p.multistep is None
                else from_dict(Multistep, p.multistep, "rehash multistep"),
            )
            for p in points
        )  # fmt: skip
        if data.get("origin") is not None:
            data["origin"] = from_dict(PlanOrigin, data["origin"], "rehash measurement origin")
        data["times"] = tuple(data.get("times", ()))
        data["gram"] = tuple(map(tuple, data.get("gram", ())))
        found: Measurement = from_dict(cls, data, "rehash measurement")
        return found

    def save(self, path: str | Path) -> None:
        """Write the measurement to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Return the measurement that ``save`` wrote.

        Raises FileNotFoundError, or ValueError for a file that holds no measurement.
        """
        return cls.from_dict(json.loads(Path(path).read_text()))


def cosine(gram: np.ndarray) -> np.ndarray:
    """Return the cosine similarities [N, N] from inner products [N, N]."""
    norm = np.sqrt(np.diag(gram))
    return gram / np.outer(norm, norm)


def curve(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points from most to fewest keys, without any that is worse than a faster one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: len(p.keys)):
        if not kept or point.expected > kept[-1].expected:
            kept.append(point)
    return tuple(reversed(kept))
