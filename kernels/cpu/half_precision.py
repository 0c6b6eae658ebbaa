"""Whether quantized attention pays in half precision on a processor with matrix units: measured.

In fp32 it pays from a fixed length on (``dispatch.py``). Where torch multiplies bf16 or fp16 by
matrix units (AMX), its own attention can be the faster one: INT8 was 0.7x in bf16 on an Intel Xeon
"Sapphire Rapids". The first call of a kind (precision, dtype, head sizes, tokens to a power of two)
times both on N(0, 1), and a file of the user's cache keeps the gain. What was measured on a busy
machine holds for this process only. ``ACCEL_MEASURE=0`` turns measuring off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from accel.kernels import measured

MOST_TOKENS = 2048  # of a call that is timed; more gain about what that many do
REPEATS = 7
Run = Callable[[Tensor, Tensor, Tensor], object]

_known: dict[tuple[Path, str], float] = measured.memory("half precision")


def matrix_units(dtype: torch.dtype) -> bool:
    """Return whether torch may multiply ``dtype`` by matrix units of this processor."""
    return dtype in (torch.bfloat16, torch.float16) and _tiles()


def gain(q: Tensor, value_dim: int, keys: int, precision: str, ours: Run) -> float:
    """Return the time of torch's attention over that of ``ours(q, k, v)`` for calls like this one.

    Args:
        q: Queries [B, H, Tq, D].
        value_dim: Head size of the values.
        keys: Number of keys.
        precision: The precision of ``ours``.
        ours: The kernel.
    """
    queries, keys = (min(1 << (n.bit_length() - 1), MOST_TOKENS) for n in (q.shape[2], keys))
    name = f"{precision} {str(q.dtype).removeprefix('torch.')} {queries} on {keys} keys"
    name = f"{name} {q.shape[-1]} {value_dim}"
    file = _file(torch.get_num_threads())
    known = measured.recall(_known, file, name)
    return _measure(q, value_dim, (queries, keys), file, name, ours) if known is None else known


def _measure(
    q: Tensor, value_dim: int, tokens: tuple[int, int], file: Path, name: str, ours: Run
) -> float:
    heads = 2 * torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    a, b, v = (
        torch.randn(1, heads, n, dim, generator=generator, dtype=torch.float32, device="cpu")
        .to(q.dtype)
        for n, dim in zip((*tokens, tokens[1]), (q.shape[-1], q.shape[-1], value_dim), strict=True)
    )  # fmt: skip
    torchs = torch.nn.functional.scaled_dot_product_attention
    jobs = (partial(ours, a, b, v), partial(torchs, a, b, v))
    return measured.gain(_known, file, name, jobs, q.device, REPEATS)[0]


@cache
def _tiles() -> bool:
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known is not None and known())


@cache
def _file(threads: int) -> Path:
    return measured.times_file("half", torch.device("cpu"), threads, ["cpu/attention.py"])
