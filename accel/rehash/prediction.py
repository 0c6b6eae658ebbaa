"""What a skipped output is predicted by, as pure functions over timesteps and numbers.

Every candidate is a weighted sum of kept outputs whose weights sum to 1, so an output that does not
change is predicted without error:

* ``repeat``: the last output.
* ``line``: the line in the timestep through the last two.
* ``damped``: that line with ``DAMPING`` of its slope. Outputs bend, and a prediction is used over
  the whole gap, so a slope that is too steep costs more than one that is too flat.
* ``ridge``: a polynomial of degree 2, fitted to all kept outputs by least squares, with a penalty
  on everything but its constant. Spectrum (arXiv 2603.01623) fits Chebyshev polynomials with such a
  penalty to a run's outputs; here it needs three kept outputs or more.

``Choice`` takes the damped line until the run itself shows that another candidate is far better: at
each computed step all of them predict, from what was known before, what was just computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from accel.rehash.schedule import weights

T = TypeVar("T")

DAMPING = 0.7  # of 0.5, 0.7 and 0.85 the best on tuning jobs (docs/rehash.md)
PENALTY = 1e-3  # of the ridge polynomial, in timesteps of a run from 1 to 0
DEFAULT = "damped"
FAR_BETTER = 0.4  # squared error of another candidate over the default's, below which it is taken


def ridge(
    times: Sequence[float],
    at: float,
    span: float = 1.0,
    penalty: float = PENALTY,
    degree: int = 2,
) -> list[float]:
    """Return the weights by which a ridge polynomial through values at ``times`` predicts ``at``.

    Args:
        times: Timesteps of the values, newest first; equal ones count as several values.
        at: Timestep of the prediction.
        span: Largest timestep of the run; the penalty does not depend on the unit of time.
        penalty: Weight of the squared coefficients above the constant.
        degree: Degree of the polynomial; with fewer values it is one less than their number.
    """
    places = (np.array(times, float) - at) / (span or 1.0)
    powers = np.vander(places, min(degree, len(set(times)) - 1) + 1, increasing=True)
    inner = powers.T @ powers
    inner[np.diag_indices(len(inner))] += [0.0, *[penalty] * (len(inner) - 1)]
    return [float(w) for w in np.linalg.solve(inner, powers.T)[0]]


def candidates(times: Sequence[float], at: float, span: float) -> dict[str, list[float]]:
    """Return the weights of each candidate that values at ``times`` allow, by name."""
    found = {
        "repeat": [1.0],
        DEFAULT: weights(times[:2], at, DAMPING),
        "line": weights(times[:2], at),
    }
    if len(set(times)) > 2:
        found["ridge"] = ridge(times, at, span)
    return found


class Choice:
    """Chooses a candidate by its errors so far.

    ``errors`` holds the mean of each candidate's squared relative errors, of which each new one
    makes up half.
    """

    def __init__(self, errors: Mapping[str, float] | None = None) -> None:
        self.errors = dict(errors or {})

    def observe(self, errors: Mapping[str, float]) -> None:
        """Learn the relative error of each candidate at a computed step."""
        for name, error in errors.items():
            square = error * error
            if math.isfinite(square):
                self.errors[name] = (self.errors.get(name, square) + square) / 2

    @property
    def name(self) -> str:
        """The candidate that the next outputs are predicted by."""
        if DEFAULT not in self.errors:
            return DEFAULT
        best = min(self.errors, key=lambda name: self.errors[name])
        return best if self.errors[best] < FAR_BETTER * self.errors[DEFAULT] else DEFAULT

    def weights(self, times: Sequence[float], at: float, span: float) -> list[float]:
        """Return the weights of the chosen candidate, or of the default if it needs more values."""
        return self.among(candidates(times, at, span))

    def among(self, found: Mapping[str, T]) -> T:
        """Return what belongs to the chosen candidate, or to the default if that is not there."""
        return found.get(self.name, found[DEFAULT])
