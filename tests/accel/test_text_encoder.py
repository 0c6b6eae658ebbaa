"""Attention of a real text encoder, captured live: error of each precision, and the guard on it.

The encoder is transformers' ``UMT5EncoderModel`` of the embedded pipeline, trained. Its calls are
what random numbers are not: no scale, a learned bias on positions that differs by head, and most
keys masked as padding.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accel import AttentionConfig
from accel.attention.call import Call, compare
from accel.attention.site import Site
from accel.kernels.attention import attention
from accel.kernels.dispatch import ATTENTION, resolve
from accel.pipelines.load import load
from accel.reporting import site_report

SHORT = "a white square and a green triangle on a mottled grey background"
LONG = " and ".join(
    f"a {color} {shape} on a {texture} {ground} background"
    for color, ground in (("red", "blue"), ("yellow", "purple"), ("white", "green"))
    for shape in ("circle", "crescent", "triangle")
    for texture in ("striped", "dotted", "cloudy")
)
LENGTH = 256  # tokens; the short prompt is padded to it, as pipelines pad prompts
LIMITS = {"int8": 0.02, "int6": 0.04, "int4": 0.16}  # relative L1 on N(0, 1), as in the README


class State:
    """A run that never ends."""

    run, step, steps, sigma = 0, 0, 10, 1.0

    def refresh(self):
        return 0


@pytest.fixture(scope="module")
def calls():
    """Arguments of every attention call of the encoder while the pipeline encodes prompts."""
    pipe, real, found = load("tiny"), F.scaled_dot_product_attention, []

    def capture(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                enable_gqa=False):  # fmt: skip
        found.append((query, key, value, attn_mask, is_causal, scale, enable_gqa))
        return real(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", capture)
        pipe.encode_prompt([LONG, SHORT], [SHORT, LONG], True, max_sequence_length=LENGTH)
    return found


def usable():
    """Implementations that can run here."""
    found = ["reference"]
    try:
        found.append(resolve(ATTENTION, "cpu", torch.device("cpu")))
    except RuntimeError:
        assert not torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return found


def test_what_was_captured_is_the_encoders(calls):
    encoder = load("tiny").text_encoder
    assert type(encoder).__module__.startswith("transformers.")
    assert len(calls) == 2 * encoder.config.num_layers  # with the prompts and without
    for query, key, _, mask, causal, scale, _ in calls:
        assert query.shape == (2, encoder.config.num_heads, LENGTH, encoder.config.d_kv)
        assert key.shape == query.shape and scale == 1.0 and not causal
        assert mask.shape[1:] == (encoder.config.num_heads, LENGTH, LENGTH)
        assert (mask[0, :, 0, -1] < -1e30).all()  # padding
        assert mask[0, :, 0, :2].diff(dim=0).abs().max() > 0.01  # the bias differs by head
    assert float((calls[0][0] - calls[0][0].mean((0, 2))[None, :, None]).std()) > 0.1


def test_error_of_each_precision_on_live_calls(calls):
    for impl in usable():
        for number, (q, k, v, mask, _, scale, _) in enumerate(calls):
            exact = F.scaled_dot_product_attention(
                *(t.double() for t in (q, k, v)), attn_mask=mask.double(), scale=scale
            )
            errors = {
                p: compare(
                    attention(q, k, v, precision=p, impl=impl, attn_mask=mask, scale=scale), exact
                )[0]
                for p in LIMITS
            }
            assert errors["int8"] < errors["int6"] < errors["int4"], (impl, number, errors)
            assert all(errors[p] < LIMITS[p] for p in LIMITS), (impl, number, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_guard_lets_live_calls_through_and_catches_worse(calls, dtype):
    for number, (*tensors, mask, causal, scale, gqa) in enumerate(calls):
        q, k, v = (t.to(dtype) for t in tensors)
        least = torch.finfo(dtype).min
        arguments = (q, k, v, mask.clamp_min(least).to(dtype), causal, scale, gqa)
        exact = Call(*arguments).full()
        site = Site(f"block.{number}", AttentionConfig("int8", impl="reference"), State())
        out, report = site.attend(*arguments), site_report(site)
        assert report.ran and not report.recomputed
        assert compare(out, exact)[0] < LIMITS["int8"]
        assert report.error < 1.5 * LIMITS["int8"]  # of the worst head
        strict = AttentionConfig("int4", impl="reference", max_error=1e-3)
        site = Site(f"block.{number}", strict, State())
        assert torch.equal(site.attend(*arguments), exact)
        (why,) = site_report(site).recomputed
        assert "int4 has error" in why and "over the limit of 0.001" in why


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 6e4])
def test_a_live_call_that_goes_wrong_stays_finite(calls, dtype, wrong):
    q, k, v, mask, *rest = calls[0]
    v = v.clone()
    v[0, 1, 2] = wrong
    site = Site("block.0", AttentionConfig("int8", impl="reference"), State())
    arguments = (q.to(dtype), k.to(dtype), v.to(dtype), mask.clamp_min(-6e4).to(dtype), *rest)
    first, second = site.attend(*arguments), site.attend(*arguments)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()
    report = site_report(site)
    assert bool(report.ran) != bool(report.recomputed)
    assert bool(report.recomputed) or wrong == 6e4
