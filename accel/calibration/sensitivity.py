"""How errors at sites change the video, fitted to runs of plans that mix precisions.

Model. A plan causes squared errors x_sk of the denoiser's output by site s at step k. They add up
as variances do, each with a weight for its site and one for its time. Run r of job j reaches

    dB_r = level + job_j - 10 log10 sum_sk exp(u_s + v_k) x_sk + noise

Method. ``probes`` draws the plans, ``fit`` finds the most probable u and v (Gauss-Newton) for
normal noise and priors: u and job are around 0; v is linear between a few knots, with rises around
0. How wide u's prior is, the runs decide: the width that predicts left-out runs best is taken,
since attention's sites differ little and linear layers near the output a lot. Plans that do much
less harm than the probes are predicted up to 7 dB too low on the embedded model, not too high.

Why not run one site, or one part of the run, in low precision at a time: such a run gives one noisy
number (jobs differ by 3 to 5 dB in what a plan does to them) for one weight, at an error unlike a
plan's. With mixed plans every run informs every weight. More jobs help more than more runs of one
job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KNOTS = 3  # knots of the weight over the run
PHASES = 3  # phases of a probing plan
NOISE, JOB = 4.0, 4.0  # standard deviations in dB
SITES, RISE = (0.5, 1.0, 2.0, 4.0), 2.0  # standard deviations of u, and of v's rise between knots
SLOPE = 10 / np.log(10)  # dB per unit of a natural logarithm


@dataclass(frozen=True)
class Sensitivity:
    """How strongly errors of the denoiser's output change the video.

    The product of ``site`` [S] and ``step`` [N] is the mean squared error of the video (levels 0 to
    1) per unit of squared error; ``step`` has mean 1. ``spread`` is the typical error in dB (root
    mean square) of a prediction for a run that was not fitted, of a job that was.
    """

    site: np.ndarray
    step: np.ndarray
    spread: float


def probes(own: Sequence[Sequence[str]], steps: int, count: int) -> list[np.ndarray]:
    """Return ``count`` random choices [S, N] for sites with precisions of their ``own`` [S].

    They are the same ones every time. Each has up to three phases with a mix of their own
    (Dirichlet 1/2, so that some are nearly of one precision), and each site draws its precision
    from that mix. Where it does not have what it drew, it takes its own least exact one.
    """
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(name for mine in own for name in mine))
    found: list[np.ndarray] = []
    while len(found) < count:
        cuts = rng.choice(np.arange(1, steps), min(PHASES, steps) - 1, replace=False)
        lengths = np.diff([0, *sorted(cuts), steps])
        mixes = rng.dirichlet(np.full(len(names), 0.5), len(lengths))
        columns = [rng.choice(np.array(names, object), len(own), p=mix) for mix in mixes]
        for column in columns:
            column[:] = [p if p in mine else mine[-1] for p, mine in zip(column, own, strict=True)]
        choice = np.repeat(np.stack(columns, 1), lengths, 1)
        if len(own) * steps == 1 or (choice != choice[0, 0]).any():
            found.append(choice)
    return found


def fit(errors: np.ndarray, decibels: Sequence[float], jobs: Sequence[int]) -> Sensitivity:
    """Fit the weights of sites and steps to R runs.

    Runs without any error are left out.

    Args:
        errors: Squared errors [R, S, N] of each run's plan.
        decibels: PSNR [R] of the runs.
        jobs: Job numbers [R] of the runs.

    Raises:
        ValueError: No run has an error.
    """
    some = errors.any((1, 2))
    if not some.any():
        raise ValueError("no run with an error to fit a sensitivity to")
    problem = _Problem(errors[some], np.asarray(decibels, float)[some], np.asarray(jobs)[some])
    parameters, spread = min((problem.solve(width) for width in SITES), key=lambda found: found[1])
    site, step, level = problem.weights(parameters)
    mean = step.mean()
    return Sensitivity(site * level * mean, step / mean, spread)


class _Problem:
    """Residuals, Jacobian and penalties.

    The parameters are u [S], the knots of v [K], the level, and the jobs [J].
    """

    def __init__(self, errors: np.ndarray, decibels: np.ndarray, jobs: np.ndarray) -> None:
        self.decibels, self.unit = decibels, errors.mean()
        self.errors = errors / self.unit
        self.sites, steps = errors.shape[1:]
        knots, places = (np.linspace(0, 1, n) for n in (min(KNOTS, steps), steps))
        self.hats = np.stack([np.interp(places, knots, unit) for unit in np.eye(len(knots))], 1)
        self.ends = self.sites, self.sites + len(knots)
        of_job = jobs[:, None] == np.unique(jobs)
        self.levels = np.concatenate([np.ones((len(jobs), 1)), of_job], 1)

    def weights(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the weights of sites [S] and steps [N], and the squared error they multiply."""
        u, v, level = np.split(parameters, self.ends)
        return np.exp(u), np.exp(self.hats @ v), float(10 ** (-level[0] / 10) / self.unit)

    def linear(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return residuals [R] in dB and the Jacobian [R, parameters] of the predictions."""
        site, step, _ = self.weights(parameters)
        parts = site[:, None] * step * self.errors
        total = parts.sum((1, 2))
        guess = self.levels @ parameters[self.ends[1] :] - SLOPE * np.log(total)
        by_weight = np.concatenate([parts.sum(2), parts.sum(1) @ self.hats], 1)
        slopes = np.concatenate([-SLOPE * by_weight / total[:, None], self.levels], 1)
        return self.decibels - guess, slopes

    def prior(self, width: float) -> np.ndarray:
        """Return the matrix [parameters, parameters] of the priors' quadratic form.

        The form is added to the squares of the residuals.
        """
        (sites, end), knots = self.ends, self.hats.shape[1]
        rise = np.diff(np.eye(knots), axis=0)
        form = np.zeros((end + self.levels.shape[1],) * 2)
        form[:sites, :sites] = np.eye(sites) / width**2
        form[sites:end, sites:end] = rise.T @ rise / RISE**2 + 1.0  # v has mean 0
        form[end + 1 :, end + 1 :] = np.eye(self.levels.shape[1] - 1) / JOB**2
        return form * NOISE**2

    def solve(self, width: float) -> tuple[np.ndarray, float]:
        """Return the parameters for a prior of u, and how far off left-out runs are, in dB.

        That root mean square of leave-one-out residuals follows from the hat matrix of the
        linearized problem.
        """
        form = self.prior(width)
        parameters = np.zeros(len(form))
        for _ in range(50):
            residual, slopes = self.linear(parameters)
            normal = slopes.T @ slopes + form
            change = np.linalg.solve(normal, slopes.T @ residual - form @ parameters)
            most = float(np.abs(change[: self.ends[1]]).max())
            parameters = parameters + change / max(1.0, most)
            if most < 1e-9:
                break
        residual, slopes = self.linear(parameters)
        normal = slopes.T @ slopes + form
        leverage = np.einsum("rp,pr->r", slopes, np.linalg.solve(normal, slopes.T))
        return parameters, float(np.sqrt(np.mean((residual / (1 - leverage)) ** 2)))
