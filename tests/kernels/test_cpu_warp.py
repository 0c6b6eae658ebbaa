"""The native warp gives the bytes of the eager definition, whatever the threads and the
instruction set.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.warp_checks import constant, turbulence, zoom

from accel.kernels import reference_warp
from accel.kernels.cpu.native import instruction_sets, library
from accel.kernels.warp import warp_noise

needs_library = pytest.mark.skipif(library().lib is None, reason=library().reason)
FLOWS = {
    "turbulence": turbulence(3, 48, 5.0)[..., :37],
    "zoom": zoom(1.4, 3, 33),
    "pan": constant(0.7, -1.3, 3, 24),
    "huge": constant(1e30, 0.0, 1, 9),
    "line": turbulence(3, 40)[:, :, :1],
    "pixel": torch.full((2, 2, 1, 1), 0.4),
}


@needs_library
@pytest.mark.parametrize("mode", ["dither", "round"])
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("backward", [None, -0.8])
def test_native_is_the_reference_bit_for_bit(name, backward, mode):
    flow = FLOWS[name]
    options = {
        "channels": 5,
        "seed": 2**40 + 3,
        "mode": mode,
        "backward": None if backward is None else flow * backward,
    }
    expected = warp_noise(flow, impl="reference", **options)
    assert torch.equal(warp_noise(flow, impl="cpu", **options), expected)


@needs_library
def test_bytes_do_not_depend_on_threads_or_instruction_set():
    flow, threads = turbulence(2, 160), torch.get_num_threads()
    lib = library().lib
    expected = warp_noise(flow, channels=6, seed=1, impl="cpu")
    try:
        for count in (1, 3, 4):
            torch.set_num_threads(count)
            assert torch.equal(warp_noise(flow, channels=6, seed=1, impl="cpu"), expected)
        for name in instruction_sets(lib):
            assert lib.accel_choose_isa(name.encode())
            assert torch.equal(warp_noise(flow, channels=6, seed=1, impl="cpu"), expected), name
    finally:
        torch.set_num_threads(threads)
        lib.accel_choose_isa(library().isa.encode())


@needs_library
def test_strided_and_half_flows():
    flow = turbulence(2, 40).half()
    expected = warp_noise(flow.float(), channels=2, seed=1)
    assert torch.equal(warp_noise(flow, channels=2, seed=1), expected)
    wide = torch.stack([flow, flow], -1)[..., 0]
    assert torch.equal(warp_noise(wide, channels=2, seed=1), expected)


def test_philox_gives_the_published_words():
    """Known answers of the authors' Random123 library for philox4x32-10."""
    zero = reference_warp.philox([np.zeros(1, np.uint64)] * 4, 0)
    assert [int(w[0]) for w in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = reference_warp.philox([np.full(1, 0xFFFFFFFF, np.uint64)] * 4, 2**64 - 1)
    assert [int(w[0]) for w in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_normals_are_box_and_mullers():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 2**32, (2, 200_000), dtype=np.uint64)
    a[:3], b[:3] = (0, 2**32 - 1, 2**31), (0, 2**32 - 1, 2**30)
    even, odd = reference_warp.box_muller(a, b)
    radius = np.sqrt(-2 * np.log(((a >> np.uint64(1)) + 0.5) * 2.0**-31))
    angle = (b >> np.uint64(30)) * (math.pi / 2) + (
        ((b & np.uint64(2**30 - 1)).astype(float) - 2**29) * (math.pi * 2.0**-31)
    )
    np.testing.assert_allclose(even, radius * np.cos(angle), atol=4e-4)  # u is rounded to fp32
    np.testing.assert_allclose(odd, radius * np.sin(angle), atol=4e-4)
    away = radius > 0.1
    np.testing.assert_allclose(even[away], (radius * np.cos(angle))[away], atol=3e-6)
    assert np.isfinite(even).all() and np.isfinite(odd).all()
