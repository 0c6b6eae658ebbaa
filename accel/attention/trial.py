"""The fastest provider that is accurate enough, measured on a live call, once per kind of call.

Contenders take turns with the baseline, which is the backend that the user's own code would run.
First each computes copies of the call's tensors, and is out if it raises, changes them, gives
another shape or numbers that are not finite, needs far more memory, or is further from fp32 on
sampled rows than its precision may be. Then they are timed in alternation, conversions included.
What is not at least ``measured.MIN_GAIN`` times as fast as the baseline is not used.

A file of the user's cache holds verdicts for one device, number of threads, instruction set,
versions of torch, diffusers and packages with attention, and code of ours. What was measured while
the machine was busy holds for this process only. ``ACCEL_MEASURE=0`` turns measuring off: then our
kernel runs from fixed lengths on, and no other provider.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel.attention import check
from accel.attention.call import Call, finite
from accel.attention.providers import CLASSES
from accel.core.described import described
from accel.core.process_memory import bytes_taken
from accel.kernels import measured

ROWS = 64  # query rows that are compared with fp32
MEMORY = 2.0  # times the call's tensors: scratch beyond the baseline's that is tolerated
LEAST_MEMORY = 64 * 2**20
MOST_HEADS = 8  # that are compared
MOST_WORK = 2e11  # operations of a call on the CPU that is tried whole; heads of others are
SECONDS = 1.0  # of all timed turns together
ROUNDS = 3, 9

# Another version of one of them is measured anew.
PACKAGES = ("sageattention", "flash-attn", "flash-attn-4", "fa3-fwd", "xformers", "kernels")

Run = Callable[[Call], Tensor]


@dataclass(frozen=True)
class Contender:
    """What takes part: a name, the precision it claims, and how it computes a call."""

    name: str
    claim: str
    run: Run


@dataclass(frozen=True)
class Verdict:
    """What was found for one kind of call.

    ``order``: providers to use, fastest first; the baseline is always the last. ``ran``: the
    precision that each was found to have. ``milliseconds``: of those that were timed. ``errors``:
    relative L1 error of the worst head against fp32 on sampled rows. ``why_not``: the others.
    ``doubt``: why the times are not kept for later runs, or "".
    """

    kind: str
    order: tuple[str, ...]
    ran: dict[str, str] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    doubt: str = ""

    @property
    def winner(self) -> str:
        """The fastest that may be used."""
        return self.order[0]

    @property
    def baseline(self) -> str:
        """The backend that the user's own code would run."""
        return self.order[-1]

    def gain(self, name: str) -> float | None:
        """Return the baseline's time over that of ``name``, None if it was not timed."""
        mine, theirs = self.milliseconds.get(name), self.milliseconds.get(self.baseline)
        return None if not mine or not theirs else theirs / mine


_known: dict[tuple[Path, str], Any] = measured.memory("attention")


def kind_of(call: Call, precision: str, options: str) -> str:
    """Return what decides how fast and how accurate a call is."""
    q, k, mask = call.query, call.key, call.attn_mask
    parts = [
        precision, options, str(q.dtype).removeprefix("torch."),
        "x".join(map(str, q.shape)), f"on {k.shape[1]}x{k.shape[2]} keys",
        f"values {call.value.shape[-1]}" if call.value.shape[-1] != q.shape[-1] else "",
        "" if mask is None else f"mask {str(mask.dtype).removeprefix('torch.')} "
        + "x".join(map(str, mask.shape)),
        "causal" if call.is_causal else "",
        "" if q.transpose(1, 2).is_contiguous() else "heads first",
    ]  # fmt: skip
    return " ".join(filter(None, parts))


def find(device: torch.device, kind: str, names: tuple[str, ...]) -> Verdict | None:
    """Return what is known of a kind of call among contenders ``names``, the baseline last."""
    file = _file(device, torch.get_num_threads())
    key = _key(kind, names)
    found = _known.get((file, key))
    if not isinstance(found, Verdict):  # as stored, in the file or by another process
        stored: Any = found or measured.read(file).get(key)
        try:
            found = Verdict(**{**stored, "order": tuple(stored["order"])})
        except (TypeError, KeyError):
            return None
        _known[file, key] = found
    return found


def hold(
    call: Call, kind: str, contenders: list[Contender], baseline: Contender,
    limits: dict[str, float],
) -> Verdict:  # fmt: skip
    """Compare contenders with the baseline on a live call, and keep the verdict."""
    device, names = call.query.device, (*(c.name for c in contenders), baseline.name)
    verdict = compare(_part(call), kind, contenders, baseline, limits)
    file = _file(device, torch.get_num_threads())
    _known[file, _key(kind, names)] = verdict
    if not verdict.doubt:
        measured.add(file, _key(kind, names), asdict(verdict))
    return verdict


def compare(
    call: Call, kind: str, contenders: list[Contender], baseline: Contender,
    limits: dict[str, float],
) -> Verdict:  # fmt: skip
    """Return who computes a call fastest among those that may.

    ``limits``: relative L1 error that each precision may have, "full" among them; what is further
    off, or of a precision that is not among them, is not used.
    """
    device = call.query.device
    with torch.autocast(device.type, enabled=False):
        sample = check.sample(_narrowed(call, MOST_HEADS).wide(), ROWS)
    verdict = Verdict(kind, (baseline.name,), {baseline.name: "full"})
    least = bytes_taken(lambda: baseline.run(call), device)
    usual = sum(x.numel() * x.element_size() for x in (call.query, call.key, call.value))
    most = least + max(MEMORY * usual, LEAST_MEMORY)
    able = []
    for one in contenders:
        if why := _tested(one, call, sample, limits, most, verdict):
            verdict.why_not[one.name] = why
        else:
            able.append(one)
    return _timed(verdict, call, [*able, baseline]) if able else verdict


def _tested(
    one: Contender, call: Call, sample: check.Sample, limits: dict[str, float], most: float,
    verdict: Verdict,
) -> str:  # fmt: skip
    """Note a contender's error and the precision it has; return why it is out, or ""."""
    if one.claim in CLASSES and one.claim not in limits:
        return f"it is {one.claim}, which the plan does not allow"
    copy = replace(
        call, **{name: getattr(call, name).clone() for name in ("query", "key", "value")}
    )
    out: list[Tensor] = []
    try:
        memory = bytes_taken(lambda: out.append(one.run(copy)), call.query.device)
    except Exception as error:
        return f"failed: {described(error)}"
    for name in ("query", "key", "value"):
        if not torch.equal(_bits(getattr(copy, name)), _bits(getattr(call, name))):
            return f"it changes the {name} it is given"
    if out[0].shape != (*call.query.shape[:-1], call.value.shape[-1]):
        return f"its result has shape {tuple(out[0].shape)}"
    if out[0].dtype != call.query.dtype:
        return f"its result is {str(out[0].dtype).removeprefix('torch.')}"
    if not finite(out[0]):
        return "its result is not finite"
    batch, heads = sample.exact.shape[:2]
    off, _ = sample.error(out[0][:batch, :heads])
    verdict.errors[one.name] = off
    if memory > most:
        return f"it takes {memory / 2**20:.0f} MiB of scratch memory, at most {most / 2**20:.0f}"
    known = CLASSES.index(one.claim) if one.claim in CLASSES else 0
    for precision in CLASSES[known:]:
        if precision in limits and off <= limits[precision]:
            verdict.ran[one.name] = precision
            return ""
    return f"error {off:.3g} on sampled rows, over the limit of {max(limits.values()):g}"


def _timed(verdict: Verdict, call: Call, able: list[Contender]) -> Verdict:
    """Time contenders in alternation, the baseline last, and put the fast ones in order."""
    device = call.query.device
    jobs: list[Callable[[], object]] = [partial(one.run, call) for one in able]
    times = measured.turns(jobs, device, 1)
    each = sum(t[0] for t in times) / 1e3
    most = min(max(int(SECONDS / max(each, 1e-6)), ROUNDS[0]), ROUNDS[1])
    if each < 4 * SECONDS:
        burst = max(1, min(16, int(SECONDS / 10 / max(each, 1e-6) / most)))
        times = measured.turns(jobs, device, most, burst)
    middle = [statistics.median(t) for t in times]
    doubts = [measured.busy(t, times[-1]) for t in times[:-1]] if len(times[0]) > 1 else [""]
    verdict.milliseconds.update({one.name: t for one, t in zip(able, middle, strict=True)})
    ranked = sorted((t, one.name) for t, one in zip(middle[:-1], able[:-1], strict=True))
    fast = [name for t, name in ranked if middle[-1] >= measured.MIN_GAIN * t]
    for t, name in ranked:
        if name not in fast:
            gain = middle[-1] / max(t, 1e-9)
            why = f"{able[-1].name} is faster on this machine: measured {gain:.2f}x"
            verdict.why_not[name] = why
    return replace(verdict, order=(*fast, able[-1].name), doubt=next(filter(None, doubts), ""))


def _part(call: Call) -> Call:
    """Return a call on the CPU with as many heads as can be tried in seconds."""
    q, k, v = call.query, call.key, call.value
    work = 2.0 * k.shape[2] * q.shape[2] * (q.shape[-1] + v.shape[-1])
    heads = max(int(MOST_WORK / max(work, 1.0)), torch.get_num_threads())
    whole = q.device.type != "cpu" or heads >= q.shape[0] * q.shape[1]
    return call if whole else _narrowed(call, heads)


def _narrowed(call: Call, heads: int) -> Call:
    """Return the first heads of a call's first sample; all where several share keys."""
    q, k, v, mask = call.query, call.key, call.value, call.attn_mask
    if q.shape[1] != k.shape[1]:
        return call
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])[:1, :heads]
    q, k, v = (x[:1, :heads] for x in (q, k, v))
    return replace(call, query=q, key=k, value=v, attn_mask=mask)


def _bits(x: Tensor) -> Tensor:
    """Return a tensor's memory as integers, in which NaN equals itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _key(kind: str, names: tuple[str, ...]) -> str:
    return f"{kind} | {' '.join(names)}"


@cache
def _file(device: torch.device, threads: int) -> Path:
    import diffusers

    also = f" diffusers {diffusers.__version__}{_packages()}"
    code = ("attention*.py", "shared_keys.py", "cpu/attention.py", "gpu/attention.py")
    return measured.times_file("attention", device, threads, (*code, Path(__file__)), also)


def _packages() -> str:
    """Return the versions of the packages that have attention and are installed."""
    found = ""
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found += f" {name} {version(name)}"
    return found
