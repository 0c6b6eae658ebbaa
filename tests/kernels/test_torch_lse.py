"""Log-sum-exp at full precision from torch's own kernel, against fp64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tensors import qkv

from accel.kernels import torch_lse
from accel.kernels.attention import attention
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.dispatch import decide


def exact(q, k, v, scale, mask, causal):
    """Output and log-sum-exp in fp64."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).double() for x in (k, v))
    logits = q.double() @ k.mT * scale
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, -math.inf)
            if mask.dtype is torch.bool
            else logits + mask.double()
        )
    if causal:
        keep = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        logits = logits.masked_fill(~keep, -math.inf)
    return logits.softmax(-1).nan_to_num() @ v, logits.logsumexp(-1)


def hidden_row(mask):
    mask[..., 3, :] = False if mask.dtype is torch.bool else -math.inf
    return mask


MASKS = {
    "none": lambda: None,
    "bool": lambda: hidden_row(torch.rand(2, 1, 37, 53) > 0.4),
    "additive": lambda: hidden_row(torch.randn(2, 4, 37, 53)),
    "keys": lambda: torch.randn(2, 1, 1, 53),
    "keys, bf16": lambda: torch.randn(2, 1, 1, 53).bfloat16(),
    "[Tk]": lambda: torch.rand(53) > 0.4,
    "three": lambda: torch.randn(4, 1, 53),
    "transposed": lambda: torch.randn(53, 37).mT,
    "expanded": lambda: torch.randn(2, 1, 1, 53).expand(2, 4, 37, 53),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_output_and_log_sum_exp_are_those_of_fp64(mask, causal, dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv(37, 53, 24, batch=2, heads=4, key_heads=2))
    mask = MASKS[mask]()
    given = {"attn_mask": mask, "is_causal": causal, "scale": 0.3}
    call = AttentionCall(q, k, v, mask, None, causal, 0.3, Options(return_lse=True))
    assert decide(call, "full", "auto").impl == "torch"
    out, lse = attention(q, k, v, precision="full", return_lse=True, enable_gqa=True, **given)
    wanted, wanted_lse = exact(q, k, v, 0.3, mask, causal)
    assert out.dtype is dtype and lse.dtype is torch.float32 and lse.is_contiguous()
    bound = 1e-5 if dtype is torch.float32 else 8 * torch.finfo(dtype).eps
    assert float((out.double() - wanted).abs().max()) < bound
    empty = wanted_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    assert float((lse - wanted_lse)[~empty].abs().max()) < 1e-3
    assert not out[empty].any()


@pytest.mark.parametrize("layout", ["[B, T, H, D]", "transposed", "every other"])
def test_any_strides_are_read(layout) -> None:
    """Torch's kernel reads the last dimension as dense, and gives wrong numbers if it is not."""
    makes = {
        "[B, T, H, D]": lambda: torch.randn(1, 40, 2, 16).transpose(1, 2),
        "transposed": lambda: torch.randn(1, 2, 16, 40).mT,
        "every other": lambda: torch.randn(1, 2, 40, 32)[..., ::2],
    }
    q, k, v = (makes[layout]() for _ in range(3))
    out, lse = attention(q, k, v, precision="full", return_lse=True)
    wanted, wanted_lse = exact(q, k, v, 0.25, None, False)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-5, rtol=1e-5)


def test_what_torch_does_not_take_stays_with_the_reference() -> None:
    q, k, v = qkv(20, 30, 16)
    empty = q[:, :, :0], k, v
    for given, why in (
        ((q, k, v[..., :8]), "values of 8 channels beside queries of 16"),
        ((q.double(), k.double(), v.double()), "dtype float64"),
        (empty, "a tensor without elements"),
    ):
        call = AttentionCall(*given, options=Options(return_lse=True))
        assert torch_lse.why_not(call) == why
        assert decide(call, "full", "auto").impl == "reference"
        out, lse = attention(*given, precision="full", return_lse=True)
        wanted, wanted_lse = exact(*given, given[0].shape[-1] ** -0.5, None, False)
        torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-5, rtol=1e-5)


def test_a_call_with_log_sum_exp_has_no_gradient_and_says_so() -> None:
    """Its log-sum-exp would have none, silently."""
    q, k, v = qkv(20, 30, 16)
    out, _ = attention(q.requires_grad_(), k, v, precision="full", return_lse=True)
    with pytest.raises(RuntimeError, match="autograd"):
        out.sum().backward()
