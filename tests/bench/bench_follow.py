"""How closely are drags and pans followed: by warped noise, by a dual clock, or by both?

    python tests/bench/bench_follow.py [--drags 16] [--pans 8] [--seeds 1] [--json FILE]

A procedural picture of one shape, which the model never saw, is the job's picture; the shape is cut
out and dragged over unmoving ground, in directions round the circle. In the video the shape is
found by its color. Printed for every way, and for no control at all: the slope of its measured over
its commanded displacement along the drag, its mean distance from the commanded path in pixels, the
share of the area that it and its commanded place have together (IoU), and the median motion of the
ground in pixels a frame. Of pans, the slope of the estimated over the commanded flow.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rows import ROOT, append, flat, weights_of

from accel.core.optical_flow import OUT, estimate
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.pipelines.motion.layers import Layer, fill

sys.path.insert(0, str(ROOT / "samples"))
import clips

SIZE, FRAMES, LONG, SPEED = 64, 17, 22.0, 1.25
FIRST = 900_000  # seeds of pictures that no training saw
WAYS = ("none", "noise", "dual-clock", "both")


def scenes(first: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Pictures [64, 64, 3] of one shape, the shape's place [64, 64], and what they show."""
    for seed in itertools.count(first):
        layers, caption = clips.sample_layers(np.random.default_rng(seed), SIZE)
        points = clips.pixels(SIZE, SIZE)
        inside = clips.shape_distance(layers[-1], points, 0.0) < 0
        if len(layers) == 2 and inside.sum() > 250:
            picture, _ = clips.picture(layers, points, 0.0)
            yield (picture * 255).round().astype(np.uint8), inside, caption


def commands(
    drags: int, pans: int, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray, str, dict]]:
    """Scenes with what is asked of them: a drag that stays in the picture, or a pan."""
    made = 0
    for picture, inside, caption in scenes(first):
        if made == drags + pans:
            return
        if made >= drags:
            angle = 2 * math.pi * (made - drags) / pans
            pan = [SPEED * math.cos(angle), SPEED * math.sin(angle)]
            yield picture, inside, caption, {"camera": {"pan": pan}}
        elif (drag := drag_of(inside, made, drags)) is not None:
            yield picture, inside, caption, {"drag": [drag]}
        else:
            continue
        made += 1


def drag_of(inside: np.ndarray, number: int, count: int) -> dict | None:
    """A drag of the shape by ``LONG`` pixels, the first way on that stays in the picture."""
    contours, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outline = max(contours, key=cv2.contourArea)[:, 0].astype(float)
    for turn in range(16):
        angle = 2 * math.pi * (number / count + turn / 16)
        by = np.array([math.cos(angle), math.sin(angle)]) * LONG
        there = outline + by
        if there.min() >= 1 and there.max() <= SIZE - 2:
            return {"polygon": outline.tolist(), "by": by.tolist()}
    return None


def places(frames: np.ndarray, picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Where the shape's color is, [F, H, W]: nearer to it than to the ground's."""
    colors = [np.median(picture[where], 0) for where in (inside, ~inside)]
    apart = [np.abs(frames.astype(float) - color).sum(-1) for color in colors]
    return apart[0] < apart[1]


def panned(frames: np.ndarray, pan: list[float]) -> dict:
    """Slope of the estimated over the commanded flow, away from the edges."""
    flow = estimate(frames)[0][:, 12:-12, 12:-12]
    flow = np.median(flow[flow[..., 0] < OUT / 2], axis=0)
    return {"pan slope": float(flow @ np.asarray(pan) / np.square(pan).sum())}


def measured(frames: np.ndarray, picture: np.ndarray, inside: np.ndarray, drag: dict) -> dict:
    """Slope, distance, overlap and motion of the ground of one video."""
    found, layer = places(frames, picture, inside), Layer(**drag)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    where = np.array([[x[f].mean(), y[f].mean()] if f.any() else [np.nan, np.nan] for f in found])
    times = np.linspace(0, 1, len(frames))
    wanted = [fill(layer.outline(t), SIZE, SIZE) for t in times]
    path = np.array([[x[w].mean(), y[w].mean()] for w in wanted])
    way = np.asarray(drag["by"]) / LONG
    along, asked = (where - where[0]) @ way, (path - path[0]) @ way
    good = np.isfinite(along)
    still = ~np.any(wanted, axis=0) & ~np.any(found, axis=0)
    flow = np.abs(estimate(frames)[0])[:, still]
    flow = np.median(flow[flow[..., 0] < OUT / 2], axis=0)  # of what is not hidden
    overlap = [(f & w).sum() / (f | w).sum() for f, w in zip(found, wanted, strict=True)]
    return {
        "slope": float((along[good] * asked[good]).sum() / np.square(asked).sum()),
        "distance": float(np.nanmean(np.hypot(*(where - path).T))),
        "overlap": float(np.mean(overlap)),
        "ground": float(np.hypot(*flow)),
    }


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drags", type=int, default=16)
    parser.add_argument("--pans", type=int, default=8)
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first picture")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument("--clocks", type=float, nargs=2, default=(0.15, 0.4))
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe = load("tiny")
    found: dict[str, list[dict]] = {way: [] for way in args.ways}
    clocks = {"loose": args.clocks[0], "tight": args.clocks[1]}
    with tempfile.TemporaryDirectory() as folder:
        asked = list(commands(args.drags, args.pans, args.first))
        for number, (picture, inside, caption, motion) in enumerate(asked):
            file = Path(folder) / f"{number}.png"
            Image.fromarray(picture).save(file)
            for seed, way in itertools.product(range(args.seeds), args.ways):
                led = way in ("dual-clock", "both")
                job = Job(
                    caption, seed=100 * seed + number, steps=args.steps, frames=FRAMES, width=SIZE,
                    height=SIZE, preset=None, strength=args.strength,
                    motion=None if way == "none" else motion, image=str(file) if led else None,
                    follow={"way": way, **clocks} if led else None,
                )  # fmt: skip
                frames = generate(pipe, job).frames
                if "drag" in motion:
                    found[way].append(measured(frames, picture, inside, motion["drag"][0]))
                else:
                    found[way].append(panned(frames, motion["camera"]["pan"]))
            print(f"{number + 1} of {len(asked)}", file=sys.stderr, flush=True)
    result: dict[str, dict[str, float]] = {}
    for way, cases in found.items():
        keys = dict.fromkeys(key for case in cases for key in case)
        result[way] = {
            key: float(np.mean([case[key] for case in cases if key in case])) for key in keys
        }
        told = ", ".join(f"{key} {value:.2f}" for key, value in result[way].items())
        print(f"{way:10s} {len(cases)} clips: {told}", flush=True)
    if args.json:
        units = {"slope": "", "distance": "pixels", "overlap": "", "ground": "pixels per frame"}
        append(args.json, flat(result, "follow", units), weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
