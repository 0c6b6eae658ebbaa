"""The record of one sliced block."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class BlockRecord:
    """What one block did so far.

    ``sliced`` counts calls by number of slices, and ``whole`` counts calls that ran on all tokens
    at once by reason. ``in_place`` counts calls that overwrote their input. ``copied`` says why the
    last call could not. ``mixing`` names functions that had to run on all tokens at once. ``note``
    says anything else that happened.
    """

    sliced: Counter[int] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    in_place: int = 0
    copied: str = ""
    mixing: tuple[str, ...] = ()
    note: str = ""
