"""Attention sites put into a denoiser: the op that stands behind the seam in graphs, and ``apply``.

A compiled graph calls one opaque op per attention call (``accel/attention/sdpa.py``); what runs is
decided by the site when the op runs. The op says so to CUDA graphs, which cannot record a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from accel.attention import sdpa
from accel.attention.baseline import Baseline
from accel.attention.call import Call
from accel.attention.providers import check_names
from accel.attention.site import Site
from accel.config import AttentionConfig
from accel.core.diffusers_providers import Chosen
from accel.core.run_state import RunState

# -------------------------------------------------------------------------------------------- Hook


@torch.library.custom_op(
    "accel::site_attention", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _site_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    label: Tensor,
) -> Tensor:
    """Return a site's call inside a compiled graph; eager code calls ``Site.attend`` itself."""
    arguments = (query, key, value, attn_mask, is_causal, scale, enable_gqa)
    site: Site | None = sdpa.caller(int(label))
    # A graph can outlive its patch; then there is no site any more.
    out = Call(*arguments).full() if site is None else site.attend(*arguments)
    # An op's result must be contiguous and must not alias an input.
    return out.clone() if out.data_ptr() == query.data_ptr() else out.contiguous()


@_site_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    label: Tensor,
) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


# ------------------------------------------------------------------------------------------- apply


def apply_attention(
    denoiser: nn.Module,
    modules: dict[str, nn.Module],
    config: AttentionConfig,
    state: RunState,
    undo: ExitStack,
    make: Callable[..., Site] = Site,
) -> dict[str, Site]:
    """Put every attention module of ``denoiser`` behind the seam and return its sites by name.

    Each site is made by ``make(name, config, state, note=..., baseline=...)``. The site "" stands
    for calls from the denoiser outside all of ``modules``. What has to be undone is put on
    ``undo`` as it is done, so a failure midway can be unwound.

    Raises ValueError for a provider of the plan that nothing here has.
    """
    if config.providers:
        check_names(config.providers)
    sdpa.install()
    undo.callback(sdpa.uninstall)
    sites = {"": Site("", None, state)}
    sdpa.hook(denoiser, sites[""], undo)
    for name, module in modules.items():
        baseline = Baseline(Chosen(module, undo))
        sites[name] = make(name, config, state, note=baseline.note, baseline=baseline)
        sdpa.hook(module, sites[name], undo)
    return sites
