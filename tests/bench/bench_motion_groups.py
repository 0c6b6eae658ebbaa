"""How exactly the embedded model follows: kinds of motion, strengths, and equivariance.

    python tests/bench/bench_motion_groups.py [--flows 10] [--steps 20] [--guidance 1]

Ten flows the model never saw of each of four kinds: pans, zooms, rotations, two moving objects. For
every strength gamma: the correlation of commanded with measured flow over all of them and per
kind, how much of the commanded motion is there (slope of measured over commanded), and on pans the
end-point error in pixels (mean over cells); the same of the true clips. Then equivariance: noise
rolled by 8 pixels against the video rolled by as much, in dB PSNR of the inner picture, beside the
same for another seed's noise; means of eight seeds. ``--model`` takes another folder, such as an
ablation trained on plain noise; ``bench_plain_noise.py`` is one in closed form.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_motion import UNSEEN, correlation, following, measured_flow, pooled
from rows import append, flat, weights_of
from tqdm import tqdm

from accel.core.quality import psnr
from accel.core.run_pipeline import to_uint8
from accel.pipelines.generate import generate, motion_latents
from accel.pipelines.job import Job
from accel.pipelines.load import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))
from clips import Clip, Layer, render, sample_layers
from clips import Path as Route

UNITS = {"slope": "of the commanded motion", "(px)": "px", "(dB)": "dB", "": "correlation"}
KINDS = ("pan", "zoom", "rotation", "objects")
STRENGTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
ROLL, SEEDS = 8, 8  # pixels; clips that are rolled


def moved(layer: Layer, velocity: tuple[float, float], zoom: float, spin: float) -> Layer:
    """The layer on another path, at constant speed."""
    route = Route(layer.path.center, velocity, zoom, spin)
    return Layer(route, layer.color, layer.pattern, layer.shape, layer.size, layer.phase)


def clip_of(kind: str, index: int) -> Clip:
    """An unseen clip of one kind of motion; "objects": two shapes over a still background."""
    rng = np.random.default_rng(UNSEEN + 1000 * KINDS.index(kind) + index)
    layers, caption = sample_layers(rng)
    while kind == "objects" and len(layers) < 3:
        layers, caption = sample_layers(rng)
    if kind == "objects":
        layers[0] = moved(layers[0], (0.0, 0.0), 0.0, 0.0)
        return render(layers, caption)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
    sign = 1 if rng.random() < 0.5 else -1
    velocity = (speed * np.cos(angle), speed * np.sin(angle)) if kind == "pan" else (0.0, 0.0)
    zoom = sign * rng.uniform(0.008, 0.02) if kind == "zoom" else 0.0
    spin = sign * rng.uniform(0.015, 0.04) if kind == "rotation" else 0.0
    if kind != "pan":  # the shapes turn and grow with the picture, about their own centers
        return render([moved(layer, velocity, zoom, spin) for layer in layers], caption)
    return render([moved(layer, velocity, 0.0, 0.0) for layer in layers], caption)


def endpoint_error(commanded: np.ndarray, measured: np.ndarray) -> float:
    """Mean distance in pixels between pooled flows (dx and dy halves of each window)."""
    difference = (commanded - measured).reshape(-1, 2, 64)
    return float(np.hypot(difference[:, 0], difference[:, 1]).mean())


def slope(commanded: list[np.ndarray], measured: list[np.ndarray]) -> float:
    """How much of the commanded motion was measured, by least squares over all clips."""
    asked, got = np.concatenate(commanded), np.concatenate(measured)
    return float((asked * got).sum() / (asked * asked).sum())


def sweep(pipe: object, flows: int, steps: int, guidance: float) -> dict[str, float]:
    """Correlations, slopes and end-point errors on pans, by strength and of the true clips."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    commanded: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    tasks = [(kind, i) for kind in KINDS for i in range(flows)]
    with tempfile.TemporaryDirectory() as folder:
        for kind, i in tqdm(tasks, "clips"):
            clip = clip_of(kind, i)
            commanded[kind].append(pooled(clip.forward))
            videos = {"true clips": to_uint8(clip.frames)}
            for strength in STRENGTHS:
                job = following(
                    clip, folder, seed=i, steps=steps, guidance=guidance, preset=None,
                    strength=strength,
                )  # fmt: skip
                videos[f"strength {strength}"] = generate(pipe, job).frames
            for name, video in videos.items():
                found.setdefault((name, kind), []).append(pooled(measured_flow(video)))
    result = {}
    asked = [c for kind in KINDS for c in commanded[kind]]
    for name in videos:
        got = [v for kind in KINDS for v in found[name, kind]]
        result[f"r, {name}"], result[f"slope, {name}"] = correlation(asked, got), slope(asked, got)
        for kind in KINDS:
            result[f"r, {name}, {kind}"] = correlation(commanded[kind], found[name, kind])
        pairs = zip(commanded["pan"], found[name, "pan"], strict=True)
        errors = [endpoint_error(a, b) for a, b in pairs]
        result[f"end-point error on pans (px), {name}"] = float(np.mean(errors))
    return result


def equivariance(pipe: object, steps: int, guidance: float) -> dict[str, float]:
    """PSNR of videos of rolled noise against the rolled videos, inner picture, mean of 8 seeds."""
    job = Job(
        "a red circle on a striped blue background", steps=steps, guidance=guidance, preset=None,
        strength=0.0, motion={"camera": {"pan": [0.5, 0]}},
    ).resolved()  # fmt: skip

    def video(latents: torch.Tensor) -> np.ndarray:
        out = pipe(
            job.prompt, height=64, width=64, num_frames=17, num_inference_steps=steps,
            guidance_scale=job.guidance, latents=latents, output_type="np", max_sequence_length=32,
        )  # fmt: skip
        return (out.frames[0] * 255).round().astype(np.uint8)

    noises = [motion_latents(pipe, Job(**{**job.to_dict(), "seed": i})) for i in range(SEEDS)]
    cells = ROLL // pipe.vae_scale_factor_spatial
    inner = (slice(None), slice(8, -8), slice(16, -8))
    plain = [video(noise)[inner] for noise in noises]
    rolled = [video(torch.roll(noise, -cells, -1)) for noise in noises]
    found = [np.roll(frames, ROLL, 2)[inner] for frames in rolled]
    others = [*plain[1:], plain[0]]
    return {
        "rolled noise against rolled video (dB)": float(np.mean(list(map(psnr, found, plain)))),
        "another seed against rolled video (dB)": float(np.mean(list(map(psnr, others, plain)))),
    }


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--flows", type=int, default=10, help="of each kind")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    pipe = load(args.model)
    asked = (args.steps, args.guidance)
    result = {**sweep(pipe, args.flows, *asked), **equivariance(pipe, *asked)}
    for name, value in result.items():
        print(f"{name:50s} {value:.3f}")
    if args.json:
        append(args.json, flat(result, "motion-groups", UNITS), weights=weights_of(args.model))


if __name__ == "__main__":
    main()
