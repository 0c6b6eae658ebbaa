"""How fast would attention be on a card that is not here? A model, and how wrong it is.

Time of one floating-point operation of attention, with D the head size and 4 D of them per logit:

    t = overhead (1/2 / R_qk + 1/2 / R_pv + exposed (alu / 128 + mufu / 16) / (4 D SM clock))

R_qk and R_pv are the card's dense tensor-core rates for the formats of the two products; alu and
mufu count the other instructions per logit (128 lanes and 16 special-function units in each
multiprocessor); ``exposed`` is the share of those that the tensor cores do not hide. ``overhead``
and ``exposed`` are fitted to published speeds of hand-written kernels (SageAttention2, arXiv
2411.10958, and its repository's plots: head size 128, 32 K tokens, packing not counted). The error
that counts is the one on a card left out of the fit. What is predicted for our kernels is that
plus the packing at the card's memory bandwidth; it takes for granted that Triton schedules as well
as people do, so read it as an upper bound. ``MEASURED`` has the one card that we had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Data sheet: multiprocessors, boost clock in GHz, dense tensor-core rates in TFLOP/s, GB/s.

    ``fp16`` and ``fp8`` accumulate in fp32, ``half`` is FP16 accumulating in FP16.
    """

    cc: int
    sms: int
    clock: float
    fp16: float
    half: float
    int8: float
    fp8: float
    bandwidth: float


CARDS = {
    "A100": Card(80, 108, 1.41, 312, 312, 624, math.nan, 1555),
    "RTX 3090": Card(86, 82, 1.695, 71, 142, 284, math.nan, 936),
    "RTX 4090": Card(89, 128, 2.52, 165.2, 330.3, 660.6, 330.3, 1008),
    "L20": Card(89, 92, 2.52, 119.5, 119.5, 239, 239, 864),
    "H100": Card(90, 132, 1.83, 989, 989, 1979, 1979, 3350),
    "H20": Card(90, 78, 1.83, 148, 148, 296, 296, 4000),
    "RTX 5090": Card(120, 170, 2.407, 209.5, 419, 838, 419, 1792),
}

# kernel: (format of Q K, of P V, alu and mufu instructions per logit)
KERNELS = {
    "FA2": ("fp16", "fp16", 5.5, 1.0),
    "FA3": ("fp16", "fp16", 5.5, 1.0),
    "FA3 fp8": ("fp8", "fp8", 6.0, 1.0),
    "Sage1": ("int8", "half", 7.5, 1.0),
    "Sage2": ("int8", "fp8", 9.5, 1.0),
}
# TFLOP/s, (card, kernel): research table of published speeds, 32 K tokens, head size 128. FA2 and
# Sage1 do without Hopper's warp-group instructions, so they say nothing about cards of cc 90.
PUBLISHED = {
    ("RTX 4090", "FA2"): 164, ("RTX 4090", "Sage1"): 322, ("RTX 4090", "Sage2"): 431,
    ("RTX 5090", "FA2"): 214, ("RTX 5090", "Sage1"): 479, ("RTX 5090", "Sage2"): 554,
    ("L20", "FA2"): 111, ("L20", "Sage1"): 137, ("L20", "Sage2"): 217,
    ("A100", "FA2"): 204, ("A100", "Sage1"): 278,
    ("RTX 3090", "FA2"): 68, ("RTX 3090", "Sage1"): 134,
    ("H100", "FA3"): 470, ("H100", "FA3 fp8"): 892, ("H100", "Sage2"): 882,
    ("H20", "FA3 fp8"): 279, ("H20", "Sage2"): 279,
}  # fmt: skip

# Milliseconds of the kernels alone for bf16 (1, 12, 32760, 128), by torch's profiler (torch 2.11,
# Triton 3.6); "flash" is cuDNN's attention.
MEASURED = {"H100": {"kernel": 9.46, "packing": 0.28, "flash": 10.6}}


def picoseconds(
    card: Card, qk: str, pv: str, alu: float, mufu: float, dim: int, fit: tuple[float, float]
) -> float:
    """Time of one operation; ``fit`` is (overhead, exposed)."""
    overhead, exposed = fit
    tensor = 0.5 / getattr(card, qk) + 0.5 / getattr(card, pv)
    other = (alu / 128 + mufu / 16) / (4 * dim * card.sms * card.clock) * 1e3
    return overhead * (tensor + exposed * other)


def fit_to(published: dict[tuple[str, str], int]) -> tuple[float, float]:
    """(overhead, exposed) with the least squared error of the logarithms."""
    best = (math.inf, (1.0, 0.0))
    for step in range(101):
        exposed = step / 50
        logs = [
            math.log(1 / speed) - math.log(picoseconds(CARDS[c], *KERNELS[k], 128, (1.0, exposed)))
            for (c, k), speed in published.items()
        ]
        mean = sum(logs) / len(logs)
        loss = sum((x - mean) ** 2 for x in logs)
        best = min(best, (loss, (math.exp(mean), exposed)))
    return best[1]


def errors() -> dict[tuple[str, str], float]:
    """Predicted over published speed less one, each card predicted from a fit to the others."""
    found = {}
    for (card, kernel), speed in PUBLISHED.items():
        rest = {key: value for key, value in PUBLISHED.items() if key[0] != card}
        time = picoseconds(CARDS[card], *KERNELS[kernel], 128, fit_to(rest))
        found[card, kernel] = 1 / time / speed - 1
    return found


def ours(card: Card, shape: tuple[int, int, int, int], keys_per_tile: int) -> dict[str, float]:
    """Predicted milliseconds for bf16 [B, H, T, D]: "kernel", "packing", and "flash" for FA2, or
    FA3 on Hopper.
    """
    batch, heads, tokens, dim = shape
    fit = fit_to(PUBLISHED)
    work = 4.0 * batch * heads * tokens**2 * dim
    values = "fp16" if math.isnan(card.fp8) else "fp8"
    alu = 6.5 + 3.0 * dim / keys_per_tile  # scaling of the accumulators, shared by a tile's keys
    kernel = work * picoseconds(card, "int8", values, alu, 1.0, dim, fit) * 1e-9
    flash = work * picoseconds(card, *KERNELS["FA3"], dim, fit) * 1e-9
    # Q read once, K and V twice, in bf16; codes written once and read at least once.
    moved = (
        batch * heads * tokens * dim * (2 + 2 * 4 + 2 * (1 + 1 + (2 if values == "fp16" else 1)))
    )
    return {"kernel": kernel, "packing": moved / card.bandwidth * 1e-6, "flash": flash}
