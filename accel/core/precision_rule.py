"""A rule of a plan: how exact some sites are during some steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from accel.core.validate import number, one_of

RulePrecision = Literal["int8", "int6", "int4", "fp8", "full"]


@dataclass(frozen=True)
class Rule:
    """Precision of some sites during some steps.

    Args:
        precision: One that the rule's configuration has, such as "int8", or "full" for no
            quantization.
        sites: A shell pattern over site names (``blocks.0.*``), or several names and patterns.
        start: First step the rule holds for, as a fraction of the run.
        end: Where the rule stops: it holds while ``start <= step / steps < end``.
        kept_share: Of attention: see ``AttentionConfig``, whose share None takes.

    Raises:
        ValueError: A value that is not allowed.
    """

    precision: RulePrecision
    sites: str | tuple[str, ...] = "*"
    start: float = 0.0
    end: float = 1.0
    kept_share: float | None = None

    def __post_init__(self) -> None:
        one_of("rule precision", self.precision, get_args(RulePrecision))
        if not isinstance(self.sites, str):
            sites = tuple(self.sites) if isinstance(self.sites, (list, tuple)) else ()
            if not sites or not all(isinstance(site, str) for site in sites):
                raise ValueError(f"rule sites must be one or more names, got {self.sites!r}")
            object.__setattr__(self, "sites", sites)
        for name in ("start", "end"):
            number(f"rule {name}", getattr(self, name))
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"rule needs 0 <= start < end <= 1, got start {self.start}, end {self.end}"
            )
        check_kept_share("rule kept_share", self.kept_share)


def check_kept_share(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is None or a share above 0 and at most 1."""
    if value is not None and not 0.0 < number(name, value) <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value:g}")
