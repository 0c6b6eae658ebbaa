"""How far motion would be followed without any training on warped noise, in closed form.

    python tests/bench/bench_plain_noise.py [--clips 1000] [--flows 10] [--json FILE]

An ablation that needs no training: a Gaussian model with the mean and covariance of the latents of
clips like those of training, at their full range of speeds (stationary over the picture, full over
frames and channels). What rectified flow trained on ordinary noise would make of it is known
exactly, since the probability-flow ODE of a Gaussian takes noise ``e`` to ``mean + covariance^(1/2)
e``. Warped noise goes through the same filter, then through the VAE, and motion is measured as for
the embedded model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_motion import UNSEEN, correlation, following, measured_flow, pooled
from bench_motion_groups import KINDS, STRENGTHS, clip_of, slope
from rows import append, flat, weights_of
from torch import Tensor
from tqdm import tqdm

from accel.core.run_pipeline import to_uint8
from accel.pipelines.generate import motion_latents
from accel.pipelines.load import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))
from clips import sample_clip
from pooled import pooled_latents


def gaussian(clips: int) -> tuple[Tensor, Tensor]:
    """Mean [1, 12, 5, 1, 1] of clips' latents and roots of their covariance, [16, 16, 60, 60].

    One root for every spatial frequency, complex, over channels and frames.
    """
    seeds = tqdm(range(clips), "clips of the covariance")
    frames = (torch.from_numpy(sample_clip(UNSEEN // 2 + i).frames) for i in seeds)
    latents = torch.cat([pooled_latents(f.movedim(-1, 0)[None] * 2 - 1) for f in frames])
    mean = latents.mean((0, 3, 4), keepdim=True)
    waves = torch.fft.fft2(latents - mean, norm="ortho").flatten(1, 2)
    covariance = torch.einsum("bihw,bjhw->hwij", waves, waves.conj()) / clips
    values, vectors = torch.linalg.eigh(covariance)
    spread = torch.diag_embed(values.clamp_min(0).sqrt()).to(vectors.dtype)
    return mean, vectors @ spread @ vectors.mH


@torch.no_grad()
def decoded(pipe: object, latents: Tensor) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] of the VAE's own ``latents`` [1, 12, T, H / 4, W / 4]."""
    return to_uint8(pipe.vae.decode(latents).sample[0].movedim(0, -1) / 2 + 0.5)


def video(pipe: object, noise: Tensor, mean: Tensor, root: Tensor) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] that the Gaussian model makes of ``noise`` [1, 12, 5, 16, 16]."""
    waves = torch.fft.fft2(noise.float(), norm="ortho").flatten(1, 2)
    waves = torch.einsum("hwij,bjhw->bihw", root, waves).unflatten(1, noise.shape[1:3])
    return decoded(pipe, torch.fft.ifft2(waves, norm="ortho").real + mean)


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--flows", type=int, default=10, help="of each kind")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    mean, root = gaussian(args.clips)
    pipe, commanded = load("tiny"), []
    found: dict[float, list[np.ndarray]] = {strength: [] for strength in STRENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for i in tqdm(range(args.flows), kind):
                clip = clip_of(kind, i)
                commanded.append(pooled(clip.forward))
                for strength in STRENGTHS:
                    job = following(clip, folder, seed=i, strength=strength)
                    noise = motion_latents(pipe, job.resolved())
                    found[strength].append(pooled(measured_flow(video(pipe, noise, mean, root))))
    result = {}
    for strength, flows in found.items():
        r, share = correlation(commanded, flows), slope(commanded, flows)
        print(f"strength {strength}: r {r:.3f}, slope {share:.2f}")
        result |= {f"r, strength {strength}": r, f"slope, strength {strength}": share}
    if args.json:
        units = {"slope": "of the commanded motion", "": "correlation"}
        append(args.json, flat(result, "plain-noise", units), weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
