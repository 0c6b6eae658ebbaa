"""How a job wants its model loaded: the ``load:`` of a job, parsed once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accel.core.plain_values import shown
from accel.core.validate import from_dict, one_of, text

DTYPES = ("bf16", "fp16", "fp32")
WEIGHTS = ("bf16", "int8", "fp8", "nf4", "gguf")
ALLOWED = ("int8", "fp8", "nf4")  # kinds that placement may choose
OFFLOADS = ("auto", "none", "model", "group", "sequential", "disk")
COMPILES = ("off", "blocks")
ALL = ""  # component of ``weights`` that stands for every one that can be quantized


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model, checked when it is made.

    Args:
        pipeline: Name of diffusers' pipeline class, where it is not the one in the model's index.
        dtype: One of ``DTYPES``; None for bf16 on a card and fp32 on a CPU.
        weights: Kind of weights by component, "" for all that can be quantized: one of ``WEIGHTS``,
            where "gguf FILE" names its file.
        components: A folder, file or hub id by component, instead of the model's own.
        config: Folder or hub id of the configurations of a single-file checkpoint.
        scheduler: ``class`` and settings that replace those of the model's scheduler.
        variant: Such as "fp16": files named ``*.fp16.safetensors``.
        revision: Branch, tag or commit of a hub model.
        offload: One of ``OFFLOADS``: where weights lie; "auto" takes the cheapest that fits.
        compile: "blocks" compiles the denoiser's repeated blocks.
        allow: Kinds of weights, of ``ALLOWED``, that may be taken, in this order, where weights as
            they are would have to move at each denoiser call, or do not fit at all.

    Raises:
        ValueError: A value that is not allowed.
    """

    pipeline: str | None = None
    dtype: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    revision: str | None = None
    offload: str = "auto"
    compile: str = "off"
    allow: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("pipeline", "config", "variant", "revision"):
            if (value := getattr(self, name)) is not None:
                text(f"load {name}", value)
        if self.dtype is not None:
            one_of("load dtype", self.dtype, DTYPES)
        if isinstance(self.weights, str):
            object.__setattr__(self, "weights", {ALL: self.weights})
        if isinstance(self.compile, bool) and not self.compile:  # YAML 1.1 reads off as false
            object.__setattr__(self, "compile", COMPILES[0])
        for name in ("weights", "components"):
            _check_texts(f"load {name}", getattr(self, name))
        for component, kind in self.weights.items():
            _check_kind(f"load weights{component and f' of {component}'}", component, kind)
        if not isinstance(self.scheduler, Mapping):
            raise ValueError(
                f"load scheduler must be a mapping such as {{shift: 5.0}}, got "
                f"{shown(self.scheduler)}"
            )
        one_of("load offload", self.offload, OFFLOADS)
        one_of("load compile", self.compile, COMPILES)
        self._check_allow()

    def _check_allow(self) -> None:
        kinds = [self.allow] if isinstance(self.allow, str) else self.allow
        if not isinstance(kinds, (list, tuple)):
            raise ValueError(f"load allow must be a kind or a list of kinds, got {shown(kinds)}")
        for kind in kinds:
            one_of("load allow", kind, ALLOWED)
        if kinds and self.weights:
            raise ValueError(
                "load allow and load weights exclude each other: weights says what is taken, allow "
                "what may be taken where nothing else fits well"
            )
        object.__setattr__(self, "allow", tuple(dict.fromkeys(kinds)))

    @classmethod
    def parse(cls, value: Any) -> LoadOptions:
        """Return the options of ``load:``, the usual ones for None.

        Raises ValueError for anything that is no such mapping.
        """
        return cls() if value is None else from_dict(cls, value, "load")

    def key(self, model: str) -> str:
        """Return what stands for a model loaded like this; equal keys share one pipeline."""
        given = {k: v for k, v in asdict(self).items() if v != getattr(LoadOptions, k, {})}
        return f"{model} {json.dumps(given, sort_keys=True)}" if given else model

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide the pixels, without those at their default."""
        unused = ("offload", "compile")
        return {
            k: v for k, v in asdict(self).items() if k not in unused and v not in (None, {}, ())
        }


def _check_texts(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping by component, got {shown(value)}")
    for key, inner in value.items():
        text(name, key)
        text(f"{name} of {key}", inner)


def _check_kind(name: str, component: str, kind: str) -> None:
    word, _, file = kind.partition(" ")
    one_of(name, word, WEIGHTS)
    if (word == "gguf") != bool(file.strip()):
        raise ValueError(f'{name} must be "gguf FILE" or a kind without a file, got {shown(kind)}')
    if word == "gguf" and component == ALL:
        raise ValueError(
            f"{name} must name the component that the GGUF file holds, such as "
            f"{{transformer: {kind}}}"
        )
