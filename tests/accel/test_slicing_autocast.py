"""Under autocast slices would round otherwise than the whole, so nothing is sliced."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, MORE
from helpers.runs import forward, sliced
from helpers.vaes import VAES, Pipe, grouped, plan

import accel

ALL = {**FAMILIES, **MORE}
SLOW = ("animatediff", "svd", "sdxl")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in ALL]
)
def test_a_denoiser_gives_the_same_bits(family, dtype):
    module, inputs = ALL[family]()
    with torch.autocast("cpu", dtype):
        plain = forward(module, inputs)
        with accel.patched(module, plan=sliced(4)) as handle:
            assert torch.equal(forward(module, inputs), plain)
    reasons = {why for block in handle.report().blocks for why in block.whole}
    assert reasons == {"under autocast"}
    assert not any(block.sliced for block in handle.report().blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen", "tiny", "ltx", "hunyuan15", "kl", "hunyuan"])
def test_a_decoder_gives_the_same_bits(name, dtype):
    if name in VAES:
        vae = VAES[name]()
        z = torch.randn(1, vae.config.get("z_dim") or 4, 2, 8, 6)
    else:
        vae, z, _ = grouped(name)
    with torch.autocast("cpu", dtype), torch.no_grad():
        plain = vae.decode(z, return_dict=False)[0]
        with accel.patched(Pipe(vae), plan=plan(3)) as handle:
            assert torch.equal(vae.decode(z, return_dict=False)[0], plain)
    (block,) = [b for b in handle.report().blocks if b.name == "vae.decoder"]
    assert set(block.whole) == {"under autocast"} and not block.sliced


def test_what_ran_under_autocast_is_sliced_without_it():
    module, inputs = FAMILIES["wan"]()
    with accel.patched(module, plan=sliced(4)) as handle:
        with torch.autocast("cpu", torch.bfloat16):
            forward(module, inputs)
        forward(module, inputs)
    assert all(block.sliced and block.whole for block in handle.report().blocks)
