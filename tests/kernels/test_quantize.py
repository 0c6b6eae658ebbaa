"""The row quantizer: native and eager give the same integers."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.quantize import quantize_rows


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 40), (2, 0, 8), (7, 129), (1000, 64)])
def test_native_equals_reference(bits, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if x.numel():
        x[0] = 0.0
    codes, scale = quantize_rows(x, bits, impl="cpu")
    expected, expected_scale = quantize_rows(x, bits, impl="reference")
    assert codes.dtype == torch.int8 and codes.shape == x.shape
    assert torch.equal(codes, expected) and torch.equal(scale, expected_scale)


def test_dtypes_and_strides():
    x = torch.randn(64, 10).half().T
    codes, scale = quantize_rows(x, impl="cpu")
    assert (codes * scale - x.float()).abs().max() <= scale.max() / 2 * 1.001


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(2, 2), {"bits": 9}, "got 9"),
        (torch.ones(2, 2, dtype=torch.int32), {}, "int32"),
        (torch.ones(2, 2), {"impl": "gpu"}, "gpu"),
        (torch.ones(2, 2, device="meta"), {"impl": "cpu"}, "meta"),
    ],
)
def test_bad_input_is_named(x, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        quantize_rows(x, **options)
