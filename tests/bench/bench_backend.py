"""The backend "accel" beside diffusers' native one, and log-sum-exp at full precision.

    python tests/bench/bench_backend.py [--repeats 7]

Calls [B, T, H, D] of N(0, 1) through diffusers' own dispatch, all contenders in turn; medians of
each, and how many times as fast as the native backend:

    accel      INT8
    with lse   the same with its log-sum-exp
    full lse   "accel_full" with its log-sum-exp
    reference  the same by the eager specification, as it was before
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

import accel
from accel.kernels.attention import attention

SHAPES = [(1, 1024, 8, 64), (1, 4096, 8, 64), (1, 4096, 8, 128)]


def contenders(*tensors: Tensor) -> dict[str, Callable[[], Any]]:
    """Each contender's call."""

    def call(name: str, lse: bool = False) -> Callable[[], Any]:
        options = {"return_lse": True} if lse else None
        backend = AttentionBackendName(name)
        return lambda: dispatch_attention_fn(*tensors, backend=backend, attention_kwargs=options)

    q, k, v = (x.transpose(1, 2) for x in tensors)
    eager = {"precision": "full", "impl": "reference", "return_lse": True}
    return {
        "native": call("native"),
        "accel": call("accel"),
        "with lse": call("accel", True),
        "full lse": call("accel_full", True),
        "reference": lambda: attention(q, k, v, **eager),
    }


def timed(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    accel.register_backend()
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            calls = contenders(*(torch.randn(shape, dtype=dtype) for _ in range(3)))
            wanted, found = calls["native"](), calls["accel"]()
            error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
            assert error < 0.03, error
            result = timed(calls, repeats)
            native = result.pop("native")
            ratios = [f"{name} {native / s:.2f}×" for name, s in result.items()]
            print(shape, str(dtype)[6:], f"native {native * 1e3:.1f} ms", *ratios, sep="  ")


if __name__ == "__main__":
    main()
