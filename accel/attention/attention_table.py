"""Attention of real models timed on this machine: torch, our kernels, and whatever is installed.

Inputs are N(0, 1). On the CPU a call has as many queries and heads as can be timed in seconds, all
its keys among them, since time grows with each of the three in proportion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.attention import check, trial
from accel.attention.call import Call
from accel.attention.providers import CLASSES, NATIVE, candidates
from accel.attention.trial import Contender, Verdict
from accel.config import AttentionConfig
from accel.kernels.attention import run
from accel.kernels.attention_call import Options
from accel.kernels.dispatch import PAYS_FROM, Decision, decide


@dataclass(frozen=True)
class Shape:
    """Self-attention of one model: [batch, heads, tokens, head size]."""

    model: str
    batch: int
    heads: int
    tokens: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.heads}x{self.tokens}x{self.size}"


# Tokens: pixels over the VAE's and the patch's factors, and the text where both are attended to.
SHAPES = (
    Shape("sd15 512x512", 2, 8, 4096, 40),
    Shape("sdxl 1024x1024, 64 channels", 2, 10, 4096, 64),
    Shape("sdxl 1024x1024, inner blocks", 2, 20, 1024, 64),
    Shape("sd3.5-large 1024x1024", 2, 38, 4429, 64),
    Shape("flux 1024x1024", 1, 24, 4608, 128),
    Shape("cogvideox-5b 720x480x49", 2, 48, 17776, 64),
    Shape("wan-1.3b 832x480x81", 1, 12, 32760, 128),
    Shape("wan-14b 1280x720x81", 1, 40, 75600, 128),
    Shape("hunyuanvideo 1280x720x129", 1, 24, 119056, 128),
)
WORK = 2e10  # operations of a call on the CPU
LEAST = 256  # queries of it


def timed(
    shapes: tuple[Shape, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield one row of plain values per shape.

    ``heads`` and ``queries`` are those that were timed; ``milliseconds``, ``gain`` over torch and
    relative L1 ``errors`` are by contender, and ``why_not`` says what was not timed, or lost.
    """
    for shape in shapes:
        call = _call(shape, dtype, device)
        verdict = _verdict(call, str(shape))
        gains = {name: verdict.gain(name) for name in verdict.milliseconds}
        yield {
            "model": shape.model, "shape": str(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "heads": call.query.shape[0] * call.query.shape[1], "queries": call.query.shape[2],
            "milliseconds": verdict.milliseconds, "gain": gains, "errors": verdict.errors,
            "why_not": verdict.why_not, "doubt": verdict.doubt,
        }  # fmt: skip


def _call(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    """Return a call of a shape, on the CPU a part of it."""
    batch, heads, queries = shape.batch, shape.heads, shape.tokens
    if device.type == "cpu":
        each = 4.0 * shape.tokens * shape.size  # operations of a query of one head
        batch, heads = 1, min(heads, max(torch.get_num_threads(), 2))
        queries = min(queries, max(LEAST, int(WORK / each / heads)))
    generator = torch.Generator(device).manual_seed(0)

    def normal(tokens: int) -> Tensor:
        size = (batch, heads, tokens, shape.size)
        x = torch.randn(size, generator=generator, dtype=torch.float32, device=device)
        return x.to(dtype)

    keys, values = normal(shape.tokens), normal(shape.tokens)
    return Call(normal(queries), keys, values, None, False, None, False)


def _verdict(call: Call, kind: str) -> Verdict:
    """Return what was found of a call among ours in each precision and what is installed."""
    others, reasons = candidates((), NATIVE, call.query.device)
    contenders = [Contender(p.name, p.claim, p.run) for p in others if not p.why_not(call)]
    for precision in CLASSES[1:]:
        decision = _decided(call, precision)
        if decision.precision != precision:
            reasons[f"accel {precision}"] = decision.why
            continue
        ours = partial(_ours, decision=decision)
        contenders.append(Contender(f"accel {precision}", precision, ours))
    limits = {p: check.limit(AttentionConfig(), p, call.query.dtype) for p in CLASSES}
    last = Contender(NATIVE, "full", Call.full)
    verdict = trial.compare(call, kind, contenders, last, limits)
    verdict.why_not.update(reasons)
    return verdict


def _decided(call: Call, precision: str) -> Decision:
    """Return what our kernels run, also where "auto" would leave the call to torch."""
    ours = call.for_kernels(Options())
    found = decide(ours, precision, "auto")
    if found.precision == "full" and call.query.is_cpu and PAYS_FROM not in found.why:
        with suppress(RuntimeError):
            return decide(ours, precision, "cpu")
    return found


def _ours(call: Call, decision: Any) -> Tensor:
    return run(call.for_kernels(Options()), decision)[0]
