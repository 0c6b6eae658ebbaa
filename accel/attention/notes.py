"""Notes of a report on quantized attention: what it could not do, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from accel.attention.policy import always
from accel.attention.site import Site
from accel.config import AttentionConfig
from accel.kernels.dispatch import ATTENTION


def attention_notes(
    config: AttentionConfig | None, sites: Iterable[Site], calls: int, lost: Counter[str]
) -> list[str]:
    """Return what there is to say of a plan's attention after ``calls`` denoiser calls.

    ``lost`` counts calls of unknown step by reason.
    """
    if config is None:
        return ["attention is not changed by this plan"]
    return [*_lost_steps(config, lost), *_what_ran(sites, calls)]


def _what_ran(sites: Iterable[Site], calls: int) -> list[str]:
    """Return a note if nothing ran, or only what is there to compare with."""
    ran = {impl for site in sites for _, impl in site.record.ran}
    if calls and not ran:
        return ["no attention call was quantized"]
    if "reference" not in ran:
        return []
    reasons = [f"{e.name}: {why}" for e in ATTENTION if (why := e.why_not(torch.device("cpu")))]
    return [
        "attention ran on the eager reference: it shows what a precision costs, but is slower than "
        f"torch's attention{' (' + '; '.join(reasons) + ')' if reasons else ''}"
    ]


def _lost_steps(config: AttentionConfig, lost: Counter[str]) -> list[str]:
    """Return a note for each reason of calls whose step is unknown, if rules by step exist."""
    if all(map(always, config.rules)):
        return []
    return [
        f"{n} denoiser calls with the most accurate precision of each site's rules, "
        f"step unknown: {why}"
        for why, n in lost.items()
    ]
