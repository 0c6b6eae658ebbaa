"""What step rehash did, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RehashRecord:
    """What step rehash did so far.

    ``computed`` and ``reused`` count steps by reason, ``calls`` counts denoiser calls. ``keys`` are
    the computed steps of the last run and ``steps`` its length; ``begin`` is its first step in the
    schedule. ``state_bytes`` is the most that was kept at once. ``corrected`` counts computed calls
    whose output was corrected by measured weights. ``predicted`` counts calls by the name of the
    prediction (``accel/rehash/prediction.py``) where the run chooses it. ``more`` counts steps that
    were computed beyond the speed-up, by reason. ``notes`` say what could not be done as requested.
    """

    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    keys: list[int] = field(default_factory=list)
    steps: int = 0
    begin: int = 0
    state_bytes: int = 0
    corrected: int = 0
    predicted: Counter[str] = field(default_factory=Counter)
    more: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str, log: Callable[..., None] | None = None) -> None:
        """Add ``text`` to the report and, where ``log`` is given, to the log, once."""
        if log is not None and text not in self.notes:
            log("step rehash: %s", text)
        self.notes[text] = None

    @property
    def told(self) -> list[str]:
        """The notes, and how many steps were computed beyond the speed-up."""
        return [*self.notes, *(f"computed {n} more steps: {why}" for why, n in self.more.items())]
