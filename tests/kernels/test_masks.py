"""Masks of an attention call: what torch makes of odd ones, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from accel.kernels.attention import attention
from accel.kernels.masks import unexpanded
from accel.kernels.reference_formats import SCALE_FLOOR

TOKENS = 160


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return q, k and v [2, 2, 160, 32]."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, TOKENS, 32, generator=random).to(dtype) for _ in range(3)]


def hidden(value: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return masks that write ``value`` where a key is hidden, for some rows everywhere."""
    entry = torch.zeros(2, 1, 1, TOKENS, dtype=dtype)
    entry[1] = value
    row = torch.zeros(TOKENS, TOKENS, dtype=dtype)
    row[5] = value
    padded = torch.zeros(2, 1, TOKENS, TOKENS, dtype=dtype)
    padded[..., 100:], padded[0, 0, 7] = value, value
    return {"entry": entry, "row": row, "row beside padding": padded}


@pytest.mark.parametrize("impl", ["cpu", "reference", "auto"])
@pytest.mark.parametrize("where", ["entry", "row", "row beside padding"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.finfo(torch.float32).min, torch.float32),
        (torch.finfo(torch.bfloat16).min, torch.bfloat16),
        (torch.finfo(torch.float16).min, torch.float16),
        (-1e4, torch.float32),
        (-1e9, torch.float32),
    ],
)
def test_a_row_of_lowest_numbers_is_a_mean_as_in_torch(
    impl: str, where: str, value: float, dtype: torch.dtype
) -> None:
    q, k, v = inputs(dtype)
    mask = hidden(value, dtype)[where]
    exact = sdpa(q, k, v, attn_mask=mask).float()
    out = attention(q, k, v, attn_mask=mask, impl=impl).float()  # type: ignore[union-attr, arg-type]
    for rows in (slice(None), slice(5, 6), slice(7, 8)):
        part, want = out[..., rows, :], exact[..., rows, :]
        assert (part - want).abs().sum() < 0.05 * want.abs().sum()


@pytest.mark.parametrize("impl", ["cpu", "reference", "auto"])
@pytest.mark.parametrize("columns", [slice(None), slice(0, 128), slice(130, None), slice(3, 4)])
def test_a_mask_that_is_not_a_number_takes_its_row(impl: str, columns: slice) -> None:
    q, k, v = inputs()
    mask = torch.zeros(TOKENS, TOKENS)
    mask[9, columns] = math.nan
    out = attention(q, k, v, attn_mask=mask, impl=impl)
    assert torch.isnan(out[..., 9, :]).all()  # type: ignore[call-overload]
    assert torch.isnan(out).any(-1).sum() == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["full", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_mask_is_not_rounded_to_the_queries(precision: str, dtype: torch.dtype) -> None:
    q, k, v = (x[:, :, :64] for x in inputs(dtype))
    mask = 500 + torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    exact = sdpa(q.double(), k.double(), v.double(), attn_mask=mask.double())
    out = attention(q, k, v, attn_mask=mask, precision=precision)  # type: ignore[arg-type]
    assert (out.double() - exact).abs().sum() < 0.01 * exact.abs().sum()  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_a_repeated_mask_is_read_where_it_lies(dtype: torch.dtype) -> None:
    mask = torch.ones(1, 1, 1, TOKENS).to(dtype)
    small = unexpanded(mask.expand(2, 2, TOKENS, TOKENS))
    assert small is not None and small.shape == mask.shape
    assert small.data_ptr() == mask.data_ptr()


@pytest.mark.parametrize("size", [1e-14, 1e-20, 1e-27])
def test_small_values_are_not_lost(size: float) -> None:
    q, k, v = inputs()
    assert size > SCALE_FLOOR
    exact = sdpa(q.double(), k.double(), v.double() * size)
    for impl in ("cpu", "reference"):
        out = attention(q, k, v * size, impl=impl)  # type: ignore[arg-type]
        assert (out.double() - exact).abs().sum() < 0.05 * exact.abs().sum()  # type: ignore[union-attr]


def test_a_graph_being_traced_gets_torchs_attention() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    q, k, v = inputs()
    traced = make_fx(lambda a, b, c: attention(a, b, c))(q, k, v)
    assert torch.allclose(traced(q + 1, k, v), sdpa(q + 1, k, v), atol=1e-5)
