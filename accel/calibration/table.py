"""What calibration found: errors and times of each precision by site and step, and what they do.

An ``ErrorTable`` holds averages only. So it is small, tables of several jobs and machines can be
merged, and it can be used for another number of steps: errors belong to noise levels (sigma), not
to step numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.atomic_write import write_atomic
from accel.core.plan_origin import PlanOrigin
from accel.core.validate import from_dict

VERSION = 3
METRICS = ("l1", "cosine", "score", "l2", "worst")


@dataclass(frozen=True)
class ErrorTable:
    """Errors against full precision on sampled rows, for S sites, N steps and B branches.

    Sites are attention modules and linear layers.

    Branches are the calls of a site in one step: 1 with batched guidance or none, 2 where the
    pipeline calls the denoiser once with the prompt and once without.

    Args:
        sites: Site names.
        sigmas: Noise levels [N], from most to least noise.
        work: Multiply-adds [S] of one call.
        counts: Measured calls [S, N, B].
        errors: For each precision ``METRICS`` x [S, N, B]: means of the relative L1 error, of the
            cosine, of the score cosine * (1 - L1) (adaptive rule of SageAttention2) and of the
            relative squared L2 error, and the worst L1.
        costs: For "full" and each precision the milliseconds [S] of one call, as measured on one
            machine; inf where a site does not have the precision.
        linear: The sites that are linear layers.
        site_weight: Weights [S, N]; None if no sensitivity was measured.
        step_weight: Weights [N]. Times ``site_weight`` they are the mean squared error of the video
            (levels 0 to 1) per unit of relative squared L2 error at a site and step.
        spread: Typical error in dB of a prediction for one job and a plan that was not measured.
        jobs: Number of measured jobs.
        origin: Model, sampler, machine and jobs that were measured; plans made of the table have
            it. A merged table has that of the first one.

    Example::

        table = accel.ErrorTable.load("cal/table.json")
        plan = accel.choose.to_plan(table, accel.choose.by_quality(table, 35.0))
    """

    sites: tuple[str, ...]
    sigmas: np.ndarray
    work: np.ndarray
    counts: np.ndarray
    errors: dict[str, np.ndarray]
    costs: dict[str, np.ndarray]
    linear: frozenset[str] = frozenset()
    site_weight: np.ndarray | None = None
    step_weight: np.ndarray | None = None
    spread: float | None = None
    jobs: int = 1
    origin: PlanOrigin | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that were measured."""
        return tuple(self.errors)

    def mean(self, metric: str, precision: str) -> np.ndarray:
        """Return a metric [S, N]: the worst branch for "worst", else the mean of all calls.

        It is NaN where a site does not have the precision. Raises ValueError for a metric or
        precision that was not measured.
        """
        if metric not in METRICS or precision not in self.errors:
            raise ValueError(
                f"no {metric!r} of {precision!r}; measured: {METRICS} of {self.precisions}"
            )
        values = self.errors[precision][METRICS.index(metric)]
        if metric == "worst":
            found = values.max(-1)
        else:
            found = (values * self.counts).sum(-1) / np.maximum(self.counts.sum(-1), 1)
        return np.where(self.has(precision)[:, None], found, np.nan)

    def has(self, precision: str) -> np.ndarray:
        """Return which sites have a precision, bool [S]."""
        return np.isfinite(self.costs[precision])

    @property
    def amount(self) -> np.ndarray:
        """Work [S, N] of the calls that were made.

        It is 0 where a site does not run at a step, as in one of two denoisers that share the
        steps.
        """
        calls = self.counts.sum(-1)
        return self.work[:, None] * calls / max(float(calls.max()), 1e-30)

    def time(self, precision: str) -> np.ndarray:
        """Return the milliseconds [S, N] that one job's calls take, inf for a precision amiss."""
        calls = self.counts.sum(-1) / self.jobs
        with np.errstate(invalid="ignore"):
            return np.where(calls > 0, self.costs[precision][:, None] * calls, 0.0)

    def damage(self, precision: str) -> np.ndarray:
        """Return the predicted mean squared error [S, N] of the video for one site and step alone.

        Only that site at that step then runs in ``precision``; "full" gives 0, and a precision that
        a site does not have inf. Raises ValueError if no sensitivity was measured.
        """
        if self.site_weight is None or self.step_weight is None:
            raise ValueError("no sensitivity measured; calibrate with probe_runs=24")
        if precision == "full":
            return np.zeros((len(self.sites), len(self.sigmas)))
        found = self.site_weight * self.step_weight * self.mean("l2", precision)
        return np.where(np.isnan(found), np.inf, found)

    def at(self, sigmas: Sequence[float] | np.ndarray) -> ErrorTable:
        """Return the table on another schedule, interpolated over sigma.

        Beyond the measured ends the end values hold. A step's weight shrinks as the number of steps
        grows, so the weight of the whole run stays the same.
        """
        new, old = np.asarray(sigmas, float), self.sigmas[::-1]
        if new.ndim != 1 or not len(new):
            raise ValueError(f"sigmas must be a list of noise levels, got shape {new.shape}")

        def carry(values: np.ndarray) -> np.ndarray:  # [..., N, B]; from measured steps only
            out = np.zeros((*values.shape[:-2], len(new), values.shape[-1]))
            for at in np.ndindex(*values.shape[:-2], values.shape[-1]):
                seen = self.counts[at[-2], ::-1, at[-1]] > 0
                if seen.any():
                    row = values[(*at[:-1], slice(None, None, -1), at[-1])]
                    out[(*at[:-1], slice(None), at[-1])] = np.interp(new, old[seen], row[seen])
            return out

        counts = np.stack(
            [[np.interp(new, old, b[::-1]) for b in site.T] for site in self.counts]
        ).swapaxes(1, 2)
        sites, weight = self.site_weight, self.step_weight
        if sites is not None and weight is not None:
            sites = np.stack([np.interp(new, old, site[::-1]) for site in sites])
            weight = np.interp(new, old, weight[::-1]) * len(old) / len(new)
        return replace(
            self, sigmas=new, counts=counts, site_weight=sites, step_weight=weight,
            errors={p: carry(v) for p, v in self.errors.items()},
        )  # fmt: skip

    def merge(self, other: ErrorTable) -> ErrorTable:
        """Return one table of both tables' jobs, on this one's schedule.

        Raises ValueError for other sites, precisions or branches: another model, or another kind of
        guidance.
        """
        for name in ("sites", "precisions", "linear"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"tables of different {name} cannot be merged: another model?")
        if self.counts.shape[-1] != other.counts.shape[-1]:
            raise ValueError(
                f"tables with {self.counts.shape[-1]} and {other.counts.shape[-1]} calls of a site "
                "in a step cannot be merged: another kind of guidance?"
            )
        if not np.array_equal(self.sigmas, other.sigmas):
            other = other.at(self.sigmas)
        counts = self.counts + other.counts
        errors = {}
        for p, first in self.errors.items():
            second = other.errors[p]
            mean = (first * self.counts + second * other.counts) / np.maximum(counts, 1)
            mean[METRICS.index("worst")] = np.maximum(first[-1], second[-1])
            errors[p] = mean
        jobs = self.jobs + other.jobs

        def weigh(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
            return a if b is None else b if a is None else (a * self.jobs + b * other.jobs) / jobs

        return replace(
            self, counts=counts, errors=errors, jobs=jobs,
            costs={p: (v * self.jobs + other.costs[p] * other.jobs) / jobs
                   for p, v in self.costs.items()},
            site_weight=weigh(self.site_weight, other.site_weight),
            step_weight=weigh(self.step_weight, other.step_weight),
            spread=max((s for s in (self.spread, other.spread) if s is not None), default=None),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        arrays = {
            name: None if (value := getattr(self, name)) is None else value.tolist()
            for name in ("sigmas", "work", "counts", "site_weight", "step_weight")
        }
        errors = {p: dict(zip(METRICS, v.tolist(), strict=True)) for p, v in self.errors.items()}
        costs = {
            p: [float(c) if np.isfinite(c) else None for c in v] for p, v in self.costs.items()
        }
        origin = {} if self.origin is None else {"origin": self.origin.to_dict()}
        return {
            "version": VERSION, "sites": list(self.sites), **arrays, "errors": errors,
            "costs": costs, "linear": sorted(self.linear), "spread": self.spread, "jobs": self.jobs,
            **origin,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> ErrorTable:
        """Return the table of ``to_dict``.

        Raises ValueError for anything else.
        """
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"not a calibration table of version {VERSION}: {str(data)[:60]!r}")
        try:
            arrays: dict[str, Any] = {
                name: None if data[name] is None else np.asarray(data[name], float)
                for name in ("sigmas", "work", "counts", "site_weight", "step_weight")
            }
            errors = {
                p: np.array([v[m] for m in METRICS], float) for p, v in data["errors"].items()
            }
            costs = {
                p: np.array([np.inf if c is None else c for c in v], float)
                for p, v in data["costs"].items()
            }
            return cls(
                sites=tuple(data["sites"]),
                errors=errors,
                costs=costs,
                linear=frozenset(data["linear"]),
                spread=data["spread"],
                jobs=data["jobs"],
                origin=None if data.get("origin") is None else _origin(data["origin"]),
                **arrays,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"calibration table lacks {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the table to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ErrorTable:
        """Return the table in a file.

        Raises FileNotFoundError, or ValueError for a file that holds no table.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a calibration table: {error}") from error


def _origin(data: Any) -> PlanOrigin:
    return from_dict(PlanOrigin, data, "calibration table origin")
