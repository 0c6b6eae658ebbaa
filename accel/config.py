"""Frozen configurations, one per technique, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from accel.core.precision_rule import Rule as Rule
from accel.core.precision_rule import RulePrecision as RulePrecision
from accel.core.precision_rule import check_kept_share
from accel.core.rehash_config import Level as Level
from accel.core.rehash_config import RehashConfig as RehashConfig
from accel.core.rehash_config import Storage as Storage
from accel.core.validate import flag, from_dict, number, one_of, whole

Precision = Literal["int8", "int6", "int4", "full"]
LinearPrecision = Literal["int8", "fp8", "full"]
Impl = Literal["auto", "reference", "cpu", "gpu"]
Keep = Literal["device", "cpu"]


@dataclass(frozen=True)
class AttentionConfig:
    """Quantized attention, with a precision by site and step.

    Args:
        precision: Precision of calls that no rule matches: "int8", "int6", "int4" or "full".
        rules: Checked in order; the first one that matches a call's site and step wins.
        impl: "auto" takes the fastest implementation, and leaves calls to torch that are too short
            to gain. A named one ("reference", "cpu", "gpu") is used for every call.
        smooth_q: Subtract the mean of each block of queries before quantization (SageAttention2).
        smooth_v: Subtract the mean of the values before quantization, where that does not cost more
            than it gains: a site whose first result is far off is tried without.
        hadamard: Rotate queries and keys by a Hadamard matrix before quantization.
        check_rows: Query rows per head that are compared with full precision at each site's first
            call in each precision of a run, a quarter of them in each later quarter of the run;
            0 turns the check off.
        max_error: Relative L1 error of the worst head in that check, above which the site stays at
            full precision for the rest of the run. None takes the limit of the call's precision:
            0.1 for "int8", 0.18 for "int6", 0.66 for "int4".
        providers: Names of the kernels that "auto" may use: "accel" (ours), "native" (torch's own
            choice) and diffusers' backends ("sage", "_flash_3_hub"). () allows all that are
            installed; a kernel from a hub is only fetched if it is named here or was chosen with
            ``set_attention_backend``. What the pipeline uses without accel is always allowed.
        kept_share: Share of the softmax that the computed blocks of keys hold by estimate, in calls
            that no rule with a share of its own matches; the others are left out, where a call is
            quantized and long enough to gain. None or 1 computes all.

    Raises:
        ValueError: A value that is not allowed.

    Example::

        first = accel.Rule("full", sites="blocks.0.*", end=0.2)
        accel.patch(pipe, plan=accel.Plan(attention=accel.AttentionConfig("int8", (first,))))
    """

    precision: Precision = "int8"
    rules: tuple[Rule, ...] = ()
    impl: Impl = "auto"
    smooth_q: bool = False
    smooth_v: bool = True
    hadamard: bool = False
    check_rows: int = 64
    max_error: float | None = None
    providers: tuple[str, ...] = ()
    kept_share: float | None = None

    def __post_init__(self) -> None:
        _check_quantized("attention", self, get_args(Precision))
        check_kept_share("attention kept_share", self.kept_share)
        names = self.providers
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise ValueError(f"attention providers must be a list of names, got {names!r}")
        object.__setattr__(self, "providers", tuple(names))
        for name in ("smooth_q", "smooth_v", "hadamard"):
            flag(f"attention {name}", getattr(self, name))


@dataclass(frozen=True)
class LinearConfig:
    """8-bit linear layers of a denoiser's blocks, with a precision by site and step.

    A site is a layer, named by its path. Weights that are quantized already are left alone.

    Args:
        precision: Precision of calls that no rule matches: "int8", "fp8" (cards that have it) or
            "full".
        rules: Checked in order; the first one that matches a call's site and step wins.
        impl: "auto" measures each kind of call once on this machine, and leaves to torch what it
            does not make faster. A named one ("reference", "cpu", "gpu") is used for every call.
        smooth: Divide each channel of the input by a factor that its weights are multiplied by, so
            that both are about as hard to quantize (SmoothQuant); of a site's first call.
        outliers: Channels of the input that are not quantized: the largest of a site's first call.
        hadamard: Rotate inputs and weights by a Hadamard matrix before quantization.
        min_rows: Fewest rows (tokens of all samples, in slices those of one) of a call that is
            quantized; layers that modulate a whole picture have only a few.
        keep: Where the original weights stay while patched: "device" where they are, or "cpu" in
            CPU memory, from where calls at full precision and ``unpatch`` take them back. With
            "cpu", fuse LoRAs before patching: PEFT adds them on the card.
        check_rows: Rows that are compared with torch at each site's first call in each precision of
            a run, a quarter of them in each later quarter of the run; 0 turns the check off.
        max_error: Relative L1 error in that check, above which the site stays at full precision for
            the rest of the run. None takes the limit of the call's precision: 0.1 for "int8", 0.15
            for "fp8".

    Raises:
        ValueError: A value that is not allowed.

    Example::

        accel.patch(pipe, plan=accel.Plan(linear=accel.LinearConfig()))
    """

    precision: LinearPrecision = "int8"
    rules: tuple[Rule, ...] = ()
    impl: Impl = "auto"
    smooth: bool = False
    outliers: int = 0
    hadamard: bool = False
    min_rows: int = 128
    keep: Keep = "device"
    check_rows: int = 64
    max_error: float | None = None

    def __post_init__(self) -> None:
        _check_quantized("linear", self, get_args(LinearPrecision))
        if any(rule.kept_share is not None for rule in self.rules):
            raise ValueError("linear rules have no kept_share, which is attention's")
        for name in ("smooth", "hadamard"):
            flag(f"linear {name}", getattr(self, name))
        whole("linear outliers", self.outliers, 0)
        whole("linear min_rows", self.min_rows, 1)
        one_of("linear keep", self.keep, get_args(Keep))


Quantized = AttentionConfig | LinearConfig


def _check_quantized(what: str, config: Quantized, precisions: tuple[str, ...]) -> None:
    """Check the fields that all quantizing techniques have, and parse the rules."""
    one_of(f"{what} precision", config.precision, precisions)
    one_of(f"{what} impl", config.impl, get_args(Impl))
    if not isinstance(config.rules, (list, tuple)):
        raise ValueError(f"{what} rules must be a list of rules, got {config.rules!r}")
    rules = tuple(from_dict(Rule, rule, f"{what} rule") for rule in config.rules)
    for rule in rules:
        one_of(f"precision of {what} rules", rule.precision, precisions)
    object.__setattr__(config, "rules", rules)
    whole(f"{what} check_rows", config.check_rows, 0)
    if config.max_error is not None and not number(f"{what} max_error", config.max_error) > 0:
        raise ValueError(f"{what} max_error must be positive, got {config.max_error}")


@dataclass(frozen=True)
class SlicingConfig:
    """Exact feature slicing: blocks run slice by slice, with the same result in less memory.

    Args:
        slices: Most slices that a block runs in.
        min_tokens: Fewest tokens of a slice.
        stream_frames: Where a VAE on an accelerator decodes a video piece by piece, move finished
            frames to the CPU at once, if the pipeline only returns them. Videos requested as
            tensors (``output_type="pt"``) are then on the CPU; arrays and pictures always are.
        tiling: Let the VAE decode in diffusers' tiles as well, which changes the picture a little.

    Raises:
        ValueError: A value that is not allowed.

    Example::

        accel.patch(pipe, plan=accel.Plan(attention=None, slicing=accel.SlicingConfig(slices=4)))
    """

    slices: int = 8
    min_tokens: int = 128
    stream_frames: bool = True
    tiling: bool = False

    def __post_init__(self) -> None:
        for name in ("slices", "min_tokens"):
            whole(f"slicing {name}", getattr(self, name), 1)
        for name in ("stream_frames", "tiling"):
            flag(f"slicing {name}", getattr(self, name))
