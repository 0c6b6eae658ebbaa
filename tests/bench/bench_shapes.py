"""Does the embedded model draw the shapes it is asked for? A judge without a network.

    python tests/bench/bench_shapes.py [--clips 20] [--steps 20] [--strength 0] [--guidance G]
        [--model tiny] [--json FILE]

Clips of one shape on a textured background, captions and motion as in training but unseen; 20 of
each of the four shapes. In the first, the middle and the last frame the shape is cut out by its
color (what is nearer to the shape's color than to the ground's, at any brightness they come in;
the largest piece, filled). Each of the four ideal shapes is laid over it in the best of 72
rotations, at equal center and area, and scored by intersection over union (IoU). Printed, for
generated clips, for the true ones, and for these through the VAE:

    asked      how often the asked shape fits best of the four (by chance 25 %)
    swapped    the same if the next shape had been asked for: the control
    IoU        with the asked shape, on average; nothing of the color drawn counts 0
    drawn      how often there is at least a quarter of a triangle of its size in the asked color
    kept       how often it is drawn in all three frames
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from bench_motion import UNSEEN, following
from bench_plain_noise import decoded
from rows import append, flat, weights_of
from tqdm import tqdm

from accel.core.run_pipeline import to_uint8
from accel.pipelines.generate import generate
from accel.pipelines.load import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))
from clips import COLORS, SHAPES, Layer, render, sample_layers, shape_distance
from clips import Path as Route
from train_common import to_video

FRAMES = (0, 8, 16)
TURNS = 72
SIDE = 64  # of the masks that are compared


def scenes(clips: int) -> list[tuple[list[Layer], str]]:
    """Unseen clips of one shape, ``clips`` of each kind; colors that can be told apart."""
    found: dict[str, list[tuple[list[Layer], str]]] = {shape: [] for shape in SHAPES}
    seed = UNSEEN + 50_000
    while any(len(of) < clips for of in found.values()):
        layers, caption = sample_layers(np.random.default_rng(seed))
        seed += 1
        greys = {layers[0].color, layers[-1].color} == {"grey", "white"}
        if len(layers) == 2 and not greys and len(found[layers[1].shape]) < clips:
            found[layers[1].shape].append((layers, caption))
    return [scene for of in found.values() for scene in of]


def _far(image: np.ndarray, color: str, low: float, high: float) -> np.ndarray:
    """Distance of each pixel from a color at brightness ``low`` to ``high`` times its own."""
    base = np.asarray(COLORS[color])
    along = np.clip(image @ base / (base @ base), low, high)
    return np.linalg.norm(image - along[..., None] * base, axis=-1)


def cut_out(image: np.ndarray, shape: str, ground: str) -> np.ndarray:
    """Mask [H, W] of the largest piece in color ``shape`` of uint8 ``image``, holes filled."""
    image = image / 255.0
    mask = _far(image, shape, 0.75, 1.05) < _far(image, ground, 0.0, 0.75)
    mask = mask.astype(np.uint8)
    count, pieces, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count == 1:
        return np.zeros(mask.shape, bool)
    largest = (pieces == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    outlines, _ = cv2.findContours(largest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(largest, outlines, -1, 1, cv2.FILLED).astype(bool)


@cache
def ideals(shape: str) -> np.ndarray:
    """The shape in 72 rotations, [72, 64, 64], center of mass in the middle, a quarter covered."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2.0
    made = []
    for turn in range(TURNS):
        size, center = 16.0, np.zeros(2)
        for _ in range(4):  # until center and area are right
            route = Route(tuple(center), (0.0, 0.0), 0.0, 2 * np.pi * turn / TURNS)
            layer = Layer(route, "red", "cloudy", shape, size, (0.0, 0.0, 0.0))
            mask = shape_distance(layer, np.stack([x, y], -1), 1.0) < 0
            center = center - [x[mask].mean(), y[mask].mean()]
            size *= (SIDE**2 / 4 / mask.sum()) ** 0.5
        made.append(mask)
    return np.stack(made)


def fits(mask: np.ndarray) -> dict[str, float]:
    """IoU of ``mask`` with each shape in its best rotation, at equal center and area."""
    if not mask.any():
        return dict.fromkeys(SHAPES, 0.0)
    y, x = np.nonzero(mask)
    zoom = (SIDE**2 / 4 / mask.sum()) ** 0.5
    middle = (SIDE - 1) / 2
    move = np.array([[zoom, 0, middle - zoom * x.mean()], [0, zoom, middle - zoom * y.mean()]])
    seen = cv2.warpAffine(mask.astype(np.float32), move, (SIDE, SIDE)) > 0.5
    return {
        shape: float(
            ((ideals(shape) & seen).sum((1, 2)) / (ideals(shape) | seen).sum((1, 2))).max()
        )
        for shape in SHAPES
    }


def judge(video: np.ndarray, layers: list[Layer]) -> dict[str, float]:
    """The columns of one clip, averaged over its frames."""
    ground, wanted = layers
    other = SHAPES[(SHAPES.index(wanted.shape) + 1) % len(SHAPES)]
    rows = []
    for k in FRAMES:
        mask = cut_out(video[k], wanted.color, ground.color)
        scores = fits(mask)
        best = max(scores, key=scores.get) if mask.any() else None
        size = wanted.size * np.exp(wanted.path.zoom * wanted.path.progress(k))
        drawn = mask.sum() > 0.25 * 2 * size**2
        rows.append([best == wanted.shape, best == other, scores[wanted.shape], drawn])
    asked, swapped, iou, drawn = np.mean(rows, 0)
    return {"asked": asked, "swapped": swapped, "IoU": iou, "drawn": drawn, "kept": drawn == 1}


@torch.no_grad()
def through_vae(pipe: object, frames: np.ndarray) -> np.ndarray:
    """A uint8 video encoded and decoded."""
    return decoded(pipe, pipe.vae.encode(to_video(frames)[None]).latent_dist.mean)


def measure(
    pipe: object, clips: int, steps: int, strength: float, guidance: float | None
) -> dict[str, dict[str, float]]:
    """Columns by kind of clip, averaged; of generated ones also by shape."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (layers, caption) in enumerate(tqdm(scenes(clips), "clips")):
            clip = render(layers, caption)
            job = following(
                clip, folder, seed=i, steps=steps, guidance=guidance, preset=None,
                strength=strength,
            )  # fmt: skip
            true = to_uint8(clip.frames)
            videos = {"true": true, "through the VAE": through_vae(pipe, true)}
            videos["generated"] = generate(pipe, job).frames
            videos[f"generated, {layers[1].shape}"] = videos["generated"]
            for name, video in videos.items():
                found.setdefault(name, []).append(judge(video, layers))
    result = {
        name: {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}
        for name, rows in found.items()
    }
    if result["true"]["asked"] < 0.9 or result["true"]["swapped"] > 0.1:
        raise AssertionError(f"the judge errs on true clips: {result['true']}")
    return result


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.0)
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(load(args.model), args.clips, args.steps, args.strength, args.guidance)
    print(f"{'':22s}" + "".join(f"{name:>9s}" for name in result["true"]))
    for name, row in result.items():
        print(f"{name:22s}" + "".join(f"{value:9.2f}" for value in row.values()))
    if args.json:
        figures = flat(result, "shapes", {"": "share"})
        append(args.json, figures, weights=weights_of(args.model))


if __name__ == "__main__":
    main()
