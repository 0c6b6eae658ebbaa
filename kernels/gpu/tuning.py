"""Which tile a card runs fastest, and whether that beats torch: measured once, kept as JSON.

The first call of a kind (dtype, head sizes) times every candidate tile on synthetic inputs, and
torch's own attention beside them, alternating, median of ``REPEATS``. What came out decides for
every later process too, so "auto" never runs a kernel that lost on this very card. A tile whose
result is not near torch's is never used. Without a card to measure, or while a CUDA graph is being
captured, the first candidate runs and no gain is claimed.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from accel.kernels.gpu.layout import Tile, candidates, padded_dim

PROBE = (1, 16, 4096)  # batch, heads, tokens of the synthetic call
REPEATS = 7
MIN_GAIN = 1.05  # time of torch's attention over ours; packing included
TOLERANCE = {"e4m3": 0.08, "fp16": 0.03, "e2m1": 0.4}  # relative L1 to torch on N(0, 1)


@dataclass(frozen=True)
class Choice:
    """A tile and its measured gain: time of torch's attention over ours; None if not measured."""

    tile: Tile
    gain: float | None = None
    note: str = ""

    @property
    def why_not(self) -> str:
        """Why "auto" does not use the kernel; "" if it won or was not measured."""
        if self.note:
            return self.note
        if self.gain is not None and self.gain < MIN_GAIN:
            return f"torch's own attention is faster on this card: measured {self.gain:.2f}x"
        return ""


Run = Callable[[Tensor, Tensor, Tensor, Tile], Tensor]
_memory: dict[str, Choice] = {}


def choose(q: Tensor, value_dim: int, values: str, run: Run) -> Choice:
    """The tile for calls like this one; measures on the first call of its kind on a card.

    q [B, H, Tq, D]; ``values`` as in ``layout.candidates``; ``run(q, k, v, tile)`` is the kernel.
    """
    device, wide = q.device, max(padded_dim(q.shape[-1]), padded_dim(value_dim))
    tiles = candidates(values, wide)
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return Choice(tiles[0])
    kind = f"{str(q.dtype).removeprefix('torch.')} {q.shape[-1]} {value_dim} {values}"
    key = f"{device.index} {kind}"
    if key not in _memory:
        store = cache_file(device)
        known = _read(store)
        if kind not in known:
            known[kind] = measure(q, value_dim, tiles, run, TOLERANCE[values])
            _write(store, known)
        _memory[key] = known[kind]
    return _memory[key]


def measure(
    q: Tensor, value_dim: int, tiles: tuple[Tile, ...], run: Run, tolerance: float
) -> Choice:
    """Time ``tiles`` and torch's attention on ``PROBE`` with the dtype and head sizes of ``q``."""
    generator = torch.Generator(q.device).manual_seed(0)
    a, b, v = (
        torch.randn(*PROBE, dim, generator=generator, device=q.device).to(q.dtype)
        for dim in (q.shape[-1], q.shape[-1], value_dim)
    )
    exact = torch.nn.functional.scaled_dot_product_attention(a, b, v).float()
    right = []
    for tile in tiles:
        try:
            error = (run(a, b, v, tile).float() - exact).abs().sum() / exact.abs().sum()
        except Exception as failure:  # a tile too large for the card: the next may fit
            note = f"{type(failure).__name__}: {str(failure)[:200]}"
            continue
        if float(error) < tolerance:
            right.append(tile)
        else:
            note = f"relative L1 {float(error):.3f} from torch, at most {tolerance}"
    if not right:
        return Choice(tiles[0], 0.0, f"no tile gives torch's result here ({note})")
    jobs: list[Callable[[], object]] = [partial(run, a, b, v, tile) for tile in right]
    jobs.append(partial(torch.nn.functional.scaled_dot_product_attention, a, b, v))
    *mine, torchs = alternate(jobs, q.device)
    best = min(range(len(right)), key=mine.__getitem__)
    return Choice(right[best], torchs / mine[best])


def alternate(jobs: list[Callable[[], object]], device: torch.device) -> list[float]:
    """Median milliseconds of each job over ``REPEATS`` rounds in which every job runs once."""
    times: list[list[float]] = [[] for _ in jobs]
    with torch.cuda.device(device):
        for job in jobs:
            job()
        for _ in range(REPEATS):
            for job, out in zip(jobs, times, strict=True):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                job()
                end.record()
                end.synchronize()
                out.append(start.elapsed_time(end))
    return [statistics.median(t) for t in times]


@cache
def cache_file(device: torch.device) -> Path:
    """``$XDG_CACHE_HOME/accel-diffusion/gpu-<card>-<versions>.json``."""
    import triton

    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"{torch.cuda.get_device_name(device)} triton {triton.__version__} {torch.__version__}"
    return Path(base) / "accel-diffusion" / f"gpu-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def _read(path: Path) -> dict[str, Choice]:
    """Stored choices; a file that cannot be read counts as none."""
    try:
        data = json.loads(path.read_text("utf-8"))
        return {k: Choice(Tile(**c["tile"]), c["gain"], c["note"]) for k, c in data.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(path: Path, known: dict[str, Choice]) -> None:
    """Store choices; a folder that cannot be written to costs a measurement per process."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({k: asdict(c) for k, c in known.items()}, indent=2) + "\n")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
