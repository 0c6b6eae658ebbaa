"""The Triton warp gives the bytes of the eager definition: on a card, else interpreted."""

from __future__ import annotations

import pytest
import torch
from helpers.card import DEVICE, let_interpret
from helpers.proofs import leading
from helpers.warp_checks import constant, turbulence, zoom

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
def runs(monkeypatch):
    let_interpret(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", leading(1, FLOWS))
@pytest.mark.parametrize(("mode", "backward"), leading(1, [("dither", None), ("round", -0.8)]))
def test_the_reference_bit_for_bit(runs, name, mode, backward):
    flow = FLOWS[name]
    options = {
        "channels": 5,
        "seed": 2**63 + 2**40 + 3,
        "mode": mode,
        "backward": None if backward is None else flow * backward,
    }
    expected = warp_noise(flow, impl="reference", **options)
    if backward is not None:
        options["backward"] = options["backward"].to(DEVICE)
    assert torch.equal(warp_noise(flow.to(DEVICE), impl="gpu", **options).cpu(), expected)


def test_streaming_equals_batch(runs):
    flow = turbulence(2, 10)
    warper = NoiseWarper(3, 10, 10, seed=1, impl="gpu", device=DEVICE)
    frames = [warper.noise, *(warper.step(f.to(DEVICE)) for f in flow)]
    assert torch.equal(torch.stack(frames).cpu(), warp_noise(flow, channels=3, seed=1))


def test_without_a_card_it_says_why():
    with pytest.raises(RuntimeError, match="cuda tensors only, got cpu; available"):
        warp_noise(constant(1.0, size=8), channels=1, seed=0, impl="gpu")
