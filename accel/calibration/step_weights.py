"""Linear multistep weights: what the sampler gets at each step, as pure functions over numbers.

A run with key steps is a solver on a coarser grid, and its coefficients can be fitted. Shaul et al.
2024 ("Bespoke Non-Stationary Solvers", arXiv 2403.01329) do so by gradient; here it is linear
algebra over numbers from one run without rehash. At a skipped step the sampler gets
``sum_k a_k y_k`` of the last ``depth`` computed outputs. At a key step it gets its own output and a
correction, ``(1 + a_0) y_j + sum_k a_k y_k``: the new output shows how the skipped steps before it
should have been predicted. The corrector of a predictor-corrector method does the same, at no cost.

The latents follow from the outputs by the sampler's own arithmetic, x_d = p_d x_0 +
sum_j L[d, j] y_j, where L is the answer to unit impulses (``accel/calibration/plain_runs.py``). So
with inner products G of a run's outputs, the distance to that run's latents is a quadratic form of
the weights. For each stretch from key step c to the next one d they are the least squares of

    |error of x_d|^2 + DAMPING sum_j L[d, j]^2 |error of output j|^2

Errors count from the start of the run, so later stretches correct what earlier ones left. Left out
is how the model responds to latents with an error: an error at timestep t is assumed to grow by
``1 + rise (t / first) ** power`` until the end. ``accel/calibration/steps.py`` fits those two
numbers to real runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

DAMPING = 1.0  # weight of errors of outputs; without it corrections grow and disturb the model
RIDGE = 1e-6  # part of the mean diagonal, for outputs that are multiples of each other


@dataclass(frozen=True)
class Sampler:
    """A run without rehash in numbers.

    ``gram`` [N, N]: inner products of its outputs divided by the final latent's own. ``response``
    [N + 1, N]: latents before each step and at the end, per output. ``times`` [N]: timesteps.
    ``groups`` [N]: steps with equal numbers are run by one denoiser.
    """

    gram: np.ndarray
    response: np.ndarray
    times: np.ndarray
    groups: tuple[int, ...]

    def growth(self, rise: float, power: float) -> np.ndarray:
        """Return the factor [N + 1] by which an error at a step grows until the final latent.

        It is 1 at the end.
        """
        part = np.abs(self.times) / max(float(np.abs(self.times).max()), 1e-12)
        return np.append(1 + rise * part**power, 1.0)


@dataclass(frozen=True)
class Fit:
    """Weights fitted to a schedule, and the errors that remain.

    ``weights`` [N]: per step, the weight of its own output if it is a key step, then those of the
    stored ones, newest first. ``final``: relative squared error of the final latent. ``apart``: the
    sum of the squared errors of the single stretches. Both count the model's growth of errors.
    """

    weights: tuple[tuple[float, ...], ...]
    final: float
    apart: float


def banks(keys: Iterable[int], groups: Sequence[int], depth: int) -> list[list[int]]:
    """Return for each step [N] the key steps whose outputs are available, newest first.

    These are ``depth`` stored ones of its denoiser and, before them, its own if it is a key step.
    """
    found: list[list[int]] = []
    known: list[int] = []
    keys = set(keys)
    for j, group in enumerate(groups):
        if known and groups[known[0]] != group:
            known = []
        if j in keys:
            known = [j, *known]
        found.append(known[: depth + (j in keys)])
        known = known[:depth]
    return found


def fit(sampler: Sampler, keys: Iterable[int], depth: int, growth: np.ndarray) -> Fit:
    """Return the weights for the key steps ``keys``, the first of which must be step 0."""
    steps = len(sampler.times)
    keys = sorted(set(keys))
    at_hand = banks(keys, sampler.groups, depth)
    off = -np.eye(steps)  # [N, N] each step's output minus the plain one, in plain outputs
    weights: list[tuple[float, ...]] = [(1.0,)] * steps
    final = apart = 0.0
    for c, d in zip(keys, [*keys[1:], steps], strict=True):
        answer = sampler.response[d] * growth[:steps] / growth[d]
        past = answer[:c] @ off[:c]
        found = _stretch(sampler.gram, answer, past, range(c, d), at_hand)
        for j, row in found.items():
            weights[j] = tuple(row.tolist())
            np.add.at(off[j], at_hand[j], row)
        own = answer[c:d] @ off[c:d]
        scale = growth[d] ** 2
        apart += scale * _square(own, sampler.gram)
        final = scale * _square(past + own, sampler.gram)
    return Fit(tuple(weights), final, apart)


def _stretch(
    gram: np.ndarray, answer: np.ndarray, past: np.ndarray, steps: range, at_hand: list[list[int]]
) -> dict[int, np.ndarray]:
    """Return the weights of the steps from one key to the next.

    ``answer`` [N]: response of the latent after them to each output. ``past`` [N]: the error that
    this latent already has, in outputs.
    """
    first = steps[0]
    places = [(j, k) for j in steps for k in at_hand[j]]
    if at_hand[first] == [first]:  # nothing stored: the output stays unchanged
        places = places[1:]
    found = {first: np.ones(1)} if at_hand[first] == [first] else {}
    if not places:
        return found
    at, of = np.array(places).T
    missing = [j for j in steps if j not in found]
    target = answer[missing] @ gram[missing] - past @ gram
    slopes = answer[at]
    inner = gram[np.ix_(of, of)]
    same = at[:, None] == at
    matrix = np.outer(slopes, slopes) * inner * (1 + DAMPING * same)
    right = slopes * (target[of] + DAMPING * answer[at] * gram[at, of])
    newest = np.array([k == at_hand[j][0] for j, k in places], float)  # by default, repeat
    right -= matrix @ newest
    matrix[np.diag_indices(len(matrix))] += RIDGE * np.trace(matrix) / len(matrix)
    solved = newest + np.linalg.solve(matrix, right)
    return {**found, **{j: solved[at == j] for j in missing}}


def _square(row: np.ndarray, gram: np.ndarray) -> float:
    return max(0.0, float(row @ gram @ row))


def best_keys(
    sampler: Sampler, must: frozenset[int], count: int, depth: int, growth: np.ndarray
) -> frozenset[int]:
    """Return ``count`` key steps, including those of ``must``.

    They start evenly spread and are improved by exchanges of single steps. Minimized is the final
    error plus the errors of the single stretches. The final error alone would rely on errors that
    cancel, which they do not on other jobs.
    """
    steps = len(sampler.times)

    def objective(keys: frozenset[int]) -> float:
        found = fit(sampler, keys, depth, growth)
        return found.final + found.apart

    open_steps = [j for j in range(steps) if j not in must]
    spread = np.linspace(0, len(open_steps) - 1, max(0, count - len(must)) + 2)[1:-1]
    keys = must | {open_steps[i] for i in np.unique(spread.round().astype(int))}
    best = objective(keys)
    while True:
        moves = ((keys - {a}) | {b} for a in keys - must for b in open_steps if b not in keys)
        scored = min(((objective(k), sorted(k)) for k in moves), default=(best, []))
        if scored[0] >= best * (1 - 1e-9):
            return keys
        best, keys = scored[0], frozenset(scored[1])
