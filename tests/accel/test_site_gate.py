"""What a site or the op must not read: everything that torch's dispatcher adds to plain memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention as plain

from accel import AttentionConfig
from accel.attention import Site
from accel.kernels.attention import attention
from accel.kernels.warp import warp_noise


def qkv(dtype: torch.dtype = torch.float32, tokens: int = 160, dim: int = 32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, tokens, dim, generator=g).to(dtype) for _ in range(3)]


def at_step() -> Any:
    return SimpleNamespace(run=0, step=3, steps=10, sigma=0.5, refresh=lambda: 0)


def site(rows: int = 64) -> Site:
    return Site("x", AttentionConfig("int8", check_rows=rows), at_step())


def attend(at: Site, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return at.attend(q, k, v, mask, False, None, False)


def near(out: Tensor, exact: Tensor, most: float = 0.04) -> None:
    assert out.dtype == exact.dtype and out.shape == exact.shape
    wrong = (out.double() - exact.double()).abs().sum() / exact.double().abs().sum()
    assert float(wrong) < most


@pytest.mark.parametrize("rows", [0, 64])
@pytest.mark.parametrize("low", [(2,), (0, 1), (1,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_what_differs_as_torch_does(rows, low, dtype):
    q, k, v = (x.to(dtype) if i in low else x for i, x in enumerate(qkv()))
    mask = torch.zeros(160, 160)
    at = site(rows)
    with torch.autocast("cpu", dtype):
        near(attend(at, q, k, v), plain(q, k, v))
        near(attend(at, q, k, v, mask), plain(q, k, v, mask))
    assert at.record.ran == {("int8", "cpu"): 2} and not at.record.recomputed


def test_dtypes_that_differ_are_left_to_torch():
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match="dtype"):
        attend(site(0), q, k, v.bfloat16())


def traced(q: Tensor, k: Tensor, v: Tensor, function: Callable[..., Tensor]) -> Any:
    graph = torch.jit.trace(function, (q, k, v), check_trace=False)
    return graph(q + 1, k, v)


def tangents(q: Tensor, k: Tensor, v: Tensor, function: Callable[..., Tensor]) -> Any:
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jvp(function, (q, k, v), (v, q, k))[1]


def mapped(q: Tensor, k: Tensor, v: Tensor, function: Callable[..., Tensor]) -> Any:
    return torch.func.vmap(function)(q[None], k[None], v[None])


def negated(q: Tensor, k: Tensor, v: Tensor, function: Callable[..., Tensor]) -> Any:
    view = torch.complex(q, q).conj().imag
    assert view.is_neg()
    return function(view, k, v)


class Tagged(Tensor):
    """A subclass whose memory the kernels know nothing of."""


def subclassed(q: Tensor, k: Tensor, v: Tensor, function: Callable[..., Tensor]) -> Any:
    return function(q, k.as_subclass(Tagged), v).as_subclass(Tensor)


WAYS = [traced, tangents, mapped, negated, subclassed]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_what_a_pointer_does_not_show_is_left_to_torch(way):
    at = site()
    exact = way(*qkv(), lambda q, k, v: plain(q, k, v))
    out = way(*qkv(), lambda q, k, v: attend(at, q, k, v))
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)
    assert not at.record.ran and sum(at.record.kept.values()) == 1
    out = way(*qkv(), lambda q, k, v: attention(q, k, v))
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)


def test_fake_tensors_give_a_shape():
    with FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(x) for x in qkv())
        out = attend(site(), q, k, v)
    assert out.shape == (2, 4, 160, 32) and type(out) is type(q)


def test_a_named_kernel_says_why_it_cannot_run():
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match=r"impl 'cpu' cannot run this call: .*hold its values"):
        attention(torch.complex(q, q).conj().imag, k, v, impl="cpu")
    with pytest.raises(RuntimeError, match="dtype float64"):
        attention(*(x.double() for x in (q, k, v)), impl="cpu")


SIZES = [
    ((2, 4, 0, 32), (2, 4, 160, 32), 32),
    ((2, 0, 160, 32), (2, 0, 160, 32), 32),
    ((0, 4, 160, 32), (0, 4, 160, 32), 32),
    ((2, 4, 160, 32), (2, 4, 160, 32), 0),
    ((2, 4, 160, 32), (2, 4, 0, 32), 32),
]


@pytest.mark.parametrize(("query", "key", "value_dim"), SIZES)
def test_sizes_of_zero_give_what_torch_gives(query, key, value_dim):
    q, k, v = torch.ones(query), torch.ones(key), torch.ones(*key[:3], value_dim)
    exact = plain(q, k, v)
    for out in (
        attend(site(), q, k, v),
        attention(q, k, v),
        attention(q, k, v, impl="cpu"),
        attention(q, k, v, return_lse=True)[0],
    ):
        torch.testing.assert_close(out, exact)


MASKS = [torch.ones(160, dtype=torch.int32).expand(160, 160), torch.ones(160), torch.zeros(())]


@pytest.mark.parametrize("mask", MASKS)
def test_masks_we_do_not_know_get_torchs_answer(mask):
    q, k, v = qkv()
    try:
        exact: Tensor | type = plain(q, k, v, mask)
    except (RuntimeError, IndexError) as error:
        exact = type(error)
    if isinstance(exact, Tensor):
        torch.testing.assert_close(attend(site(0), q, k, v, mask), exact)
    else:
        with pytest.raises(exact):
            attend(site(0), q, k, v, mask)


LAYOUTS = {
    "heads first": lambda x: x,
    "tokens first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "one projection": lambda x: torch.cat([x, x], 1).transpose(1, 2).contiguous()[:, :, :4]
    .transpose(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_lie_in_memory_as_torchs_do(layout, dtype):
    q, k, v = (LAYOUTS[layout](x) for x in qkv(dtype))
    exact = plain(q, k, v)
    for out in (
        attend(at := site(), q, k, v),
        attention(q, k, v, impl="cpu"),
        attention(q, k, v, precision="full"),
    ):
        near(out, exact)
        assert out.stride() == exact.stride()
    assert at.record.ran
    narrow = attention(q, k, v[..., :20], impl="cpu")
    near(narrow, exact[..., :20])
    assert (narrow.stride(1) < narrow.stride(2)) == (exact.stride(1) < exact.stride(2))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_programs_default_dtype_changes_nothing(default):
    q, k, v = qkv()
    exact, lse = attention(q, k, v, impl="cpu", return_lse=True)
    own, own_lse = attention(q, k, v, impl="reference", return_lse=True)
    flow = torch.full((2, 2, 12, 16), 0.4)
    noise = [warp_noise(flow, channels=2, seed=1, impl=i) for i in ("cpu", "reference")]
    torch.set_default_dtype(default)
    try:
        out, again = attention(q, k, v, impl="cpu", return_lse=True)
        assert torch.equal(out, exact) and torch.equal(again, lse)
        out, again = attention(q, k, v, impl="reference", return_lse=True)
        assert torch.equal(out, own) and torch.equal(again, own_lse)
        attend(at := site(), q, k, v)
        assert at.record.ran == {("int8", "cpu"): 1}
        for before, impl in zip(noise, ("cpu", "reference"), strict=True):
            assert torch.equal(warp_noise(flow, channels=2, seed=1, impl=impl), before)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_programs_default_device_changes_nothing():
    q, k, v = qkv()
    flow = torch.full((2, 2, 12, 16), 0.4)
    noise = warp_noise(flow, channels=2, seed=1)
    with torch.device("meta"):
        assert attention(q, k, v, impl="cpu").device.type == "cpu"
        attend(at := site(), q, k, v)
        again = warp_noise(flow, channels=2, seed=1)
    assert at.record.ran and torch.equal(again, noise)
