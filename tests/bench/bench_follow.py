"""How closely are drags followed: by warped noise, by a dual clock, or by both?

    python tests/bench/bench_follow.py [--drags 12] [--steps 20] [--clocks 0.15 0.4] [--json FILE]

A procedural picture of one shape, which the model never saw, is the job's picture; the shape is cut
out and dragged over unmoving ground, in directions round the circle. In the video the shape is
found by its color. Printed for every way, and for no control at all: the slope of its measured over
its commanded displacement along the drag, its mean distance from the commanded path in pixels, the
share of the area that it and its commanded place have together (IoU), and the median motion of the
ground in pixels a frame.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rows import ROOT, append, flat, weights_of

from accel.core.optical_flow import estimate
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.pipelines.motion.layers import Layer, fill

sys.path.insert(0, str(ROOT / "samples"))
import clips

SIZE, FRAMES, LONG = 64, 17, 22.0
FIRST = 900_000  # seeds of pictures that no training saw
WAYS = ("none", "noise", "dual-clock", "both")


def scenes(count: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Pictures [64, 64, 3] of one shape, the shape's place [64, 64], and what they show."""
    seed = FIRST
    while count:
        layers, caption = clips.sample_layers(np.random.default_rng(seed), SIZE)
        seed += 1
        if len(layers) != 2:
            continue
        points = clips.pixels(SIZE, SIZE)
        picture, _ = clips.picture(layers, points, 0.0)
        inside = clips.shape_distance(layers[1], points, 0.0) < 0
        if inside.sum() > 250:
            count -= 1
            yield (picture * 255).round().astype(np.uint8), inside, caption


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
    flow = np.median(np.abs(estimate(frames)[0])[:, ~inside & ~wanted[-1]], axis=(0, 1))
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
    parser.add_argument("--drags", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument(
        "--clocks", type=lambda t: tuple(map(float, t.split(","))), default=(0.15, 0.4)
    )
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipe, found = load("tiny"), {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory() as folder:
        for number, (picture, inside, caption) in enumerate(scenes(args.drags)):
            if (drag := drag_of(inside, number, args.drags)) is None:
                continue
            file = Path(folder) / f"{number}.png"
            Image.fromarray(picture).save(file)
            for way in args.ways:
                clocks = {"loose": args.clocks[0], "tight": args.clocks[1]}
                led = way in ("dual-clock", "both")
                job = Job(
                    caption, seed=number, steps=args.steps, frames=FRAMES, width=SIZE, height=SIZE,
                    preset=None, strength=args.strength,
                    motion=None if way == "none" else {"drag": [drag]},
                    image=str(file) if led else None,
                    follow={"way": way, **clocks} if led else None,
                )  # fmt: skip
                found[way].append(measured(generate(pipe, job).frames, picture, inside, drag))
            print(f"{number + 1} of {args.drags}", end="\r", file=sys.stderr)
    result = {}
    for way, cases in found.items():
        result[way] = {key: float(np.mean([c[key] for c in cases])) for key in cases[0]}
        told = ", ".join(f"{key} {value:.2f}" for key, value in result[way].items())
        print(f"{way:10s} {len(cases)} drags: {told}")
    if args.json:
        units = {"slope": "", "distance": "pixels", "overlap": "", "ground": "pixels per frame"}
        append(args.json, flat(result, "follow", units), weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
