"""What can run here and, if not, why; and what does run for one call of attention.

One frozen record per implementation, no side effects on import. ``decide`` is the only place that
chooses implementation, precision and tile of an attention call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from accel.kernels import measured, sparse, torch_lse
from accel.kernels.attention_call import AttentionCall, why_not_plain
from accel.kernels.cpu import attention as cpu
from accel.kernels.cpu import half_precision
from accel.kernels.cpu.native import library
from accel.kernels.gpu import support
from accel.kernels.gpu.layout import Tile
from accel.kernels.gpu.tuning import Choice

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Impl:
    """An implementation of an op; ``why_not(device)`` is "" where it runs, else the reason."""

    name: str
    description: str
    why_not: Callable[[torch.device], str]


def _always(device: torch.device) -> str:
    return ""


def _native(device: torch.device) -> str:
    if device.type != "cpu":
        return f"runs on cpu tensors only, got {device.type}"
    return library().reason


def _vectorized(device: torch.device) -> str:
    reason = _native(device)
    if not reason and library().isa == "scalar":
        return "this processor has no AVX2; the portable path is slower than torch"
    return reason


QUANTIZE = (
    Impl("cpu", "native rows quantizer", _native),
    Impl("reference", "eager torch", _always),
)
ATTENTION = (
    Impl("cpu", "native INT8, INT6 and INT4 attention", _vectorized),
    Impl("gpu", "Triton INT8 attention for tensor cores", support.why_not_gpu),
    Impl("reference", "eager torch, the specification; slower than SDPA", _always),
)
LINEAR = (
    Impl("cpu", "native INT8 linear layers", _vectorized),
    Impl("gpu", "Triton row quantizer and torch's 8-bit products", support.why_not_gpu),
    Impl("reference", "eager torch, the specification; slower than torch's layers", _always),
)
WARP = (
    Impl("cpu", "native noise warp", _native),
    Impl("gpu", "Triton noise warp", support.why_not_gpu),
    Impl("reference", "eager torch, the specification", _always),
)
FULL = (Impl("reference", "eager torch, the specification", _always),)


# Fewest keys, and fewest queries to share the packing of the keys, with which the native kernel
# beats torch, everything included; measured with AVX2 and with AVX-512-VNNI on two cores,
# heads of 40 to 256 (tests/bench/bench_attention.py --crossover).
CPU_MIN_KEYS = 128
CPU_MIN_QUERIES = 96
# Fewest keys from which packing can pay on a card: published kernels that pack in a pass of their
# own win from about 2,000 keys on (SageAttention on an L40). Above it the card is measured.
GPU_MIN_KEYS = 2048
PAYS_FROM = "quantized attention pays from"


def resolve(table: tuple[Impl, ...], impl: str, device: torch.device) -> str:
    """Return the name of the implementation to run: for "auto" the first available one.

    Raises ValueError for an unknown name and RuntimeError, with the reason and the alternatives,
    for one that cannot run here.
    """
    names = [entry.name for entry in table]
    if impl == "auto":
        return next(entry.name for entry in table if not entry.why_not(device))
    if impl not in names:
        raise ValueError(f"impl must be 'auto' or one of {names}, got {impl!r}")
    reason = next(entry for entry in table if entry.name == impl).why_not(device)
    if reason:
        others = [entry.name for entry in table if not entry.why_not(device)]
        raise RuntimeError(f"impl {impl!r} cannot run here: {reason}; available: {others}")
    return impl


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs for one attention call: taken once, by ``decide``, and handed on.

    ``impl``: a name in ``ATTENTION``, or "torch" for torch's own attention. ``precision`` is what
    runs for ``asked``, and ``why`` the reason where it is another one. ``tile``: how the kernel
    of a card is cut. ``kept_share``: see ``kernels/sparse.py``; 1 computes every block of keys.
    """

    asked: str
    precision: str
    impl: str
    why: str = ""
    tile: Tile | None = None
    kept_share: float = sparse.DENSE


def decide(call: AttentionCall, precision: str, impl: str, timed: bool = False) -> Decision:
    """Choose what runs for a call in ``precision`` with ``impl``, "auto" or a name.

    "auto" takes the fastest: torch's own attention at full precision where quantizing does not
    pay, and a more exact precision where the asked one has no fast kernel, never a less exact one.
    On a card the first call of a kind measures (``gpu/tuning.py``), and in half precision on some
    processors (``cpu/half_precision.py``), there not if the caller has ``timed`` such calls itself.

    Raises ValueError for an unknown ``impl``, and RuntimeError, with the reason and what can run
    instead, where a named one cannot run here as asked.
    """
    if impl == "auto":
        found = _full(call, precision, "") if precision == "full" else _fastest(call, precision)
        slow = "" if timed or found.impl != "cpu" else _why_not_half(call, precision)
        return _full(call, precision, slow) if slow else found
    device = call.q.device
    if precision == "full":
        return Decision(precision, precision, resolve(FULL, impl, device))
    name = resolve(ATTENTION, impl, device)
    if not (call.q.numel() and call.k.numel() and call.v.numel()):
        return _full(call, precision, "a tensor without elements")
    if name != "reference" and (why := _unreadable(call)):
        raise RuntimeError(f"impl {name!r} cannot run this call: {why}; use impl 'auto'")
    if name != "gpu":
        return Decision(precision, precision, name, kept_share=sparse.share(call))
    runs, why = _on_card(call, precision)
    if why:
        raise RuntimeError(f"precision {precision!r} cannot run on this card: {why}; use {runs!r}")
    return Decision(precision, runs, name, "", _choice(call, runs).tile)


def _fastest(call: AttentionCall, precision: str) -> Decision:
    """Return what "auto" runs.

    Where only the eager reference could quantize, that is torch's own attention: the reference is
    slower.
    """
    q = call.q
    if q.is_cpu:
        if missing := ATTENTION[0].why_not(CPU):
            return _full(call, precision, f"no fast quantized kernel here: {missing}")
        queries, keys = q.shape[2], call.k.shape[2]
        if keys >= CPU_MIN_KEYS and queries >= CPU_MIN_QUERIES:
            if why := _unreadable(call):
                return _full(call, precision, why)
            kept = sparse.share(call, sparse.MIN_TOKENS)
            return Decision(precision, precision, "cpu", kept_share=kept)
        return _too_short(precision, queries, keys, _in_full(call))
    if q.is_cuda:
        return _fastest_on_card(call, precision)
    return _full(call, precision, f"no quantized kernel for {q.device.type} in this version")


def _why_not_half(call: AttentionCall, precision: str) -> str:
    """Return why torch's own attention computes a call in half precision, or ""."""
    q = call.q
    if not half_precision.matrix_units(q.dtype) or not measured.measuring():
        return ""
    bits = int(precision.removeprefix("int"))

    def ours(a: Tensor, b: Tensor, v: Tensor) -> object:
        return cpu.attention(AttentionCall(a, b, v, options=call.options), bits, None)

    gained = half_precision.gain(q, call.v.shape[-1], call.k.shape[2], precision, ours)
    if gained >= measured.MIN_GAIN:
        return ""
    return f"torch's own attention is faster on this processor: measured {gained:.2f}x"


def _fastest_on_card(call: AttentionCall, precision: str) -> Decision:
    keys = call.k.shape[2]
    if missing := support.why_not_gpu(call.q.device):
        return _full(call, precision, f"no fast quantized kernel here: {missing}")
    if keys < GPU_MIN_KEYS:
        return _full(call, precision, f"{keys} keys, {PAYS_FROM} {GPU_MIN_KEYS} on")
    if unreadable := _unreadable(call):
        return _full(call, precision, unreadable)
    runs, why = _on_card(call, precision)
    choice = _choice(call, runs)
    if choice.why_not:
        return _full(call, precision, choice.why_not)
    return Decision(precision, runs, "gpu", why, choice.tile)


def _unreadable(call: AttentionCall) -> str:
    return why_not_plain(call.q, call.k, call.v, call.attn_mask)


def _full(call: AttentionCall, asked: str, why: str) -> Decision:
    return Decision(asked, "full", _in_full(call), why)


def _in_full(call: AttentionCall) -> str:
    """Return what computes a call at full precision: torch, if it gives what is asked for."""
    return "reference" if call.options.return_lse and torch_lse.why_not(call) else "torch"


@lru_cache
def _too_short(asked: str, queries: int, keys: int, impl: str) -> Decision:
    """Return full precision for a call on the CPU; kept, since it takes microseconds by itself."""
    few, least = (keys, CPU_MIN_KEYS) if keys < CPU_MIN_KEYS else (queries, CPU_MIN_QUERIES)
    name = "keys" if keys < CPU_MIN_KEYS else "queries"
    why = f"{few} {name}, {PAYS_FROM} {least} on"
    return Decision(asked, "full", impl, why)


def _on_card(call: AttentionCall, precision: str) -> tuple[str, str]:
    """Return the precision that a card runs for ``precision``, and why it differs, or ""."""
    cc = support.capability(call.q.device)
    why = support.why_not_precision(precision, cc, call.q.shape[-1])
    return ("int8", why) if why else (precision, "")


def _choice(call: AttentionCall, precision: str) -> Choice:
    from accel.kernels.gpu.attention import choose  # brings in Triton

    return choose(call, precision)


def environment() -> dict[str, str]:
    """Return what the report says of this machine: torch, devices, library, instruction set."""
    native = library()
    lines = {
        "torch": torch.__version__,
        "cpu": f"{torch.get_num_threads()} threads",
        "native library": native.isa if native.lib is not None else f"missing: {native.reason}",
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        lines["gpu"] = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        lines["gpu attention"] = support.describe((major, minor))
    else:
        lines["gpu"] = "none visible to torch"
    return lines
