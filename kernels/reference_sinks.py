"""Eager definition of how 8-bit weights on the CPU spare what dominating keys hide.

Part of the specification in ``kernels/reference.py``. P of a row and key block is rounded to steps
of its largest weight. Where one key or a few (attention sinks, arXiv 2309.17453) stand 5 nats above
the others, the others round to nothing. That is harmless while the values of such keys are like
any, but in real models they are small, and many small weights outweigh them; the scale of their
block's V is too coarse for them, too.

Method. A key is *high* in a row and block if its rounded weight is at least half of the largest.
A row's result is taken to be at least as large as ``signal``: N other weights of a sum R add up R /
sqrt(N) of independent values, and each high key its weight times the size of its values. Rounding n
weights adds a variance of n / 12 steps, or L^2 / n where a sum of L is lost: the very L of a block
whose high keys are looked at, else what its small weights may come to. Where the standard deviation
of a row so far exceeds the share ``ROUNDING`` / levels of its signal, or L that share of the row's
sum, the block's high keys are taken out: their product with V is in fp32, of V before it was
quantized. What is left is rounded again in steps of its own largest weight, for at most
``SIFTINGS`` rounds and ``DOMINATING`` keys. The denominator stays the sum of the unrounded weights.

Trade-off: high keys are looked at only where the others alone are too few, so rows of plain
attention pay for the test of a sum alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The same in csrc/attention_sinks.inc.
ROUNDING = 4.4  # of a row's result, over levels, that may be lost: 3.5 % with 127 levels
VALUE_STEP = 1 / 80  # error of V from N(0, 1) by its rounding to 7 bits
SIZE = 32  # steps of the sizes of values, which are relative to their block's mean
SIFTINGS, DOMINATING = 3, 32  # most rounds, and keys taken out of a block
TINY = 2.0**-126  # a largest weight below is that of no keys


@dataclass(frozen=True)
class Loss:
    """What rounding may cost each row so far, in steps of the running maximum, all [.., rows].

    ``rest`` is the sum of weights that are not high, ``strong`` the squares of high weights times
    the size of their values (of blocks whose high keys were looked at), ``noise`` the variance.
    """

    rest: Tensor
    strong: Tensor
    noise: Tensor

    def times(self, keep: Tensor) -> Loss:
        """Return it relative to a new maximum; ``keep`` [.., rows] is the factor of the old one."""
        return Loss(self.rest * keep, self.strong * keep**2, self.noise * keep**2)

    def plus(
        self, low: Tensor | float, strong: Tensor | float, noise: Tensor | float, gain: Tensor
    ) -> Loss:
        """Return it with another block's low weights, high ones and variance."""
        square = gain**2
        return Loss(
            self.rest + low * gain, self.strong + strong * square, self.noise + noise * square
        )

    def where(self, chosen: Tensor, other: Loss) -> Loss:
        """Return the other's in the ``chosen`` rows, bool [.., rows]."""
        return Loss(
            torch.where(chosen, other.rest, self.rest),
            torch.where(chosen, other.strong, self.strong),
            torch.where(chosen, other.noise, self.noise),
        )

    def counts(self, seen: int, levels: int) -> Tensor:
        """Whether the noise is too large beside the signal of ``seen`` keys, bool [.., rows]."""
        return self.noise > (ROUNDING / levels) ** 2 * (self.rest**2 / seen + self.strong)


@dataclass(frozen=True)
class Block:
    """One key block of V, and where it stands.

    ``exact`` [.., n, Dv] are the values before quantization, less their mean; ``codes`` and
    ``scale`` [.., n, Dv] the quantized ones; ``seen`` counts the keys up to the block's end.
    """

    exact: Tensor
    codes: Tensor
    scale: Tensor
    seen: int

    def sizes(self) -> Tensor:
        """Return the mean magnitude of each key's codes relative to the block's, [.., 1, n]."""
        sums = self.codes.abs().sum(-1)
        relative = sums * (SIZE * sums.shape[-1]) / sums.sum(-1, keepdim=True).clamp_min(1)
        return relative.clamp_max(255).round()[..., None, :] / SIZE


def product(
    p: Tensor, block: Block, levels: int, earlier: Loss, gain: Tensor, total: Tensor
) -> tuple[Tensor, Loss]:
    """Multiply the weights of a key block with its values.

    Args:
        p: Weights relative to the largest of each row, [.., rows, n].
        block: The values of the block.
        levels: Steps between 0 and the largest weight.
        earlier: The loss of all earlier blocks.
        gain: The largest weight of this block relative to the running maximum, [.., rows].
        total: The sum of all weights up to this block in that unit, [.., rows].

    Returns:
        P V [.., rows, Dv] relative to this block's maximum, and the loss with this block.
    """
    count = p.shape[-1]
    top, left = torch.ones_like(gain), p
    codes, low, high = _rounded(left, top, levels)
    strong = (torch.where(high, codes, 0) * block.sizes()).square().sum(-1)
    lost = (p.sum(-1) * levels - codes.sum(-1)).abs()
    noise = (lost**2 / count).clamp_min(count / 12)
    noise = noise + (torch.where(high, codes, 0) * VALUE_STEP).square().sum(-1)
    variance, seen = _variance(low, count), (block.seen, levels)
    loss = earlier.plus(low, 0, variance, gain)
    asked, looked = loss.counts(*seen), earlier.plus(low, strong, noise, gain)
    harm = looked.counts(*seen) | (lost * gain > ROUNDING * total)
    active = asked & harm
    loss = loss.where(asked & ~harm, looked)
    loss = loss.where(active, earlier.plus(low, strong, variance, gain))
    earlier = earlier.plus(0, strong, 0, gain)
    taken = torch.zeros_like(high)
    for _ in range(SIFTINGS):
        active = active & ((taken | high).sum(-1) <= DOMINATING)
        if not active.any():
            break
        taken = taken | (high & active[..., None])
        left = p.masked_fill(taken, 0)
        top = torch.where(active, left.amax(-1), top)
        codes, low, high = _rounded(left, top, levels)
        loss = loss.where(active, earlier.plus(low, 0, _variance(low, count), top * gain))
        active = active & (top > TINY) & loss.counts(*seen)
    exact = torch.where(taken, p, 0) @ block.exact
    return exact + (codes * top[..., None] / levels) @ block.codes * block.scale[..., :1, :], loss


def _variance(low: Tensor, count: int) -> Tensor:
    """Return what rounding ``count`` weights of sum ``low`` [.., rows] adds: all may be lost."""
    lost = low.clamp_max(count / 2) ** 2 / count
    return torch.where(low < count, lost.clamp_min(count / 12), count / 12)


def _rounded(p: Tensor, top: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round weights [.., rows, n] to steps of the largest, ``top`` [.., rows].

    Returns the codes from 0 to ``levels`` [.., rows, n], the sum of the weights that are not high
    in steps [.., rows], and which are high, bool [.., rows, n].
    """
    steps = p / top.clamp_min(TINY)[..., None] * levels
    codes = steps.round()
    high = codes >= math.ceil(levels / 2)
    return codes, steps.sum(-1) - torch.where(high, codes, 0).sum(-1), high
