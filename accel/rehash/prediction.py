"""What a skipped output is predicted by, as pure functions over places in a run.

A place is 1 at the start of a run and 0 at its end. It is linear in the log signal-to-noise ratio,
in which outputs bend less than in the timestep (docs/rehash.md). Every candidate is a weighted sum
of kept outputs whose weights sum to 1, so an output that does not change is predicted without
error:

* ``repeat``: the last output.
* ``line``: the line through the last two.
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
PENALTY = 1e-3  # of the ridge polynomial
DEFAULT = "damped"
EXACT = 1e-6  # relative error below which nothing is better
FAR_BETTER = 0.4  # squared error of another candidate over the default's, below which it is taken


def ridge(
    known: Sequence[float], at: float, penalty: float = PENALTY, degree: int = 2
) -> list[float]:
    """Return the weights by which a ridge polynomial through values at ``known`` predicts ``at``.

    Args:
        known: Places of the values, newest first; equal ones count as several values.
        at: Place of the prediction.
        penalty: Weight of the squared coefficients above the constant.
        degree: Degree of the polynomial; with fewer values it is one less than their number.
    """
    places = np.array(known, float) - at
    powers = np.vander(places, min(degree, len(set(known)) - 1) + 1, increasing=True)
    inner = powers.T @ powers
    inner[np.diag_indices(len(inner))] += [0.0, *[penalty] * (len(inner) - 1)]
    return [float(w) for w in np.linalg.solve(inner, powers.T)[0]]


def candidates(known: Sequence[float], at: float) -> dict[str, list[float]]:
    """Return the weights of each candidate that values at places ``known`` allow, by name."""
    found = {
        "repeat": [1.0],
        DEFAULT: weights(known[:2], at, DAMPING),
        "line": weights(known[:2], at),
    }
    if len(set(known)) > 2:
        found["ridge"] = ridge(known, at)
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
            square = max(error, EXACT) ** 2
            if math.isfinite(square):
                self.errors[name] = (self.errors.get(name, square) + square) / 2

    @property
    def name(self) -> str:
        """The candidate that the next outputs are predicted by."""
        if DEFAULT not in self.errors:
            return DEFAULT
        best = min(self.errors, key=lambda name: self.errors[name])
        return best if self.errors[best] < FAR_BETTER * self.errors[DEFAULT] else DEFAULT

    def weights(self, known: Sequence[float], at: float) -> list[float]:
        """Return the weights of the chosen candidate, or of the default if it needs more values."""
        return self.among(candidates(known, at))

    def among(self, found: Mapping[str, T]) -> T:
        """Return what belongs to the chosen candidate, or to the default if that is not there."""
        return found.get(self.name, found[DEFAULT])
