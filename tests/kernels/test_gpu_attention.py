"""The Triton attention against the eager quantized reference and fp64.

On the card where there is one. Without, in Triton's interpreter: that proves the arithmetic, and
what the compiler makes of it is ``test_gpu_compile``.
"""

from __future__ import annotations

import pytest
import torch
from helpers.card import DEVICE, WHY_NO_FP4, let_interpret
from helpers.gpu_checks import inputs, relative
from helpers.proofs import leading

pytest.importorskip("triton", reason="triton is not installed")

from accel.kernels import masks, reference, reference_formats
from accel.kernels.attention import attention as public
from accel.kernels.attention_call import AttentionCall, Options
from accel.kernels.gpu import support
from accel.kernels.gpu.attention import attention
from accel.kernels.gpu.layout import Tile, candidates

LENGTHS = (1, 63, 64, 65, 127, 129, 257)

needs_fp4 = pytest.mark.skipif(bool(WHY_NO_FP4), reason=WHY_NO_FP4)
FORMATS = ["e4m3", "fp16", pytest.param("e2m1", marks=needs_fp4)]


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    let_interpret(monkeypatch)


SWITCHES = ("smooth_q", "smooth_v", "hadamard", "return_lse")


def on_card(q, k, v, *, scale, mask=None, key_lengths=None, key_valid=None, is_causal=False,
            **options):  # fmt: skip
    """``attention`` of tensors on the CPU, on the device of these tests; results on the CPU."""
    q, k, v, mask, key_lengths, key_valid = (
        x if x is None or x.device == DEVICE else x.to(DEVICE)
        for x in (q, k, v, mask, key_lengths, key_valid)
    )
    how = Options(**{name: options.pop(name) for name in SWITCHES if name in options})
    call = AttentionCall(q, k, v, mask, key_lengths, is_causal, scale, how)
    out, lse = attention(call, key_valid=key_valid, **options)
    return out.cpu(), None if lse is None else lse.cpu()


def both(q, k, v, *, tile=None, values="e4m3", granularity="token", mask=None, lengths=None,
         causal=False, scale=None, **options):  # fmt: skip
    """(output, lse) of the kernel and of the quantized reference, and the fp64 result."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tile = tile or Tile(128, 64, 4, 2)
    masked = mask is not None or lengths is not None
    out = on_card(
        q, k, v, tile=tile, values=values, granularity=granularity, scale=scale, mask=mask,
        key_lengths=lengths, is_causal=causal, return_lse=True,
        key_valid=masks.valid_keys(mask, lengths, k) if masked else None, **options,
    )  # fmt: skip
    q, k, v = q.cpu(), k.cpu(), v.cpu()
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.repeat_interleave(group, 1) for x in (k, v))
    bias = masks.additive_mask(
        (*q.shape[:3], k.shape[2]), attn_mask=mask, key_lengths=lengths, is_causal=causal,
        device=q.device, dtype=torch.float64,
    )  # fmt: skip
    spec = reference.QuantSpec(
        values=values, granularity=granularity, block_k=tile.keys, **options,
    )  # fmt: skip
    expected = reference.quantized_attention(
        q, wide_k, wide_v, spec, scale=scale, mask=None if bias is None else bias.float(),
        valid=masks.seen_keys(mask, lengths, k),
    )  # fmt: skip
    exact, _ = reference.full_attention(
        q.double(), wide_k.double(), wide_v.double(), scale=scale, mask=bias
    )
    return out, expected, exact


def agree(out, expected, bound=5e-4):
    """A code on a rounding tie may fall to the other side; everything else is fp32 rounding."""
    assert out[0].isfinite().all() and out[0].shape == expected[0].shape
    assert relative(out[0], expected[0]) < bound
    finite = expected[1].isfinite()
    assert torch.equal(out[1].isfinite(), finite)
    assert not finite.any() or float((out[1] - expected[1])[finite].abs().max()) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("values", FORMATS)
@pytest.mark.parametrize("tokens", leading(2, LENGTHS))
def test_odd_lengths(tokens, values):
    for queries, keys in ((tokens, 257), (65, tokens)):
        out, expected, _ = both(*inputs(1, 2, queries, keys, 64, seed=tokens), values=values)
        agree(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("values", FORMATS)
@pytest.mark.parametrize("dim", [40, 64, 96, 128, 256])
def test_head_sizes(dim, values):
    tile = candidates(values, dim)[0]
    out, expected, _ = both(*inputs(1, 1, 65, 129, dim), values=values, tile=tile)
    agree(out, expected)
    out, expected, _ = both(*inputs(1, 1, 33, 70, dim, value_dim=48), values=values)
    agree(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [*candidates("e4m3", 128), Tile(128, 128, 8, 2)], ids=str)
def test_every_tile(tile):
    out, expected, _ = both(*inputs(1, 2, 200, 300, 64), tile=tile)
    agree(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["token", "thread", "block"])
def test_granularities(granularity):
    out, expected, _ = both(*inputs(1, 2, 257, 257, 64), granularity=granularity)
    agree(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"smooth_q": True}, {"smooth_v": True}, {"hadamard": True},
    {"smooth_q": True, "smooth_v": True, "hadamard": True},
], ids=lambda o: "+".join(o))  # fmt: skip
@pytest.mark.parametrize("dim", [64, 96])
def test_smoothing_and_rotation(options, dim):
    out, expected, _ = both(*inputs(1, 2, 300, 130, dim), tile=Tile(64, 64, 4, 2), **options)
    agree(out, expected)


MASKS = {
    "keys": lambda g: torch.rand(2, 1, 1, 190, generator=g) > 0.3,
    "full": lambda g: torch.rand(2, 2, 130, 190, generator=g) > 0.5,
    "additive": lambda g: torch.randn(130, 190, generator=g),
    "padding": lambda g: torch.where(torch.rand(2, 1, 1, 190, generator=g) > 0.5, 0.0, -10000.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("values", leading(1, FORMATS))
@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind, values):
    mask = MASKS[kind](torch.Generator().manual_seed(1))
    out, expected, _ = both(*inputs(2, 2, 130, 190, 64), mask=mask, values=values)
    agree(out, expected)


@pytest.mark.slow
def test_a_mask_with_rows_runs_in_narrow_tiles():
    """Beside such a mask a wide tile's logits do not fit in registers."""
    q, k, v = inputs(2, 2, 130, 190, 64)
    mask = MASKS["additive"](torch.Generator().manual_seed(1))
    wide, narrow = (
        on_card(q, k, v, tile=Tile(64, keys, 4, 3), values="e4m3", scale=0.125, mask=mask)[0]
        for keys in (128, 64)
    )
    assert torch.equal(wide, narrow)


def test_a_masked_row_gives_zeros_and_padding_may_hold_anything():
    q, k, v = inputs(1, 2, 130, 190, 64)
    mask = torch.ones(1, 1, 130, 190, dtype=torch.bool)
    mask[..., 100:] = False
    mask[:, :, 7] = False
    k[:, :, 100:], v[:, :, 100:] = torch.nan, torch.inf
    for options in ({}, {"smooth_q": True, "smooth_v": True}):
        out, lse = on_card(
            q, k, v, tile=Tile(128, 64, 4, 2), values="e4m3", scale=0.125, mask=mask,
            key_valid=masks.valid_keys(mask, None, k), return_lse=True, **options,
        )  # fmt: skip
        assert out.isfinite().all() and (out[:, :, 7] == 0).all()
        assert (lse[:, :, 7] == -torch.inf).all()


@pytest.mark.slow
@pytest.mark.parametrize("key_heads", leading(1, [2, 1, 4]))
def test_grouped_heads_causal_and_lengths(key_heads):
    tensors = inputs(2, 4, 140, 140, 64, key_heads=key_heads)
    agree(*both(*tensors, causal=True)[:2])
    for lengths in (torch.tensor([140, 70]), torch.tensor([0, 128])):
        agree(*both(*tensors, lengths=lengths, causal=key_heads == 2)[:2])


def test_scales():
    for scale in (1.0, 0.01, 0.0, -0.2):
        out, expected, _ = both(*inputs(1, 1, 65, 129, 64), scale=scale)
        agree(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    q, k, v = (x.to(dtype) for x in inputs(1, 2, 100, 129, 64))
    out, expected, _ = both(q, k, v, hadamard=True)
    assert out[0].dtype == dtype
    agree(out, expected, 2e-4 + torch.finfo(dtype).eps)


def test_strided_views_are_read_and_never_written():
    fused = torch.randn(1, 150, 3, 2, 64).to(DEVICE)
    q, k, v = fused.unbind(2)
    before = fused.clone()
    out, expected, _ = both(*(x.transpose(1, 2) for x in (q, k, v)))
    agree(out, expected)
    assert torch.equal(before, fused) and out[0].transpose(1, 2).is_contiguous()


def test_offsets_beyond_32_bits():
    """A view whose last token lies past element 2^31; most of its memory is never touched."""
    stride = 2**31 // 100
    raw = torch.empty(stride * 129 + 64, dtype=torch.float16, device=DEVICE)
    k = raw.as_strided((1, 1, 130, 64), (0, 0, stride, 1))
    q, small, v = inputs(1, 1, 33, 130, 64)
    k.copy_(small)
    assert k.storage_offset() + 129 * stride > 2**31
    out, expected, _ = both(q.half(), k, v.half())
    agree(out, expected, 2e-3)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_shows(which, poison):
    tensors = [x.clone() for x in inputs(1, 1, 40, 70, 64)]
    tensors[which][0, 0, 3, 5] = poison
    out, _ = on_card(*tensors, tile=Tile(128, 64, 4, 2), values="e4m3", scale=0.125)
    assert not out.isfinite().all(), "the guard above has to see it"


@pytest.mark.parametrize("values", FORMATS)
@pytest.mark.parametrize("case", ["zero", "equal keys", "loud values", "loud channel", "tiny"])
def test_hard_but_finite_inputs(case, values):
    q, k, v = (x.bfloat16() for x in inputs(1, 1, 40, 70, 64, bias=0))
    if case == "zero":
        q, k, v = q * 0, k * 0, v * 0
    elif case == "equal keys":
        k = k[:, :, :1].expand_as(k)
    elif case == "loud values":
        v = v * 1e5
    elif case == "loud channel":
        k[..., 3] *= 1e3
    else:
        q, k, v = q * 1e-20, k * 1e-20, v * 1e-20
    out, expected, exact = both(q, k, v, values=values)
    agree(out, expected, 1e-2)
    # A loud channel costs eight bits, and below the floor of the scales everything is zero.
    bound = 0.3 if values == "e2m1" else 0.06
    assert case in ("loud channel", "tiny") or relative(out[0], exact) < bound


# Relative L1 to fp64 on N(0, 1), 1024 x 64, measured with emulators by research on the papers'
# formulas; scales per thread and E4M3 or fp16 values.
@pytest.mark.slow
@pytest.mark.parametrize(("values", "granularity", "golden"), leading(1, [
    ("e4m3", "thread", 0.0383), ("fp16", "token", 0.0085), ("fp16", "block", 0.0128),
]))  # fmt: skip
def test_golden_errors(values, granularity, golden):
    q, k, v = inputs(1, 1, 1024, 1024, 64, bias=0)
    out, _, exact = both(q, k, v, values=values, granularity=granularity)
    assert 0.8 * golden < relative(out[0], exact) < 1.2 * golden


def test_four_bits_are_nvfp4_as_torch_would_round_them():
    """The reference's E2M1 against a search through all codes."""
    x = torch.randn(64, 48) * torch.logspace(-3, 3, 64)[:, None]
    values, scale = reference_formats.nvfp4(x, x.abs().amax(-1, keepdim=True))
    steps = (x / scale).unflatten(-1, (-1, 16)).abs().amax(-1) / 6
    steps = steps.to(torch.float8_e4m3fn).float().repeat_interleave(16, -1)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = torch.cat([grid, -grid]) * steps[..., None]
    nearest = (grid - (x / scale)[..., None]).abs().amin(-1)
    assert torch.allclose((values - x / scale).abs(), nearest, rtol=1e-5, atol=1e-4)


@needs_fp4
def test_the_error_of_four_bits():
    out, _, exact = both(*inputs(1, 1, 512, 512, 64, bias=0), values="e2m1", smooth_q=True)
    assert 0.1 < relative(out[0], exact) < 0.35


@pytest.mark.slow
def test_public_op_runs_it_by_name():
    q, k, v = (x.to(DEVICE) for x in inputs(1, 2, 100, 129, 64))
    out, lse = public(q, k, v, impl="gpu", return_lse=True)
    errors = []
    for keys in {tile.keys for tile in candidates("e4m3", 64)}:  # a card takes its fastest
        spec = reference.QuantSpec(values="e4m3", block_k=keys)
        expected = reference.quantized_attention(q.cpu(), k.cpu(), v.cpu(), spec, scale=0.125)[0]
        errors.append(relative(out.cpu(), expected))
    assert min(errors) < 2e-3
    compiled = torch.compile(
        lambda a, b, c: public(a, b, c, impl="gpu"), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, k, v), out) and lse.isfinite().all()
    if support.why_not_precision("int4", support.capability(DEVICE)):
        with pytest.raises(RuntimeError, match=r"int4.*use 'int8'"):
            public(q, k, v, impl="gpu", precision="int4")


def test_auto_stays_on_the_cpu_for_cpu_tensors():
    q, k, v = inputs(1, 2, 300, 300, 64)
    assert torch.equal(public(q, k, v), public(q, k, v, impl="cpu"))
