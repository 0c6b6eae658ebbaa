"""Speed of the noise warp: native against plain torch and against the published algorithm.

    python tests/bench/bench_warp.py [--size 480x720] [--channels 16] [--repeats 5]
        [--released noise_warp.py] [--json FILE]

One frame along a smooth swirl of up to 4 pixels without a given backward flow. "torch" is the same
algorithm written with bincount, scatter_add_, grid_sample and torch.randn. "published" is the
released code's algorithm in our words: backward flow taken as -f, groups found by equal values in
the first channel (a sort), linear weights. "released" is that code itself, which its package ``rp``
fetches from GitHub at run time: ``--released`` names its file ``noise_warp.py`` (repository
RyannDaGreat/CommonSource) on a machine that has ``rp``. Where there is a card, "GPU" is our
Triton warp with flow and noise on it. Contenders take turns; medians. Also: a
whole clip of 49 frames, and short clips of growing size: four times the pixels should cost four
times the time, and cost more where they outgrow a cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from rows import append, flat
from torch import Tensor

from accel.kernels.warp import NoiseWarper, warp_noise


def swirl(height: int, width: int, strength: float = 4.0) -> Tensor:
    """Smooth flow [2, H, W] with values up to about ``strength`` pixels."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 2, 5, 5, generator=g) * strength / 2
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]


def _indices(shift: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel index that every pixel lands on, and whether it is inside; shift [2, H, W]."""
    _, height, width = shift.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tx, ty = x + shift[0].long(), y + shift[1].long()
    inside = (tx >= 0) & (tx < width) & (ty >= 0) & (ty < height)
    return (ty * width + tx).flatten(), inside.flatten()


def _sample(field: Tensor, shift: Tensor, mode: str, padding: str) -> Tensor:
    """``field [C, H, W]`` at p + shift(p)."""
    _, height, width = shift.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    size = torch.tensor([width - 1, height - 1]).view(2, 1, 1)
    where = ((torch.stack([x, y]) + shift) / size * 2 - 1).permute(1, 2, 0)[None]
    return torch.nn.functional.grid_sample(
        field[None], where, mode=mode, padding_mode=padding, align_corners=True
    )[0]


def torch_step(q: Tensor, rho: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The recommended algorithm, straightforwardly; q [C, N], rho [N]."""
    back = -flow
    for _ in range(8):
        back = -_sample(flow, back, "bilinear", "border")
    pixels, here = rho.numel(), torch.arange(rho.numel())
    there, inside = _indices(torch.floor(flow + 0.5))
    source, target = here[inside], there[inside]
    missed = torch.ones(pixels, dtype=torch.bool).index_fill_(0, target, False)
    origin, inside = _indices(-torch.floor(-back + 0.5))
    grown = inside & missed
    source, target = torch.cat([source, origin[grown]]), torch.cat([target, here[grown]])
    degree = torch.bincount(source, minlength=pixels).float()
    z = torch.randn(q.shape[0], source.numel())
    mean = torch.zeros_like(q).scatter_add_(1, source.expand_as(z), z) / degree.clamp_min(1)
    d = degree[source]
    y = q[:, source] / d.sqrt() + z - mean[:, source]
    y = torch.where(d == 1, q[:, source], y)
    r = rho[source] / d
    density = torch.zeros(pixels).scatter_add_(0, target, r)
    merged = torch.zeros_like(q).scatter_add_(1, target.expand_as(y), r.sqrt() * y)
    fresh = density == 0
    noise = torch.where(fresh, torch.randn_like(q), merged / density.clamp_min(1e-6).sqrt())
    return noise, torch.where(fresh, 1.0, density)


def published_step(q: Tensor, rho: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """The released code's algorithm, in our words; q [C, N], rho [N]."""
    channels, pixels = q.shape
    shape = flow.shape[1:]
    state = torch.cat([rho[None], q]).view(-1, *shape)
    grown = _sample(state, -flow, "nearest", "zeros").flatten(1)
    there, inside = _indices(torch.round(flow))
    there = torch.where(inside, there, torch.arange(pixels))
    hit = torch.zeros(pixels).scatter_(0, there, 1.0).bool()
    shrunk = torch.where(inside, state.flatten(1), 0.0)
    shrunk[0, ~inside] = 1.0
    both = torch.cat([torch.where(hit, 0.0, grown), shrunk], 1)
    _, group, count = both[1].unique(return_inverse=True, return_counts=True)
    n = count[group].float()
    z = torch.randn(channels, both.shape[1])
    mean = torch.zeros(channels, count.numel()).scatter_add_(1, group.expand_as(z), z) / count
    y, w = both[1:] / n.sqrt() + z - mean[:, group], both[0] / n
    y, w = torch.where(n == 1, both[1:], y), w + 1e-12
    landing = there.expand(channels, -1)
    total = torch.zeros(channels, pixels).scatter_add_(1, landing, (w * y)[:, pixels:])
    squares = torch.zeros(pixels).scatter_add_(0, there, w[pixels:].square())
    noise = torch.where(hit, total / squares.sqrt().clamp_min(1e-9), y[:, :pixels])
    weight = torch.zeros(pixels).scatter_add_(0, there, w[pixels:])
    return noise, torch.where(hit, weight, w[:pixels])


def released_step(file: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The warp of the released code: state [3 + C, H, W] and flow [2, H, W] to state."""
    for name, member in (("raft", ""), ("background_remover", "BackgroundRemover")):
        stand_in = ModuleType(name)  # flow estimation and its kin, which the file imports
        setattr(stand_in, member or name, None)
        sys.modules.setdefault(name, stand_in)
    spec = importlib.util.spec_from_file_location("released_noise_warp", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(f for name, f in vars(module).items() if name.startswith("warp_xy"))


def median_seconds(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall seconds of every task; one warm-up each, then they take turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def check_results(flow: Tensor, channels: int) -> None:
    """Every contender's noise must have unit variance, and native must equal the reference."""
    q = torch.randn(channels, flow[0].numel())
    for contender in (torch_step, published_step):
        variance = float(contender(q, torch.ones(q.shape[1]), flow)[0].var())
        if abs(variance - 1) > 0.01:
            raise AssertionError(f"{contender.__name__} gives variance {variance:.4f}")
    small = swirl(48, 64)[None]
    a, b = (warp_noise(small, channels=3, seed=1, impl=impl) for impl in ("cpu", "reference"))
    if not torch.equal(a, b):
        raise AssertionError("native and reference differ")


def measure(
    height: int, width: int, channels: int, repeats: int, released: Path | None
) -> dict[str, float]:
    """Seconds per frame of each contender, and ratios to native."""
    flow = swirl(height, width)
    check_results(flow, channels)
    warper = NoiseWarper(channels, height, width, seed=0, impl="cpu")
    q, rho = warper.noise.flatten(1).clone(), torch.ones(height * width)
    tasks: dict[str, Callable[[], object]] = {
        "native": lambda: warper.step(flow),
        "torch": lambda: torch_step(q, rho, flow),
        "published": lambda: published_step(q, rho, flow),
    }
    if released is not None:
        step, noise = released_step(released), q.view(channels, height, width)
        state = torch.cat([torch.zeros(2, height, width), torch.ones(1, height, width), noise])
        variance = float(step(state, flow)[3:].var())
        assert abs(variance - 1) < 0.01, variance
        tasks["released"] = lambda: step(state, flow)
    if torch.cuda.is_available():
        card = torch.device("cuda", 0)
        moved, on_card = flow.to(card), NoiseWarper(channels, height, width, seed=0, device=card)
        tasks["GPU"] = lambda: (on_card.step(moved), torch.cuda.synchronize())
    seconds = median_seconds(tasks, repeats)
    ratios = {f"{n} / native": seconds[n] / seconds["native"] for n in list(tasks)[1:]}
    return {**{f"{n} (s per frame)": v for n, v in seconds.items()}, **ratios}


def scaling(channels: int, repeats: int, frames: int = 7) -> dict[str, float]:
    """Seconds a frame of native clips at 240x360, 480x720 and 960x1440, and each step's ratio."""
    clips = [swirl(240 * scale, 360 * scale).expand(frames - 1, -1, -1, -1) for scale in (1, 2, 4)]
    tasks = {
        f"clip {f.shape[2]}x{f.shape[3]}": partial(
            warp_noise, f, channels=channels, seed=0, impl="cpu"
        )
        for f in clips
    }
    seconds = median_seconds(tasks, repeats)
    ratios = {f"{b} / {a}": seconds[b] / seconds[a] for a, b in pairwise(tasks)}
    return {**{f"{n} (s per frame)": v / frames for n, v in seconds.items()}, **ratios}


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="480x720", metavar="HxW")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--released", type=Path, metavar="FILE", help="the released code's file")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    result = measure(height, width, args.channels, args.repeats, args.released)
    clip = swirl(height, width).expand(48, -1, -1, -1)
    start = time.perf_counter()
    warp_noise(clip, channels=args.channels, seed=0, impl="cpu")
    result["native, 49 frames (s)"] = time.perf_counter() - start
    result.update(scaling(args.channels, args.repeats))
    print(f"{height} x {width}, {args.channels} channels, {torch.get_num_threads()} threads")
    for name, value in result.items():
        print(f"{name:40s} {value:.4f}")
    if args.json:
        append(args.json, flat(result, f"warp/{args.size}", {" / ": "×", "": "s"}), weights=None)


if __name__ == "__main__":
    main()
