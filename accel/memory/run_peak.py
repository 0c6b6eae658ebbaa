"""The most bytes of tensors alive while a pipeline runs, as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from accel.core.diffusers_bridge import execution_device
from accel.core.process_memory import peak_bytes, reset_peak
from accel.families.components import size_of
from accel.kernels.attention_call import looking_on
from accel.memory.tracker import Tracker


def run_peak(pipe: Any, work: Callable[[], object]) -> int:
    """Run ``work`` and return the most bytes alive at once, weights included.

    It counts what ``accel/memory/fit.py`` predicts, besides what the pipeline itself keeps. On a
    card the allocator counts; elsewhere a dispatch mode does, under which kernels run as usual but
    each operation takes longer, so this run is not one to time. Scratch memory of kernels is not
    counted there.
    """
    device = execution_device(pipe)
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        reset_peak()
        work()
        torch.cuda.synchronize(device)
        return peak_bytes()
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    tracker = Tracker(torch.device("cpu"))
    tracker.ignore([x for part in parts for x in (*part.parameters(), *part.buffers())])
    with looking_on(), torch.no_grad(), tracker:
        work()
    return tracker.peak + sum(size_of(part) for part in parts)


def process_peak(pipe: Any, work: Callable[[], object]) -> int:
    """Run ``work`` and return the most bytes held: by the card's allocator, else by the process.

    It is what ``accel.load(model, memory=...)`` counts, which also reads weights from disk.
    """
    reset_peak()
    work()
    return peak_bytes()
