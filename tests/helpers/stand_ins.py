"""Stand-ins for attention packages: torch's attention with a cost, an error or a fault.

They take the place of the packages' functions below diffusers' own backends, so diffusers' code
runs. Time is a sum of stated costs, so nothing depends on the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch as dispatch
from torch import Tensor

from accel.attention import sdpa, trial
from accel.kernels import measured

TORCHS = F.scaled_dot_product_attention  # as imported, before any test patches
NATIVE, OURS = 10.0, 5.0  # milliseconds of a call
Name = dispatch.AttentionBackendName


@dataclass
class StandIn:
    """Attention of one package.

    ``ms``: what a call costs. ``noise``: relative size of an error. ``fault``: "raises", "nan",
    "shape", "dtype", "writes" or "memory"; from call ``after`` on.
    """

    ms: float = 1.0
    noise: float = 0.0
    fault: str = ""
    after: int = 0
    calls: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: Any) -> Tensor:
        """Return attention of tensors [B, T, H, D]."""
        clock.spent += self.ms
        self.calls += 1
        fault = self.fault if self.calls > self.after else ""
        if fault == "raises":
            raise RuntimeError("CUDA error: no kernel image\nis available")
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out = TORCHS(*heads, is_causal=causal, scale=scale).transpose(1, 2)
        generator = torch.Generator().manual_seed(self.calls)
        off = torch.randn(out.shape, generator=generator, dtype=torch.float32)
        out = out + self.noise * out.abs().mean() * off.to(out.dtype)
        if fault == "nan":
            out[0, -1, 0, 0] = float("nan")
        if fault == "writes":
            k.sub_(k.mean(1, keepdim=True))
        if fault == "memory":
            torch.ones(300 * 2**18, dtype=torch.float32).sum()
        if fault == "shape":
            return out[:, :-1]
        return out.double() if fault == "dtype" else out


class Clock:
    """Time that passes by what calls cost."""

    spent = 0.0

    def __call__(self, job: Any, device: torch.device, burst: int) -> float:
        before = self.spent
        for _ in range(burst):
            job()
        return self.spent - before


clock = Clock()


def put_in(monkeypatch: pytest.MonkeyPatch, cache: Any, stand_ins: dict[str, StandIn]) -> None:
    """Make packages of these names of backends available, and measure into an empty cache."""
    registry = dispatch._AttentionBackendRegistry
    flags = {"sage": "SAGE_ATTN", "flash": "FLASH_ATTN", "_flash_3": "FLASH_ATTN_3"}
    for name, one in stand_ins.items():
        if name in flags:
            monkeypatch.setattr(dispatch, f"_CAN_USE_{flags[name]}", True)
        _stand_in(monkeypatch, name, one)
        # What diffusers asks for are cards.
        monkeypatch.setitem(registry._constraints, Name(name), [dispatch._check_shape])
    for name in ("sage_varlen", "flash_varlen", "_flash_varlen_3"):  # of the same packages
        for known in (registry._backends, registry._constraints, registry._supported_arg_names):
            monkeypatch.delitem(known, Name(name))
    for name in [n.value for n in registry._backends if n.value.startswith("_sage")]:
        monkeypatch.delitem(registry._backends, Name(name))
    # Choosing a backend for one model sets it for all others too.
    monkeypatch.setattr(registry, "_active_backend", Name.NATIVE)
    monkeypatch.setattr(measured, "_on_cpu", clock)
    monkeypatch.setattr(measured, "_load", lambda: 0.0)
    measure(monkeypatch, cache)


def measure(monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
    """Measure providers, into an empty cache."""
    monkeypatch.setenv("ACCEL_MEASURE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(trial, "_known", {})
    trial._file.cache_clear()


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, one: StandIn) -> None:
    def sage(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False):
        assert tensor_layout == "NHD" and not return_lse
        return one.attention(q, k, v, is_causal, sm_scale)

    def blackwell(q, k, v, is_causal=False):
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return one.attention(*heads_last, is_causal, None).transpose(1, 2)

    def flash(q, k, v, softmax_scale=None, causal=False, **_):
        return one.attention(q, k, v, causal, softmax_scale)

    def flash3(q, k, v, softmax_scale=None, causal=False):
        return one.attention(q, k, v, causal, softmax_scale), q.new_zeros(1)

    if name == "sage":
        monkeypatch.setattr(dispatch, "sageattn", sage)
    elif name == "flash":
        monkeypatch.setattr(dispatch, "flash_attn_func", flash, raising=False)
    elif name == "_flash_3":
        monkeypatch.setattr(dispatch, "_wrapped_flash_attn_3", flash3)
    else:
        kernel = {"sage_hub": sage, "sage_blackwell_hub": blackwell, "flash_4_hub": flash}[name]
        config = dispatch._HUB_KERNELS_REGISTRY[Name(name)]
        monkeypatch.setattr(config, "kernel_fn", None)
        real = dispatch._maybe_download_kernel_for_backend

        def fetched(backend: Any) -> None:
            if backend == Name(name):
                monkeypatch.setattr(config, "kernel_fn", kernel)
            else:
                real(backend)

        monkeypatch.setattr(dispatch, "_maybe_download_kernel_for_backend", fetched)


def costs(monkeypatch: pytest.MonkeyPatch, ours: float = OURS, native: float = NATIVE) -> None:
    """State what our kernel and torch's own choice cost."""
    from accel.attention import attention_table, site

    run = site.run_attention

    def run_ours(*given: Any) -> Any:
        clock.spent += ours
        return run(*given)

    def run_native(*args: Any, **kwargs: Any) -> Tensor:
        clock.spent += native
        return TORCHS(*args, **kwargs)

    monkeypatch.setattr(site, "run_attention", run_ours)
    monkeypatch.setattr(attention_table, "run", run_ours)
    monkeypatch.setattr(sdpa, "original", lambda: run_native)
