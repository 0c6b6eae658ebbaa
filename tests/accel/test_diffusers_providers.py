"""diffusers' registry of backends, and what a processor was told: the names accel depends on."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from helpers.families import FAMILIES

from accel.core.diffusers_providers import Chosen, active, backend, call_arguments


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)
    return FAMILIES["wan"]()[0].blocks[0].attn1


def test_a_processor_without_a_choice_is_left_as_it_is(module):
    before = dict(vars(module.processor))
    with ExitStack() as undo:
        chosen = Chosen(module, undo)
        assert (chosen.name, chosen.note, active()) == ("native", "", "native")
        assert vars(module.processor) == before


def test_a_choice_is_noted_set_aside_and_put_back(module):
    module.set_attention_backend("_native_math")
    with ExitStack() as undo:
        chosen = Chosen(module, undo)
        assert chosen.name == "_native_math" and module.processor._attention_backend == "native"
        module.set_attention_backend("flex")
        chosen.follow()
        assert chosen.name == "flex" and module.processor._attention_backend == "native"
        other = type(module.processor)()
        module.set_processor(other)
        chosen.follow()  # a processor that was told nothing has what is active everywhere
        assert chosen.name == active()
    assert module.processor is other and "_attention_backend" not in vars(other)


def test_a_choice_of_the_native_backend_while_patched_is_noted(module):
    module.set_attention_backend("_native_math")
    with ExitStack() as undo:
        chosen = Chosen(module, undo)
        module.set_attention_backend("native")
        chosen.follow()
        assert chosen.name == "native"
    assert module.processor._attention_backend is AttentionBackendName.NATIVE


def test_calls_in_the_layout_of_a_backend():
    q, k, v = (torch.zeros(2, 3, n, 8) for n in (5, 7, 7))
    sage = backend("sage")
    given = call_arguments(sage, q, k, v, None, True, 8**-0.5, True)
    assert given["query"].shape == (2, 5, 3, 8) and given["key"].shape == (2, 7, 3, 8)
    assert given["is_causal"] is True and "enable_gqa" not in given
    native = backend("native")
    mask = torch.ones(5, 7, dtype=torch.bool)
    assert call_arguments(native, q, k, v, mask, False, None, False)["attn_mask"].dim() == 4
    narrow = backend("sage_blackwell_hub")
    assert "scale" in narrow.arguments  # it raises for one that it cannot use
    assert not narrow.fetched() and sage.fetched()
