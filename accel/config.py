"""Frozen configurations, one per technique, validated at birth."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Precision = Literal["int8", "int6", "int4", "full"]
Impl = Literal["auto", "reference", "cpu", "gpu"]


def did_you_mean(word: str, known: list[str]) -> str:
    """ " (did you mean 'x'?)" for a misspelt word, or "" if nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choose(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        hint = did_you_mean(str(value), list(allowed))
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{hint}")


def from_dict(cls: type, data: Any, where: str) -> Any:
    """Build the dataclass ``cls`` from a mapping; anything else raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a mapping, got {data!r}")
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{where} has an unknown key {key!r}{hint}; known: {known}")
    return cls(**data)


@dataclass(frozen=True)
class Rule:
    """Precision of some sites during some steps.

    ``sites`` is a shell pattern over site names (``blocks.0.*``) or several names and patterns;
    ``start`` and ``end`` bound the step as a fraction of the run, ``start <= step / steps < end``.
    """

    precision: Precision
    sites: str | tuple[str, ...] = "*"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        choose("rule precision", self.precision, get_args(Precision))
        if not isinstance(self.sites, str):
            object.__setattr__(self, "sites", tuple(self.sites))
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"rule needs 0 <= start < end <= 1, got start {self.start}, end {self.end}"
            )


@dataclass(frozen=True)
class AttentionConfig:
    """Quantized attention. The first rule that matches site and step wins, else ``precision``.

    ``impl`` "auto" takes the fastest implementation, and leaves calls too short to profit to torch;
    a named one is used for every call. ``check_rows``: query rows per head compared with full
    precision on the first call of each site in a run; 0 turns the comparison off. Above a relative
    L1 error of ``max_error`` there, the site stays at full precision for the rest of the run.
    """

    precision: Precision = "int8"
    rules: tuple[Rule, ...] = ()
    impl: Impl = "auto"
    smooth_q: bool = False
    smooth_v: bool = True
    hadamard: bool = False
    check_rows: int = 64
    max_error: float = 0.5

    def __post_init__(self) -> None:
        choose("attention precision", self.precision, get_args(Precision))
        choose("attention impl", self.impl, get_args(Impl))
        rules = tuple(
            r if isinstance(r, Rule) else from_dict(Rule, r, "attention rule") for r in self.rules
        )
        object.__setattr__(self, "rules", rules)
        if self.check_rows < 0:
            raise ValueError(f"attention check_rows must not be negative, got {self.check_rows}")
        if not self.max_error > 0:
            raise ValueError(f"attention max_error must be positive, got {self.max_error}")


@dataclass(frozen=True)
class SlicingConfig:
    """Exact feature slicing: each block runs in at most ``slices`` slices of at least
    ``min_tokens`` tokens.
    """

    slices: int = 8
    min_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("slices", "min_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"slicing {name} must be at least 1, got {getattr(self, name)}")
