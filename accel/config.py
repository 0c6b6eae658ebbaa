"""Frozen configurations, one per technique, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from accel.core.key_steps import MeasuredSchedule, Multistep, Origin, Schedule, Wish
from accel.core.precision_rule import Rule as Rule
from accel.core.precision_rule import RulePrecision as RulePrecision
from accel.core.precision_rule import check_kept_share
from accel.core.validate import flag, from_dict, number, one_of, whole

Precision = Literal["int8", "int6", "int4", "full"]
LinearPrecision = Literal["int8", "fp8", "full"]
Impl = Literal["auto", "reference", "cpu", "gpu"]
Level = Literal["output", "features"]
Storage = Literal["native", "int8", "cpu"]
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
            0.1 for "int8", 0.15 for "int6", 0.5 for "int4".
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
    kept_share: float | None = None

    def __post_init__(self) -> None:
        _check_quantized("attention", self, get_args(Precision))
        check_kept_share("attention kept_share", self.kept_share)
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

    Raises:
        ValueError: A value that is not allowed.

    Example::

        accel.patch(pipe, plan=accel.Plan(attention=None, slicing=accel.SlicingConfig(slices=4)))
    """

    slices: int = 8
    min_tokens: int = 128
    stream_frames: bool = True

    def __post_init__(self) -> None:
        for name in ("slices", "min_tokens"):
            whole(f"slicing {name}", getattr(self, name), 1)
        flag("slicing stream_frames", self.stream_frames)


@dataclass(frozen=True)
class RehashConfig:
    """Step rehash: denoising steps that can be predicted from earlier ones are skipped.

    The computed steps are chosen in one of three ways (``choice``): a ``Wish``, a ``Schedule``, or
    a ``MeasuredSchedule`` as ``accel.measure_steps`` finds it. The first fifth of the steps (fewer
    where a ``Wish`` leaves few) and the last one are always computed; 8 steps or fewer all are.

    Args:
        speedup: Steps of a run per computed one, 1 to 5, or less where outputs change too fast.
        keys: 0-based computed steps of a run of ``steps`` steps, stretched to other lengths.
        steps: Length of the run that ``keys`` belong to.
        level: "output" predicts the denoiser's output from its last ones. "features" keeps what a
            transformer's blocks added to the token stream, or the temporal feature of a UNet's last
            up-block, and still runs the last ``tail`` blocks, or layers of that up-block, on it.
        order: Degree in the timestep of the prediction: 0 repeats, 1 extrapolates linearly. None
            means 1 for outputs, but 0 with INT6 and INT4 attention, whose noise a line amplifies.
            With a ``Wish`` the line is damped, unless the run shows another to be far better.
        entries: 2 to 6 outputs kept per branch for a ``Wish``; 3 or more also try a polynomial.
        tail: Blocks or layers that still run at level "features".
        store: How outputs are kept: "native" unchanged, "int8" in 8 bits, "cpu" in CPU memory.
        multistep: Measured weights, used instead of ``order`` in runs like the measured ones.
        quality: dB PSNR that 9 of 10 jobs should keep; needs a measured schedule.
        origin: What the schedule was measured with; runs with something else are reported.

    Raises:
        ValueError: A value that is not allowed, or fields that do not go together.

    Example::

        accel.patch(pipe, plan=accel.Plan(rehash=accel.RehashConfig(speedup=1.9)))
    """

    speedup: float = 1.9
    keys: tuple[int, ...] = ()
    steps: int = 0
    level: Level = "output"
    order: int | None = None
    entries: int = 2
    tail: int = 1
    store: Storage = "native"
    multistep: Multistep | None = None
    quality: float | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        one_of("rehash level", self.level, get_args(Level))
        one_of("rehash store", self.store, get_args(Storage))
        if not isinstance(self.keys, (list, tuple)):
            raise ValueError(f"rehash keys must be a list of steps, got {self.keys!r}")
        object.__setattr__(self, "keys", tuple(whole("rehash key", k) for k in self.keys))
        number("rehash speedup", self.speedup)
        if not 1.0 <= self.speedup <= 5.0:
            raise ValueError(f"rehash speedup must be from 1 to 5, got {self.speedup}")
        if self.order not in (None, 0, 1) or (self.order == 1 and self.level == "features"):
            got = f"got {self.order} at level {self.level!r}"
            raise ValueError(f"rehash order must be None, 0 or, at level 'output', 1, {got}")
        whole("rehash entries", self.entries, 2, 6)
        whole("rehash tail", self.tail, 0)
        whole("rehash steps", self.steps, 0)
        self._check_schedule()

    def _check_schedule(self) -> None:
        for name, kind in (("multistep", Multistep), ("origin", Origin)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, from_dict(kind, value, f"rehash {name}"))
        if self.keys and not all(0 <= k < self.steps for k in self.keys):
            raise ValueError(
                f"rehash keys must be steps of a run of {self.steps} steps (key 'steps'), got "
                f"{list(self.keys)}"
            )
        if self.quality is not None and not self.keys:
            number("rehash quality", self.quality)
            raise ValueError(
                f"rehash quality {self.quality:g} dB needs a measured schedule: "
                f"accel.measure_steps(pipe, jobs).at_quality({self.quality:g}) makes this "
                "config from a few jobs; without a measurement give a speedup instead"
            )
        rows = self.steps if self.multistep is None else len(self.multistep.weights)
        if self.multistep is not None and (
            self.level != "output" or not self.keys or rows != self.steps
        ):
            raise ValueError(
                "rehash multistep weights need level 'output' and keys of the same steps, got "
                f"level {self.level!r}, {len(self.keys)} keys of {self.steps} steps and {rows} rows"
            )

    @property
    def choice(self) -> Wish | Schedule | MeasuredSchedule:
        """The way the computed steps are chosen."""
        if not self.keys:
            return Wish(self.speedup)
        if self.multistep is None and self.quality is None:
            return Schedule(self.keys, self.steps)
        return MeasuredSchedule(self.keys, self.steps, self.multistep, self.quality)

    @property
    def chosen(self) -> bool:
        """Whether predictions are chosen during the run."""
        return self.order is None and self.level == "output" and not self.keys
