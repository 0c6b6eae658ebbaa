"""What happened in one sliced block."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class BlockRecord:
    """What happened in one block. ``sliced`` counts calls by number of slices, ``whole`` calls that
    ran unsliced by reason; ``in_place`` calls that overwrote their input; ``mixing`` functions that
    had to run on all tokens at once; ``note`` whatever else happened.
    """

    sliced: Counter[int] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    in_place: int = 0
    copied: str = ""
    mixing: tuple[str, ...] = ()
    note: str = ""
