"""Calibration tables out of numbers, for what follows from a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from accel.calibration.table import ErrorTable

COST = {"full": 1.0, "int8": 0.43, "int6": 0.36, "int4": 0.36}
LAYERS = ("blocks.0.ff.net.0.proj", "blocks.0.ff.net.2")


def made(sites: int = 3, steps: int = 6, seed: int = 0) -> ErrorTable:
    """A table in which later steps and sites harm less, int4 ten times int8."""
    rng = np.random.default_rng(seed)
    shape = (sites, steps, 2)
    base = rng.uniform(0.5, 1.5, shape)
    scale = {"int8": 1e-4, "int6": 4e-4, "int4": 1e-3}
    errors = {
        p: np.stack(
            [np.sqrt(e * base), 1 - e * base, 1 - np.sqrt(e * base), e * base, base * e * 3]
        )
        for p, e in scale.items()
    }
    return ErrorTable(
        tuple(f"blocks.{i}.attn1" for i in range(sites)), np.linspace(1, 0.1, steps),
        np.full(sites, 1e6), np.ones(shape), errors,
        {p: np.full(sites, cost) for p, cost in COST.items()}, frozenset(),
        np.linspace(1, 0.1, sites)[:, None] * np.ones(steps), np.linspace(3, 0.1, steps),
    )  # fmt: skip


def with_layers(sites: int = 3, steps: int = 6, *, layer_cost: float = 0.5) -> ErrorTable:
    """The same beside two linear layers, which have INT8 only."""
    table = made(sites + len(LAYERS), steps)
    costs = {p: cost.copy() for p, cost in table.costs.items()}
    costs["int8"][sites:] = layer_cost
    costs["int6"][sites:] = costs["int4"][sites:] = np.inf
    names = (*table.sites[:sites], *LAYERS)
    return replace(table, sites=names, costs=costs, linear=frozenset(LAYERS))
