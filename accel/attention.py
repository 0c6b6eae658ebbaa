"""The seam to diffusers' attention: one replaced function, and hooks that say which module is
calling.

``torch.nn.functional.scaled_dot_product_attention`` is replaced once, reference-counted. Forward
hooks on a denoiser and on its attention modules set the number of the calling site; with no site
set the original runs, so text encoders, VAEs and pipelines that are not patched are untouched. This
sees every processor and every block that calls torch's attention, needs no copy of either, and
traces under ``torch.compile(fullgraph=True)``: a site's call is one opaque op whose decisions
(precision of the step, fallback, finite guard, counting) are taken at run time, so a changed
precision does not recompile.

Sites are followed per thread in eager code. Code under ``torch.compile`` uses one plain variable
instead, which Dynamo folds into the graph.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accel import precision as policy
from accel.config import AttentionConfig
from accel.kernels.attention import attention
from accel.kernels.dispatch import ATTENTION, resolve
from accel.state import RunState

Undo = Callable[[], None]

_numbers = itertools.count()
_sites: dict[int, Site] = {}
_by_thread: dict[int, int] = {}
_traced = [-1]
_original: Callable[..., Tensor] | None = None
_users = 0
_lock = threading.Lock()


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


# -------------------------------------------------------------------------------------------- Hook


def _enter(number: int) -> int:
    """Make ``number`` the calling site of this thread; returns the one before."""
    if torch.compiler.is_compiling():
        before, _traced[0] = _traced[0], number
        return before
    thread = threading.get_ident()
    before = _by_thread.get(thread, -1)
    if number < 0:
        _by_thread.pop(thread, None)
    else:
        _by_thread[thread] = number
    return before


def _current() -> int:
    if torch.compiler.is_compiling():
        return _traced[0]
    return _by_thread.get(threading.get_ident(), _traced[0])


def hook_site(module: nn.Module, site: Site, undo: list[Undo]) -> None:
    """Set ``site`` while ``module`` runs, also when it raises; what was set before comes back
    after.
    """
    number = next(_numbers)
    stack: list[int] = []
    _sites[number] = site

    def before(module: nn.Module, args: Any) -> None:
        stack.append(_enter(number))
        if not torch.compiler.is_compiling():
            site.entered += 1

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if stack:
            _enter(stack.pop())

    handles = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()
        _sites.pop(number, None)

    undo.append(remove)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stands in for torch's scaled_dot_product_attention; same arguments."""
    assert _original is not None
    number = _current()
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if number < 0 or training or dropout_p > 0.0:
        if number >= 0 and not torch.compiler.is_compiling() and number in _sites:
            _sites[number].record.kept["needs gradients" if training else "dropout"] += 1
        return _original(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal,
            scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
    return torch.ops.accel.site_attention(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, number
    )


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
    """Attention of one site, query [..., Tq, D], key [..., Tk, D], value [..., Tk, Dv]; contiguous."""

    def full(rows: Tensor, mask: Tensor | None) -> Tensor:
        assert _original is not None
        return _original(
            rows, key, value, attn_mask=mask, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip

    site = _sites.get(number)
    if site is None:  # a compiled graph that outlived its patch
        return _owned(full(query, attn_mask), query)
    record = site.record
    reason = _why_full(site, query, key, value, attn_mask)
    if reason:
        record.kept[reason] += 1
        return _owned(full(query, attn_mask), query)
    config, state = site.config, site.state
    assert config is not None
    run = state.refresh()
    chosen = policy.precision_at(config, site.name, state.step, state.steps)
    if chosen == "full" or site.demoted_run == run:
        record.kept["full precision by plan" if chosen == "full" else "demoted: non-finite"] += 1
        return _owned(full(query, attn_mask), query)
    start = time.perf_counter()
    out = attention(
        query, key, value, precision=chosen, impl=config.impl, attn_mask=attn_mask,
        is_causal=is_causal, scale=scale, enable_gqa=enable_gqa, smooth_q=config.smooth_q,
        smooth_v=config.smooth_v, hadamard=config.hadamard,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    record.seconds += time.perf_counter() - start
    if not torch.isfinite(out).all():
        record.recomputed += 1
        site.demoted_run = run
        return _owned(full(query, attn_mask), query)
    record.ran[(chosen, resolve(ATTENTION, config.impl, query.device))] += 1
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


def _why_full(
    site: Site, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None
) -> str:
    """Reason to keep a call at full precision whatever the plan says, or ""."""
    if site.config is None:
        return "not inside an attention module accel knows"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        return f"{query.dim()} dimensions, need [B, H, T, D]"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {query.dtype}"
    if key.shape[-2] < site.config.min_keys:
        return f"fewer than {site.config.min_keys} keys"
    return ""


def _compare(
    record: Record,
    out: Tensor,
    query: Tensor,
    attn_mask: Tensor | None,
    rows: int,
    full: Callable[[Tensor, Tensor | None], Tensor],
) -> None:
    """Worst relative L1 and cosine of ``out`` against full precision on evenly spread query rows."""
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


def _install() -> None:
    global _original, _users
    with _lock:
        functional = torch.nn.functional
        if functional.scaled_dot_product_attention is not _sdpa:
            _original = functional.scaled_dot_product_attention
            functional.scaled_dot_product_attention = _sdpa  # type: ignore[assignment]
        _users += 1


def _uninstall() -> None:
    global _users
    with _lock:
        _users -= 1
        # Somebody may have replaced the function after us and may hold ours: then ours stays behind
        # theirs, where it passes every call through.
        if _users == 0 and torch.nn.functional.scaled_dot_product_attention is _sdpa:
            torch.nn.functional.scaled_dot_product_attention = _original  # type: ignore[assignment]


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
    _install()
    undo.append(_uninstall)
    sites = {"": Site("", None, state)}
    hook_site(denoiser, sites[""], undo)
    for name, module in modules.items():
        sites[name] = Site(name, config, state, note=_use_native_backend(module, undo))
        hook_site(module, sites[name], undo)
    return sites
