"""Patch, run, change something, run, unpatch, in any order: never worse than not patching.

A twin gets the same changes and is never patched. It says what every run has to give.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from helpers.rehash_pipe import Pipe
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel import AttentionConfig, Plan, RehashConfig, SlicingConfig

SLICES = SlicingConfig(3, min_tokens=1)
INT8 = AttentionConfig("int8", impl="reference")
PLANS = {
    "slices": Plan("slices", None, SLICES),
    "int8": Plan("int8", INT8),
    "rehash": Plan("rehash", None, rehash=RehashConfig(speedup=1.5)),
    "all": Plan("all", INT8, SLICES, RehashConfig(speedup=1.5)),
    "full": Plan("full", AttentionConfig("full")),
}
EXACT = {"slices": 1e-4, "full": 1e-4, None: 0.0}  # largest relative error; others lose something
LOSSY = 0.6


def scheduler(pipe: Pipe, kind: Any) -> None:
    pipe.scheduler = kind()


def own_forward(pipe: Pipe, block: int) -> None:
    """Put a forward on one block that does half of what the block does, as users' recipes do."""
    part = pipe.module.get_submodule(f"{pipe.blocks}.{block}")
    inner = part.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        return tuple(0.5 * x for x in out) if isinstance(out, tuple) else 0.5 * out

    part.forward = forward


def hook(pipe: Pipe, block: int) -> None:
    """Register a hook that keeps what a block returns, by reference."""
    kept: list[Any] = []
    part = pipe.module.get_submodule(f"{pipe.blocks}.{block}")
    part.register_forward_hook(lambda module, args, out: kept.append(out))


def weights(pipe: Pipe, scale: float) -> None:
    with torch.no_grad():
        for parameter in pipe.module.get_submodule(f"{pipe.blocks}.0").parameters():
            parameter.mul_(scale)


def other_module(pipe: Pipe, scale: float) -> None:
    """Give the pipeline another denoiser, as ``pipe.transformer = other`` does."""
    fresh = copy.deepcopy(pipe.module)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(scale)
    pipe.module = pipe.transformer = fresh


def deep_copy(pipe: Pipe, _: Any) -> None:
    """Go on with a copy of the denoiser."""
    pipe.module = pipe.transformer = copy.deepcopy(pipe.module)


def size(pipe: Pipe, tokens: int) -> None:
    """Change the number of text tokens."""
    text = pipe.text[:, :1].expand(-1, tokens, -1)
    pipe.inputs["encoder_hidden_states"] = text.contiguous()
    if "txt_ids" in pipe.inputs:
        pipe.inputs["txt_ids"] = torch.zeros(tokens, 3, dtype=torch.float32, device="cpu")


changes = st.one_of(
    st.tuples(
        st.just(scheduler),
        st.sampled_from([EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler]),
    ),
    st.tuples(st.just(own_forward), st.integers(0, 0)),
    st.tuples(st.just(hook), st.integers(0, 0)),
    st.tuples(st.just(weights), st.sampled_from([0.5, 0.9])),
    st.tuples(st.just(other_module), st.sampled_from([0.8, 1.1])),
    st.tuples(st.just(deep_copy), st.none()),
    st.tuples(st.just(size), st.sampled_from([4, 12])),
)
actions = st.one_of(
    st.tuples(st.just("patch"), st.sampled_from(sorted(PLANS))),
    st.tuples(st.just("unpatch"), st.none()),
    st.tuples(st.just("run"), st.sampled_from([2, 10])),
    st.tuples(st.just("run"), st.sampled_from([2, 10])),
    st.tuples(st.just("change"), changes),
)


def pair(family: str) -> tuple[Pipe, Pipe]:
    torch.manual_seed(0)
    pipe = Pipe(family)
    twin = copy.deepcopy(pipe)
    for one in (pipe, twin):
        one.blocks = "blocks" if hasattr(one.module, "blocks") else "transformer_blocks"
        one.text = one.inputs["encoder_hidden_states"]
    return pipe, twin


def same(got: torch.Tensor, want: torch.Tensor, plan: str | None, words: Any) -> None:
    """Check a run against the twin's: equal, or as near as the plan promises."""
    assert got.shape == want.shape and torch.isfinite(got).all() == torch.isfinite(want).all()
    wrong = float((got - want).norm() / want.norm().clamp_min(1e-12))
    assert wrong <= EXACT.get(plan, LOSSY), (wrong, plan, words)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "flux"])
@settings(max_examples=10)
@given(steps=st.lists(actions, min_size=3, max_size=7))
def test_any_sequence_ends_where_an_unpatched_one_does(family: str, steps: list[Any]) -> None:
    pipe, twin = pair(family)
    plan: str | None = None
    with ExitStack() as undo:
        undo.callback(lambda: accel.unpatch(pipe))
        for what, value in [*steps, ("unpatch", None), ("run", 2)]:
            if what == "patch":
                plan = value
                accel.patch(pipe, plan=PLANS[value])
            elif what == "unpatch":
                plan = None
                accel.unpatch(pipe)
                assert not accel.is_patched(pipe)
            elif what == "run":
                same(pipe(value), twin(value), plan, steps)
            else:
                change, argument = value
                change(pipe, argument)
                change(twin, argument)
                if change in (other_module, deep_copy) and plan is not None:
                    plan = None  # the new denoiser is plain; the old patch is on the old one
