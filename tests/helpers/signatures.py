"""Random signatures of an attention call: shapes, strides, dtypes, masks and flags, from a seed.

A call is made at a patched module, so it goes the whole way: the seam, the gate, the decision, the
kernel, the check. It is judged by attention in fp64 written out by hand, and by what torch does.
"""

from __future__ import annotations

import math
import random
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import AttentionConfig
from accel.attention.apply import apply_attention
from accel.attention.check import LIMITS
from accel.attention.site import Site

FULL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = tuple(FULL)
BITS = ("int8", "int6", "int4")


@dataclass
class Signature:
    """One call: its arguments, what a user's program does around it, and the plan's precision."""

    seed: int
    arguments: dict[str, Any]
    precision: str
    impl: str
    rows: int
    autocast: torch.dtype | None
    words: str


class Calls(nn.Module):
    """A denoiser with one attention module, which passes its arguments on to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()

    def forward(self, arguments: dict[str, Any]) -> Tensor:
        return self.attn(arguments)


class _Attention(nn.Module):
    def forward(self, arguments: dict[str, Any]) -> Tensor:
        return F.scaled_dot_product_attention(**arguments)


def signature(seed: int) -> Signature:
    """Return the call of this seed."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    odd = r.random() < 0.2  # sizes that no model has
    batch = r.choice((1, 1, 2, 3)) if not odd else r.choice((0, 1, 2))
    kv_heads = r.choice((1, 2, 3)) if not odd else r.choice((0, 1, 2))
    groups = r.choice((1, 1, 1, 2, 4))
    q_tokens = r.choice((1, 7, 64, 65, 130, 257)) if not odd else r.choice((0, 1, 2, 33))
    k_tokens = r.choice((q_tokens, q_tokens, 1, 77, 128, 200))
    dim = r.choice((16, 32, 40, 64, 72, 96, 128)) if not odd else r.choice((0, 1, 3, 8, 130, 256))
    value_dim = dim if r.random() < 0.85 else r.choice((1, 8, 24, 64))
    dtype = r.choice((torch.float32,) * 4 + (torch.bfloat16,) * 3 + (torch.float16, torch.float64))
    size = r.choice((1.0, 1.0, 1.0, 0.01, 3.0, 1e-6))
    mean = r.choice((0.0, 0.0, 0.0, 1.0, 5.0))
    heads = kv_heads * groups
    layouts, tensors = [], []
    for name, shape, scaled in (
        ("q", (batch, heads, q_tokens, dim), False), ("k", (batch, kv_heads, k_tokens, dim), False),
        ("v", (batch, kv_heads, k_tokens, value_dim), True),
    ):  # fmt: skip
        layout = r.choice(("dense", "dense", "tokens first", "packed", "strided", "expanded"))
        kind = dtype if r.random() < 0.97 else r.choice(DTYPES)
        x = torch.randn(shape, generator=g, dtype=torch.float32)
        if name == "k":
            x = x + mean
        tensors.append(_laid_out((x * (size if scaled else 1.0)).to(kind), layout))
        layouts.append(f"{name} {layout}" + (f" {kind}" if kind is not dtype else ""))
    arguments: dict[str, Any] = dict(zip(("query", "key", "value"), tensors, strict=True))
    words = [f"{dtype}", f"{tuple(tensors[0].shape)} x {tuple(tensors[1].shape)}", *layouts]
    if groups > 1 or r.random() < 0.05:
        arguments["enable_gqa"] = True
    if r.random() < 0.15:
        arguments["is_causal"] = True
    if r.random() < 0.2:
        arguments["scale"] = r.choice((0.05, 0.3, 1.0, 0.0))
    if r.random() < 0.45 and ("is_causal" not in arguments or r.random() < 0.1):
        kind_of_mask, mask = _mask(r, g, (batch, heads, q_tokens, k_tokens), dtype)
        arguments["attn_mask"] = mask
        words.append(f"mask {kind_of_mask} {mask.dtype} {tuple(mask.shape)}")
    drop = r.random()
    if drop < 0.06:  # one dimension fewer or more
        for name in ("query", "key", "value"):
            x = arguments[name]
            arguments[name] = x[0] if drop < 0.03 and batch else x[None]
    return Signature(
        seed, arguments, r.choice(BITS), r.choice(("auto", "cpu", "cpu", "reference")),
        r.choice((0, 64, 64)),
        r.choice((None,) * 8 + (torch.bfloat16, torch.float16)), ", ".join(words),
    )  # fmt: skip


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """Return ``x`` [B, H, T, D] with other strides."""
    if layout == "tokens first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "packed":  # one of three in a fused projection
        return torch.stack((x, x, x), dim=2)[:, :, 1]
    if layout == "strided":
        wide = torch.stack((x, x), dim=-1).flatten(-2)
        return wide[..., ::2]
    if layout == "expanded" and x.shape[1]:
        return x[:, :1].expand(x.shape)
    return x


def _mask(
    r: random.Random, g: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[str, Tensor]:
    """Return a random mask for logits of this shape, and its kind."""
    batch, heads, queries, keys = shape
    sizes = r.choice(((queries, keys), (batch, 1, 1, keys), (batch, 1, queries, keys),
                      (1, heads, queries, keys), (1, 1, queries, keys), (keys,),
                      (1, 1, queries, 1)))  # fmt: skip
    expand = r.random() < 0.2 and len(sizes) > 1
    kind = r.choice(("keys", "keys", "bias", "bias", "none", "lowest", "rows", "integers"))
    seen = torch.rand(sizes, generator=g, dtype=torch.float32) < 0.7
    if kind == "keys":
        mask = seen
    elif kind == "none":
        mask = torch.ones(sizes, dtype=torch.bool, device="cpu")
    elif kind == "rows":
        mask = seen.clone()
        if len(sizes) > 1 and mask.numel():
            mask[..., 0, :] = False
    elif kind == "integers":
        mask = seen.to(r.choice((torch.uint8, torch.int64)))
    else:
        own = r.choice((dtype, dtype, torch.float32))
        bias = torch.randn(sizes, generator=g, dtype=torch.float32) * r.choice((0.1, 2.0))
        low = -math.inf if kind == "bias" else torch.finfo(own).min
        mask = bias.to(own).masked_fill(~seen, low)
    if expand:
        mask = mask.expand(
            *(max(a, b) for a, b in zip(mask.shape, shape[-mask.dim() :], strict=True))
        )
    return kind + (" expanded" if expand else ""), mask


def by_hand(arguments: dict[str, Any]) -> Tensor:
    """Return the attention in fp64; a row that sees no key is zero."""
    q, k, v = (arguments[name].double() for name in ("query", "key", "value"))
    if arguments.get("enable_gqa"):
        k, v = (x.repeat_interleave(q.shape[-3] // max(x.shape[-3], 1), -3) for x in (k, v))
    scale = arguments.get("scale")
    logits = (q @ k.mT) * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale)
    mask = arguments.get("attn_mask")
    if arguments.get("is_causal"):
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device="cpu").tril()
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
        logits = logits + mask.double()
    top = logits.amax(-1, keepdim=True) if logits.shape[-1] else logits.sum(-1, keepdim=True)
    weights = (logits - top.masked_fill(top == -math.inf, 0.0)).exp()
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)) @ v


def error(out: Tensor, exact: Tensor) -> float:
    """Return the relative L1 error; infinite where one of them alone is not finite."""
    if out.shape != exact.shape:
        return math.inf
    good = torch.isfinite(exact)
    if not torch.equal(torch.isfinite(out), good):
        return math.inf
    wrong = (out.double() - exact)[good].abs().sum()
    return float(wrong / exact[good].abs().sum().clamp_min(1e-300))


def run(call: Signature) -> tuple[str, str]:
    """Make the call with and without us; returns what is wrong, or "", and what ran."""
    module = Calls()
    around = nullcontext() if call.autocast is None else torch.autocast("cpu", call.autocast)
    with torch.no_grad(), around:
        try:
            plain, raised = module(call.arguments), None
        except Exception as error:
            plain, raised = None, error
        config = AttentionConfig(call.precision, check_rows=call.rows, impl=call.impl)  # type: ignore[arg-type]
        state = SimpleNamespace(run=0, step=1, steps=10, sigma=0.5, refresh=lambda: 0)
        with ExitStack() as undo:
            sites = apply_attention(module, {"attn": module.attn}, config, state, undo)  # type: ignore[arg-type]
            try:
                ours, ours_raised = module(call.arguments), None
            except Exception as error:
                ours, ours_raised = None, error
    ran = _ran(sites["attn"])
    if raised is not None or ours_raised is not None:
        alike = type(raised) is type(ours_raised)
        return "" if alike else f"torch: {raised!r:.120}; with accel: {ours_raised!r:.120}", ran
    assert plain is not None and ours is not None
    return _judge(call, plain, ours, ran), ran


def _ran(site: Site) -> str:
    """Return the precision of the site's one result."""
    return next(iter(site.record.ran), ("full", ""))[0]


def _judge(call: Signature, plain: Tensor, ours: Tensor, ran: str) -> str:
    """Return what is wrong with a result, beside torch's, or ""."""
    if (ours.dtype, ours.shape) != (plain.dtype, plain.shape):
        return f"{ours.dtype} {tuple(ours.shape)}, torch {plain.dtype} {tuple(plain.shape)}"
    if not plain.numel() or not call.arguments["key"].numel():
        return "" if torch.equal(plain.isfinite(), ours.isfinite()) else "elements from nowhere"
    exact = by_hand(call.arguments)
    # Values that torch itself does not give are no standard: rows without a key, overflow.
    given = plain.isfinite().all(-1, keepdim=True) & exact.isfinite().all(-1, keepdim=True)
    mine, theirs, exact = (x.masked_fill(~given, 0.0) for x in (ours, plain, exact))
    most = 3 * max(error(theirs, exact), FULL[plain.dtype])
    if ran != "full":
        most = max(most, LIMITS[ran])
    wrong = error(mine, exact)
    if wrong <= most:
        return ""
    return f"{wrong:.4f} off in {ran}, at most {most:.4f}; torch is {error(theirs, exact):.4f} off"
