"""The plan: everything a patch will do, as one frozen value with a JSON round trip."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accel.config import AttentionConfig, RehashConfig, SlicingConfig
from accel.core.validate import from_dict, one_of

VERSION = 1
PRESETS = ("lossless", "balanced", "fast")


@dataclass(frozen=True)
class Plan:
    """What is changed in a pipeline. ``attention`` None: attention stays as it is; ``slicing``
    None: blocks run on all tokens at once; ``rehash`` None: every step is computed.
    """

    name: str = "custom"
    attention: AttentionConfig | None = field(default_factory=AttentionConfig)
    slicing: SlicingConfig | None = None
    rehash: RehashConfig | None = None

    @classmethod
    def preset(cls, name: str) -> Plan:
        """A named plan.

        "lossless": exact feature slicing, nothing else. "balanced": INT8 attention. "fast": INT8
        attention, and 1.9 denoising steps per computed one in runs of more than 8 steps.
        """
        one_of("preset", name, PRESETS)
        if name == "lossless":
            return cls(name, attention=None, slicing=SlicingConfig())
        if name == "balanced":
            return cls(name, AttentionConfig("int8"))
        return cls(name, AttentionConfig("int8"), rehash=RehashConfig(speedup=1.9))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Inverse of ``to_dict``. Raises ValueError naming an unknown key or version."""
        if not isinstance(data, dict):
            raise ValueError(f"a plan must be a mapping, got {data!r}")
        data = dict(data)
        version = data.pop("version", VERSION)
        if version != VERSION:
            raise ValueError(
                f"plan version {version} is not supported; this accel writes {VERSION}"
            )
        if data.get("attention") is not None:
            data["attention"] = from_dict(AttentionConfig, data["attention"], "plan attention")
        if data.get("slicing") is not None:
            data["slicing"] = from_dict(SlicingConfig, data["slicing"], "plan slicing")
        if data.get("rehash") is not None:
            data["rehash"] = from_dict(RehashConfig, data["rehash"], "plan rehash")
        return from_dict(cls, data, "plan")

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. Raises FileNotFoundError, or ValueError for something that is no plan."""
        try:
            data = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a plan: {error}") from error
        return cls.from_dict(data)
