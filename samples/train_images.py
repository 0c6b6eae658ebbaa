"""Train the two small models of pictures that the bench of step rehash uses, from scratch.

    python samples/train_images.py vae      AutoencoderKL
    python samples/train_images.py dit      FluxTransformer2DModel with its text encoders
    python samples/train_images.py unet     UNet2DConditionModel with its text encoder
    python samples/train_images.py export   samples/tiny-dit and samples/tiny-unet, fp16
    python samples/train_images.py check    contact sheets in build/images, and what they show

``all`` runs all of them, each in less than 15 minutes on two cores. A stage is seeded, saves a
checkpoint each 250 steps below ``build/images`` and continues from it when started again. The first
three need nothing from each other. ``image_models.py`` has the models and their losses. Pictures
have one shape and captions as the embedded model's clips; one caption in ten is left empty, for
guidance.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from clips import picture, pixels, sample_layers
from image_models import (
    SIZE,
    TOKENS,
    build_dit,
    build_image_vae,
    build_unet,
    flow_loss,
    mean_latents,
    noise_loss,
    trained_parts,
)
from muon import Muon
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from train_common import ROOT, cosine, descend, save_state

from accel.core.run_pipeline import call
from accel.pipelines.load import load

FOLDER = ROOT.parent / "build" / "images"
BUILD = {"dit": build_dit, "unet": build_unet}
LOSS = {"dit": flow_loss, "unet": noise_loss}
DRAWN = 64  # side on which ``clips.py`` draws
UNSEEN = 10_000_000  # seeds from here on are not trained on
STEPS, GUIDANCE, SHOWN = 25, 3.0, 96


@dataclass(frozen=True)
class Length:
    """Seed and length of the training."""

    seed: int = 7
    pictures: int = 16000
    vae: int = 900
    dit: int = 1600
    unet: int = 1600
    batch: int = 16
    rate: float = 2e-3
    ema: float = 0.995


def draw(seed: int) -> tuple[np.ndarray, str]:
    """Return the picture of a seed, uint8 [32, 32, 3], and its caption."""
    rng = np.random.default_rng(seed)
    layers, caption = sample_layers(rng)
    while len(layers) != 2:
        layers, caption = sample_layers(rng)
    scale = DRAWN / SIZE
    points = scale * pixels(SIZE, SIZE) + (scale - 1) / 2
    return np.round(picture(layers, points, 0.0)[0] * 255).astype(np.uint8), caption


def draw_all(s: Length) -> tuple[Tensor, list[str]]:
    """Return all training pictures, uint8 [N, 3, 32, 32], and captions, cached on disk."""
    path = FOLDER / f"pictures-{s.seed}-{s.pictures}.pt"
    if not path.exists():
        first = 1_000_000 * s.seed
        drawn = [draw(first + i) for i in tqdm(range(s.pictures), "drawing")]
        FOLDER.mkdir(parents=True, exist_ok=True)
        stacked = torch.from_numpy(np.stack([picture for picture, _ in drawn])).movedim(-1, 1)
        save_state(path, pictures=stacked.clone(), captions=[caption for _, caption in drawn])
    data = torch.load(path)
    return data["pictures"], data["captions"]


def batch(
    s: Length, step: int, pictures: Tensor, captions: Sequence[str], count: int
) -> tuple[Tensor, list[str]]:
    """Return pictures [count, 3, 32, 32] in -1..1, half of them mirrored, and prompts."""
    rng = np.random.default_rng((s.seed, step))
    torch.manual_seed(s.seed * 100_003 + step)
    picks = rng.integers(0, len(pictures), count)
    x = pictures[picks].float() / 127.5 - 1
    mirrored = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
    prompts = [captions[i] if rng.random() > 0.1 else "" for i in picks]
    return torch.where(mirrored, x.flip(-1), x), prompts


def optimizers_of(net: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices in blocks, and AdamW for everything else."""
    named = list(net.named_parameters())
    inner = [p for name, p in named if "transformer_blocks" in name and p.dim() == 2]
    taken = {id(p) for p in inner}
    others = [p for _, p in named if id(p) not in taken]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98))]
    return [*found, Muon(inner, lr=rate)] if inner else found


def train(name: str, net: torch.nn.Module, loss: Any, s: Length, steps: int, count: int) -> None:
    """Train ``net`` to lower ``loss(pictures, prompts)``, with a running average of its weights."""
    pictures, captions = draw_all(s)
    path, start, smooth = FOLDER / f"{name}.pt", 0, 0.0
    average = copy.deepcopy(net)
    optimizers = optimizers_of(net, s.rate)
    if path.exists():
        state = torch.load(path)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, smooth = state["step"], state["loss"]
    bar = tqdm(range(start, steps), name, initial=start, total=steps, mininterval=5)
    for step in bar:
        value = loss(*batch(s, step, pictures, captions, count))
        descend(optimizers, value, cosine(step, steps, s.rate, flat=steps // 2))
        decay = min(s.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        now = float(value.detach())
        smooth = now if not smooth else 0.99 * smooth + 0.01 * now
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(
                path, net=net.state_dict(), average=average.state_dict(), step=step + 1,
                optimizers=[o.state_dict() for o in optimizers], loss=smooth,
            )  # fmt: skip


def train_image_vae(s: Length) -> None:
    """Train encoder and decoder to the latents of ``mean_latents`` and back, L1 + L2.

    The decoder gets them with a little noise, because those that a diffusion model makes are not
    exact.
    """
    torch.manual_seed(s.seed)
    vae = build_image_vae()

    def loss(x: Tensor, prompts: Sequence[str]) -> Tensor:
        latents = mean_latents(x)
        posterior = vae.encode(x).latent_dist
        seen = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        errors = (seen - x, 0.2 * (posterior.mean - latents))
        spread = (posterior.logvar - 2 * math.log(0.05)).square().mean()
        return sum(e.abs().mean() + e.square().mean() for e in errors) + 1e-3 * spread

    train("vae", vae, loss, s, s.vae, s.batch)


def train_denoiser(name: str, s: Length) -> None:
    """Train a denoiser and its text encoders together."""
    torch.manual_seed(s.seed)
    pipe = BUILD[name](build_image_vae())
    parts = trained_parts(pipe)

    def loss(x: Tensor, prompts: Sequence[str]) -> Tensor:
        return LOSS[name](pipe, mean_latents(x), prompts)

    train(name, parts, loss, s, getattr(s, name), s.batch)


def export(s: Length) -> None:
    """Write the averaged weights as pipeline folders, in fp16."""
    for name, build in BUILD.items():
        vae = build_image_vae()
        vae.load_state_dict(torch.load(FOLDER / "vae.pt")["average"])
        pipe, state = build(vae), torch.load(FOLDER / f"{name}.pt")
        trained_parts(pipe).load_state_dict(state["average"])
        folder = ROOT / f"tiny-{name}"
        pipe.to(torch.float16).save_pretrained(folder)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(
            f"{folder}: {size / 2**20:.1f} MiB, loss {state['loss']:.4f} at {state['step']} steps"
        )


def image_job(name: str, prompt: str, seed: int) -> dict[str, Any]:
    """Return arguments of a call of the model ``name``, and a seed."""
    job = {"prompt": prompt, "seed": seed, "height": SIZE, "width": SIZE}
    job["num_inference_steps"] = STEPS
    if name == "unet":
        return {**job, "guidance_scale": GUIDANCE}
    guided = {"true_cfg_scale": GUIDANCE, "negative_prompt": ""}
    return {**job, **guided, "max_sequence_length": TOKENS}


def check(s: Length) -> None:
    """Draw a contact sheet of each model, and say what its pictures show.

    Printed: how often the training picture that is nearest (mean squared error) to a generated one
    has the prompt's color, shape, pattern and ground, beside the same of pictures that were drawn
    for the prompt.
    """
    pictures, captions = draw_all(s)
    known = pictures.flatten(1).float()
    fresh = [draw(UNSEEN + i) for i in range(SHOWN)]
    prompts = [caption for _, caption in fresh]
    print(report("drawn", np.stack([x for x, _ in fresh]), prompts, known, captions))
    for name in BUILD:
        pipe = load(str(ROOT / f"tiny-{name}"))
        pipe.set_progress_bar_config(disable=True)
        made = [call(pipe, image_job(name, p, i))[0] for i, p in enumerate(tqdm(prompts, name))]
        print(report(name, np.stack(made), prompts, known, captions))
        rows = [np.concatenate(made[i : i + 12], 1) for i in range(0, SHOWN, 12)]
        sheet = Image.fromarray(np.concatenate(rows))
        sheet.resize((3 * sheet.width, 3 * sheet.height), 0).save(FOLDER / f"sheet-{name}.png")


def report(
    name: str, made: np.ndarray, prompts: Sequence[str], known: Tensor, captions: Sequence[str]
) -> str:
    """Return how like pictures uint8 [N, 32, 32, 3] and their prompts are to known ones."""
    flat = torch.from_numpy(made).movedim(-1, 1).flatten(1).float()
    far, nearest = torch.cdist(flat, known).min(1)
    decibels = -20 * torch.log10(far / (255 * flat.shape[1] ** 0.5)).mean()
    pairs = zip(prompts, (captions[int(i)] for i in nearest), strict=True)
    same = np.mean([np.equal(a.split(), b.split()) for a, b in pairs], axis=0)
    parts = {"color": 1, "shape": 2, "pattern": 5, "ground": 6}
    shares = ", ".join(f"{part} {same[place]:.0%}" for part, place in parts.items())
    return f"{name}: nearest picture {decibels:.1f} dB; {shares}"


STAGES = {
    "vae": train_image_vae,
    "dit": lambda s: train_denoiser("dit", s),
    "unet": lambda s: train_denoiser("unet", s),
    "export": export,
    "check": check,
}


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    for name in ("pictures", "vae", "dit", "unet"):
        parser.add_argument(f"--{name}", type=int)
    chosen = vars(parser.parse_args())
    stage = chosen.pop("stage")
    length = replace(Length(), **{k: v for k, v in chosen.items() if v is not None})
    for run in STAGES.values() if stage == "all" else [STAGES[stage]]:
        run(length)


if __name__ == "__main__":
    main()
