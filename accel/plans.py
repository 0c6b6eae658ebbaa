"""The plan: everything a patch will do, as one frozen value with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accel.config import AttentionConfig, LinearConfig, RehashConfig, Rule, SlicingConfig
from accel.core.atomic_write import write_atomic
from accel.core.plan_origin import PlanOrigin
from accel.core.strict_json import dumps, loads
from accel.core.validate import from_dict, instance, known_keys, one_of, text

VERSION = 1
PRESETS = ("lossless", "balanced", "few-step", "fast")  # from the slowest on, in short runs too
_CONFIGS: dict[str, type] = {
    "attention": AttentionConfig,
    "slicing": SlicingConfig,
    "rehash": RehashConfig,
    "linear": LinearConfig,
    "origin": PlanOrigin,
}


@dataclass(frozen=True)
class Plan:
    """Everything that a patch changes in a pipeline.

    Args:
        name: The name shown in reports.
        attention: Quantized attention; None leaves attention unchanged.
        slicing: Feature slicing; None runs blocks on all tokens at once.
        rehash: Step rehash; None computes every step.
        linear: 8-bit linear layers; None leaves them unchanged.
        origin: Where the plan comes from. It changes nothing that the plan does: equal plans may
            have different ones. Patching compares it, and the report says what no longer holds.

    Raises:
        ValueError: A value of another type.

    Example::

        plan = accel.Plan("small", accel.AttentionConfig("int8"), accel.SlicingConfig(4))
        plan.save("small.json")
        accel.patch(pipe, plan=accel.Plan.load("small.json"))
    """

    name: str = "custom"
    attention: AttentionConfig | None = field(default_factory=AttentionConfig)
    slicing: SlicingConfig | None = None
    rehash: RehashConfig | None = None
    linear: LinearConfig | None = None
    origin: PlanOrigin | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        text("plan name", self.name)
        instance("plan attention", self.attention, AttentionConfig, "AttentionConfig('int8')")
        instance("plan slicing", self.slicing, SlicingConfig, "SlicingConfig(8)")
        instance("plan rehash", self.rehash, RehashConfig, "RehashConfig(speedup=1.9)")
        instance("plan linear", self.linear, LinearConfig, "LinearConfig('int8')")
        instance("plan origin", self.origin, PlanOrigin, "PlanOrigin('hand')")

    @classmethod
    def preset(cls, name: str) -> Plan:
        """Return a named plan.

        "lossless": exact feature slicing, nothing else. "balanced": INT8 attention, and 8-bit
        linear layers in the second half of the run. "few-step": both in all steps, for runs of 8
        steps or fewer, which skip none. "fast": INT8 attention, and 1.9 denoising steps per
        computed one in runs of more than 8 steps.

        Raises:
            ValueError: An unknown name.
        """
        one_of("preset", name, PRESETS)
        if name == "lossless":
            return cls(name, attention=None, slicing=SlicingConfig())
        attention = AttentionConfig("int8")
        if name == "balanced":  # errors of early steps decide what the picture shows
            return cls(name, attention, linear=LinearConfig("int8", (Rule("full", end=0.5),)))
        if name == "few-step":  # sparing one of few steps costs much and keeps little more
            return cls(name, attention, linear=LinearConfig("int8"))
        # Guidance multiplies the noise of 8-bit layers, which steps cannot be predicted from.
        return cls(name, attention, rehash=RehashConfig(speedup=1.9))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values.

        What was not there in earlier plans (``linear``, ``kept_share``, ``providers``, ``origin``)
        is left out where it is as usual, so that ids made of plans stay what they were.
        """
        data = {"version": VERSION, **asdict(replace(self, origin=None))}
        del data["origin"]
        for config in filter(None, (data["attention"], data["linear"])):
            for part in (config, *config["rules"]):
                if part.get("kept_share") is None:
                    part.pop("kept_share", None)
        if self.linear is None:
            del data["linear"]
        if self.slicing is not None and not self.slicing.tiling:
            del data["slicing"]["tiling"]
        if self.attention is not None and not self.attention.providers:
            del data["attention"]["providers"]
        if self.rehash is not None and self.rehash.entries == RehashConfig.entries:
            del data["rehash"]["entries"]
        if self.rehash is not None and self.rehash.origin is None:
            del data["rehash"]["origin"]
        if self.origin is not None:
            data["origin"] = self.origin.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan of a mapping, the inverse of ``to_dict``.

        Raises:
            ValueError: A value that is no mapping, an unknown key or version, or a bad value.
        """
        keys = ["version", *(f.name for f in fields(cls))]
        data = known_keys(data, keys, "plan")
        version = data.pop("version", VERSION)
        if version != VERSION:
            raise ValueError(
                f"plan version {version} is not supported; this accel reads version {VERSION}"
            )
        for name, kind in _CONFIGS.items():
            if data.get(name) is not None:
                data[name] = from_dict(kind, data[name], f"plan {name}")
        return cls(**data)

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path`` as JSON."""
        write_atomic(path, dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Return the plan in a file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file holds no plan.
        """
        try:
            data = loads(Path(path).expanduser().read_text("utf-8"), "the file")
        except ValueError as error:
            raise ValueError(f"{path} is not a plan: {error}") from error
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
