"""300 random signatures of an attention call give what torch gives, each within its precision."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers.signatures import by_hand, error, run, signature


@pytest.mark.parametrize("part", range(6))
def test_random_signatures(part: int) -> None:
    wrong, ran = [], Counter[str]()
    for seed in range(part * 50, part * 50 + 50):
        call = signature(seed)
        what, precision = run(call)
        ran[precision] += 1
        if what:
            wrong.append(f"seed {seed}: {what} ({call.words})")
    assert not wrong, "\n".join(wrong)
    assert ran["full"] < 35  # about half of the calls can be quantized, and are


def test_attention_by_hand_is_torchs() -> None:
    compared = 0
    for seed in range(60):
        arguments = {
            name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
            for name, x in signature(seed).arguments.items()
        }
        try:
            exact = F.scaled_dot_product_attention(**arguments)
        except (RuntimeError, IndexError):
            continue
        if exact.numel() and exact.isfinite().all() and arguments["key"].numel():
            assert error(by_hand(arguments), exact) < 1e-10, seed
            compared += 1
    assert compared > 30
