"""The fastest tile on a GPU and its gain over torch: measured once, kept as JSON.

The first call of a kind (dtype, head sizes, tokens to a factor of two) times every candidate tile
on synthetic inputs. Torch's own attention takes turns with them; each time is the median of
``REPEATS``. Packing grows with the tokens and attention with their square, so more tokens gain
more. Later processes use the result too, so "auto" never runs a kernel that lost on this very GPU.
A tile whose result is not near torch's is never used. Without a GPU to measure on, or where the
first call is captured in a CUDA graph, the first candidate runs and no gain is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from accel.kernels import measured
from accel.kernels.gpu.layout import Tile, candidates, padded_dim

# Tokens of the synthetic calls; a real call counts as the next smaller one.
TOKENS = (2048, 4096, 8192, 16384, 32768, 65536)
MOST_HEADS, ROWS = 12, 131072  # limits of a synthetic call: enough to fill a GPU
REPEATS = 7
BURST = 3  # calls in a row that are timed together: a pipeline's next call does not wait either
TOLERANCE = {"e4m3": 0.08, "fp16": 0.03, "e2m1": 0.4}  # relative L1 to torch on N(0, 1)


@dataclass(frozen=True)
class Choice:
    """A tile and its measured gain.

    The gain is the time of torch's attention over that of the tile, None if it was not measured.
    """

    tile: Tile
    gain: float | None = None
    note: str = ""

    @property
    def why_not(self) -> str:
        """The reason why "auto" does not use the kernel; "" if it won or was not measured."""
        if self.note:
            return self.note
        if self.gain is not None and self.gain < measured.MIN_GAIN:
            return f"torch's own attention is faster on this card: measured {self.gain:.2f}x"
        return ""


Run = Callable[[Tensor, Tensor, Tensor, Tile], Tensor]
_memory: dict[str, Choice] = {}


def choose(q: Tensor, value_dim: int, tokens: int, values: str, run: Run) -> Choice:
    """Return the tile for calls like this one; the first call of its kind on a GPU measures it.

    Args:
        q: Queries [B, H, Tq, D].
        value_dim: Head size of the values.
        tokens: Number of keys, or of queries where these are fewer and the keys are packed for
            them alone.
        values: Format of the values, as in ``layout.candidates``.
        run: The kernel, called as ``run(q, k, v, tile)``.
    """
    tokens = max(n for n in TOKENS if n <= max(tokens, TOKENS[0]))
    device, wide = q.device, max(padded_dim(q.shape[-1]), padded_dim(value_dim))
    tiles = candidates(values, wide)
    if device.type != "cuda":
        return Choice(tiles[0])
    kind = f"{str(q.dtype).removeprefix('torch.')} {q.shape[-1]} {value_dim} {values} {tokens}"
    key = f"{device.index} {kind}"
    if key not in _memory:
        if torch.cuda.is_current_stream_capturing():
            return Choice(tiles[0])
        store = cache_file(device)
        known = _read(store)
        if kind not in known:
            known[kind] = measure(q, value_dim, tokens, tiles, run, TOLERANCE[values])
            _write(store, known)
        _memory[key] = known[kind]
    return _memory[key]


def measure(
    q: Tensor, value_dim: int, tokens: int, tiles: tuple[Tile, ...], run: Run, tolerance: float
) -> Choice:
    """Return the fastest of ``tiles`` and its gain, for the dtype and head sizes of ``q``."""
    heads = min(MOST_HEADS, max(1, ROWS // tokens))
    generator = torch.Generator(q.device).manual_seed(0)
    a, b, v = (
        torch.randn(
            1, heads, tokens, dim, generator=generator, dtype=torch.float32, device=q.device
        ).to(q.dtype)
        for dim in (q.shape[-1], q.shape[-1], value_dim)
    )
    exact = torch.nn.functional.scaled_dot_product_attention(a, b, v).float()
    right = []
    for tile in tiles:
        try:
            error = (run(a, b, v, tile).float() - exact).abs().sum() / exact.abs().sum()
        except Exception as failure:  # a tile too large for the GPU: the next may fit
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
    *tile_times, torch_time = alternate(jobs, q.device)
    best = min(range(len(right)), key=tile_times.__getitem__)
    return Choice(right[best], torch_time / tile_times[best])


def alternate(jobs: list[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median milliseconds of each job over ``REPEATS`` rounds of one turn per job."""
    return measured.alternate(jobs, device, REPEATS, BURST)


@cache
def cache_file(device: torch.device) -> Path:
    """Return ``$XDG_CACHE_HOME/accel-diffusion/gpu-<card>-<versions>.json``.

    The last version is that of the kernels themselves: changed kernels are measured again.
    """
    import triton

    name = f"{torch.cuda.get_device_name(device)} triton {triton.__version__} {torch.__version__}"
    return measured.cache_file("gpu", name, Path(__file__).parent.glob("*.py"))


def _read(path: Path) -> dict[str, Choice]:
    """Return stored choices; a file that holds no choices counts as empty."""
    try:
        data = measured.read(path)
        return {k: Choice(Tile(**c["tile"]), c["gain"], c["note"]) for k, c in data.items()}
    except (KeyError, TypeError):
        return {}


def _write(path: Path, known: dict[str, Choice]) -> None:
    measured.write(path, {k: asdict(c) for k, c in known.items()})
