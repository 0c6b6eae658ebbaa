"""The Triton warp, interpreted, gives the bytes of the eager definition."""

from __future__ import annotations

import pytest
import torch
from warp_checks import constant, turbulence, zoom

from accel.kernels.warp import NoiseWarper, warp_noise

FLOWS = {
    "turbulence": turbulence(2, 20, 5.0)[..., :17],
    "zoom in": zoom(1.4, 2, 15),
    "zoom out": zoom(0.6, 2, 15),
    "pan": constant(0.7, -1.3, 3, 10),
    "huge": constant(1e30, 0.0, 1, 9),
    "pixel": torch.full((2, 2, 1, 1), 0.4),
}


@pytest.fixture
def interpreted(monkeypatch):
    """Lets the kernels that were imported for the interpreter take CPU tensors."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("mode", "backward"), [("dither", None), ("round", -0.8)])
def test_the_reference_bit_for_bit(interpreted, name, mode, backward):
    flow = FLOWS[name]
    options = {
        "channels": 5,
        "seed": 2**63 + 2**40 + 3,
        "mode": mode,
        "backward": None if backward is None else flow * backward,
    }
    expected = warp_noise(flow, impl="reference", **options)
    assert torch.equal(warp_noise(flow, impl="gpu", **options), expected)


def test_streaming_equals_batch(interpreted):
    flow = turbulence(2, 10)
    warper = NoiseWarper(3, 10, 10, seed=1, impl="gpu")
    frames = [warper.noise, warper.step(flow[0]), warper.step(flow[1])]
    assert torch.equal(torch.stack(frames), warp_noise(flow, channels=3, seed=1))


def test_without_a_card_it_says_why():
    with pytest.raises(RuntimeError, match="cuda tensors only, got cpu; available"):
        warp_noise(constant(1.0, size=8), channels=1, seed=0, impl="gpu")
