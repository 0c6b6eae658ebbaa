"""Quantized attention in a model: every attention call of a denoiser, decided at run time.

Config is ``AttentionConfig``, State the record of each site, Hook the op that stands behind the
seam (``accel/seam.py``), and ``apply`` puts a denoiser's attention modules there. The op takes the
precision from the policy for the current step, keeps calls it cannot quantize at full precision
with a reason, compares sampled rows of each site's first call in a run with full precision, and
recomputes a non-finite result.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from accel import precision as policy
from accel import seam
from accel.config import AttentionConfig
from accel.kernels.attention import BITS
from accel.kernels.attention import run as run_attention
from accel.kernels.cpu.attention import scratch_bytes
from accel.kernels.dispatch import ATTENTION, resolve, why_not_worth
from accel.seam import Undo
from accel.state import RunState

# ------------------------------------------------------------------------------------------- State


@dataclass
class Record:
    """What happened at one site, over all runs since patching.

    ``kept`` counts calls left at full precision by reason; ``error`` is the worst relative L1 and
    ``cosine`` the worst similarity to full precision on the sampled rows.
    """

    ran: Counter[tuple[str, str]] = field(default_factory=Counter)  # (precision, implementation)
    kept: Counter[str] = field(default_factory=Counter)
    recomputed: int = 0
    error: float | None = None
    cosine: float | None = None
    seconds: float = 0.0
    scratch_bytes: int = 0  # memory of one call beside inputs and result, where it is known


@dataclass
class Site:
    """One attention module (or a denoiser itself, ``config`` None) and its record.

    ``demoted``: a non-finite result was seen, the site stays at full precision for the rest of the
    run.
    """

    name: str
    config: AttentionConfig | None
    state: RunState
    note: str = ""
    record: Record = field(default_factory=Record)
    entered: int = 0
    checked_run: int = -1
    demoted_run: int = -1

    def enter(self) -> None:
        """The module was called."""
        self.entered += 1

    def keep(self, reason: str) -> None:
        """Count a call left at full precision."""
        self.record.kept[reason] += 1


# -------------------------------------------------------------------------------------------- Hook


@torch.library.custom_op("accel::site_attention", mutates_args=())
def _site_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    number: int,
) -> Tensor:
    """Attention of one site: query [..., Tq, D], key [..., Tk, D], value [..., Tk, Dv]."""

    def full(rows: Tensor, mask: Tensor | None) -> Tensor:
        return seam.original()(
            rows, key, value, attn_mask=mask, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip

    site: Site | None = seam.caller(number)
    if site is None:  # a compiled graph that outlived its patch
        return _owned(full(query, attn_mask), query)
    record = site.record
    reason = _why_full(site, query, key, value, enable_gqa)
    if reason:
        site.keep(reason)
        return _owned(full(query, attn_mask), query)
    config, state = site.config, site.state
    assert config is not None
    run = state.refresh()
    chosen = policy.precision_at(config, site.name, state.step, state.steps)
    if chosen == "full" or site.demoted_run == run:
        site.keep("full precision by plan" if chosen == "full" else "demoted: non-finite")
        return _owned(full(query, attn_mask), query)
    start = time.perf_counter()
    impl = resolve(ATTENTION, config.impl, query.device)
    out, _ = run_attention(
        query, key, value, chosen, impl, attn_mask, None, is_causal,
        query.shape[-1] ** -0.5 if scale is None else scale,
        config.smooth_q, config.smooth_v, config.hadamard, False,
    )  # fmt: skip
    record.seconds += time.perf_counter() - start
    if not torch.isfinite(out).all():
        record.recomputed += 1
        site.demoted_run = run
        return _owned(full(query, attn_mask), query)
    record.ran[(chosen, impl)] += 1
    if impl == "cpu":
        record.scratch_bytes = max(
            record.scratch_bytes, scratch_bytes(query, key, value, BITS[chosen])
        )
    if config.check_rows and site.checked_run != run and not is_causal:
        site.checked_run = run
        _compare(record, out, query, attn_mask, config.check_rows, full)
    return out


@_site_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    number: int,
) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _owned(out: Tensor, query: Tensor) -> Tensor:
    """An op's result must be contiguous and must not alias an input."""
    return out.contiguous() if out.data_ptr() != query.data_ptr() else out.clone()


def _why_full(site: Site, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> str:
    """Reason to keep a call at full precision whatever the plan says, or ""."""
    if site.config is None:
        return "not inside an attention module accel knows"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        return f"{query.dim()} dimensions, need [B, H, T, D]"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {query.dtype}"
    same_heads = query.shape[1] == key.shape[1] or (
        enable_gqa and query.shape[1] % max(1, key.shape[1]) == 0
    )
    if query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3] or not same_heads:
        return "shapes that broadcast"
    if site.config.impl == "auto":
        return why_not_worth(query.device, query.shape[2], key.shape[2])
    return ""


def _compare(
    record: Record,
    out: Tensor,
    query: Tensor,
    attn_mask: Tensor | None,
    rows: int,
    full: Callable[[Tensor, Tensor | None], Tensor],
) -> None:
    """Relative L1 and cosine of ``out`` against full precision on evenly spread query rows."""
    tokens = query.shape[-2]
    index = torch.linspace(0, tokens - 1, min(rows, tokens), device=query.device).long()
    mask = attn_mask
    if mask is not None and mask.dim() > 1 and mask.shape[-2] == tokens and tokens > 1:
        mask = mask[..., index, :]
    exact = full(query[..., index, :], mask).double()
    mine = out[..., index, :].double()
    error = float((mine - exact).abs().sum() / exact.abs().sum().clamp_min(1e-30))
    norms = (mine.square().sum() * exact.square().sum()).sqrt().clamp_min(1e-30)
    cosine = float((mine * exact).sum() / norms)
    record.error = error if record.error is None else max(record.error, error)
    record.cosine = cosine if record.cosine is None else min(record.cosine, cosine)


# ------------------------------------------------------------------------------------------- apply


def _use_native_backend(module: nn.Module, undo: list[Undo]) -> str:
    """Point a processor at diffusers' native backend, the one that calls torch; "" or what was
    changed.
    """
    processor = getattr(module, "processor", None)
    if processor is None or not hasattr(processor, "_attention_backend"):
        return ""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    chosen = processor._attention_backend
    active = chosen if chosen is not None else _AttentionBackendRegistry._active_backend
    name = str(getattr(active, "value", active))
    if name == "native":
        return ""
    own = "_attention_backend" in vars(processor)
    processor._attention_backend = AttentionBackendName.NATIVE

    def restore() -> None:
        if own:
            processor._attention_backend = chosen
        else:
            del processor._attention_backend

    undo.append(restore)
    return f"diffusers backend {name!r} set aside while patched"


def apply(
    denoiser: nn.Module,
    modules: dict[str, nn.Module],
    config: AttentionConfig,
    state: RunState,
    undo: list[Undo],
) -> dict[str, Site]:
    """Put every attention module of ``denoiser`` behind the seam; returns its sites by name.

    The site "" stands for calls from the denoiser outside all of ``modules``. What has to be undone
    is appended to ``undo`` as it is done, so a failure midway can be unwound.
    """
    seam.install()
    undo.append(seam.uninstall)
    sites = {"": Site("", None, state)}
    seam.hook(denoiser, sites[""], undo)
    for name, module in modules.items():
        sites[name] = Site(name, config, state, note=_use_native_backend(module, undo))
        seam.hook(module, sites[name], undo)
    return sites
