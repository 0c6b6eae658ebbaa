"""Train the embedded model ``samples/tiny-wan`` from nothing.

First the VAE, then text encoder and transformer together, one stage at a time or ``all``:

    python samples/train_tiny.py vae      AutoencoderKLWan on short clips, 40 minutes
    python samples/train_tiny.py data     latents, captions and warped noise, 10 minutes
    python samples/train_tiny.py dit      WanTransformer3DModel and UMT5EncoderModel, 3 to 5 hours
    python samples/train_tiny.py export   samples/tiny-wan as fp16 safetensors

(Times on two cores.) Every stage is seeded, shows a progress bar, saves a checkpoint each 250
steps below ``build/tiny`` and goes on from it when started again.

Method. Rectified flow: ``x_t = (1 - t) x + t e``, the network predicts ``e - x``. The only
difference to ordinary training is ``e``: it is Gaussian noise warped along the clip's exact optical
flow (Go-with-the-Flow, arXiv 2501.08331, section 3), mixed with fresh noise at strength gamma ~
U(0, 1); one clip in ten gets pure noise. Since the captions never name the motion, noise is the
only place to learn it from. A random rotation of the noise channels, fresh at each use, gives each
stored warp endless variants: the channels are independent and share one graph, so the law stays
exactly the same.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from clips import sample_clip
from tiny_model import (
    CHANNELS,
    PROMPT_TOKENS,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
    encode_text,
    save_pipeline,
)
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from accel.kernels.warp import warp_noise

ROOT = Path(__file__).resolve().parent
WORK = ROOT.parent / "build" / "tiny"
FRAMES, SIZE = 17, 64
LONG_PROMPT = (
    512  # WanPipeline's default padding; some batches train with it so that both lengths work
)


@dataclass(frozen=True)
class Settings:
    """What is trained and for how long; ``seed`` fixes data, weights and batches."""

    seed: int = 7
    clips: int = 9000
    vae_clips: int = 2000
    vae_steps: int = 5750
    vae_lr: float = 1.5e-3
    kl: float = 1e-3
    dit_steps: int = 16000
    dit_batch: int = 16
    dit_lr: float = 1e-3
    ema: float = 0.998


def save_state(path: Path, **state: object) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def cosine(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Learning rate at ``step``: linear warm-up, then a half cosine down to 1 % of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    x = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 ``[..., F, H, W, 3]`` to float ``[..., 3, F, H, W]`` in -1..1."""
    return torch.from_numpy(frames).float().movedim(-1, -4) / 127.5 - 1.0


def vae_clips(s: Settings) -> np.ndarray:
    """Rendered training clips for the VAE, uint8 ``[N, F, H, W, 3]``; cached on disk."""
    path = WORK / f"vae-clips-{s.seed}-{s.vae_clips}.npy"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        clips = [
            (sample_clip(1_000_000 * s.seed + i).frames * 255).round().astype(np.uint8)
            for i in tqdm(range(s.vae_clips), "rendering clips")
        ]
        np.save(path, np.stack(clips))
    return np.load(path)


def vae_batch(clips: np.ndarray, rng: np.random.Generator, *, crop: int, whole: bool) -> Tensor:
    """Equal work per batch: 5-frame excerpts, or whole clips (long causal context), fewer."""
    length = FRAMES if whole else 5
    batch = (SIZE // crop) ** 2 * (1 if whole else 4)
    cuts = []
    for i in rng.integers(0, len(clips), batch):
        f, y, x = (int(rng.integers(0, n + 1)) for n in (FRAMES - length, SIZE - crop, SIZE - crop))
        cuts.append(clips[i, f : f + length, y : y + crop, x : x + crop])
    return to_video(np.stack(cuts))


def train_vae(s: Settings) -> None:
    """L1 + L2 + small KL. Crops of many clips first: a batch must show many colours at once."""
    torch.manual_seed(s.seed)
    vae, path, start = build_vae(), WORK / "vae.pt", 0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=s.vae_lr, betas=(0.9, 0.99))
    if path.exists():
        state = torch.load(path)
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = int(state["step"])
    clips = vae_clips(s)
    bar, smooth = tqdm(range(start, s.vae_steps), "vae", initial=start, total=s.vae_steps), 0.0
    for step in bar:
        rng = np.random.default_rng((s.seed, step))
        torch.manual_seed(s.seed * 100_003 + step)
        x = vae_batch(
            clips, rng, crop=32 if step < 0.75 * s.vae_steps else SIZE, whole=step % 4 == 3
        )
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        loss = (
            (y - x).abs().mean()
            + (y - x).square().mean()
            + s.kl * posterior.kl().mean() / posterior.mean[0].numel()
        )
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, s.vae_steps, s.vae_lr)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        psnr = -10 * math.log10(float((y - x).detach().square().mean()) / 4)
        smooth = psnr if smooth == 0 else 0.98 * smooth + 0.02 * psnr
        bar.set_postfix(psnr=f"{smooth:.2f} dB", loss=f"{float(loss):.4f}")
        if (step + 1) % 250 == 0 or step + 1 == s.vae_steps:
            save_state(
                path, model=vae.state_dict(), optimiser=optimiser.state_dict(), step=step + 1
            )


def make_clip(task: tuple[int, Settings]) -> tuple[Tensor, Tensor, str]:
    """Latents and warped noise [16, 5, 8, 8] fp16 (not yet normalised) and caption of one clip."""
    index, s = task
    torch.set_num_threads(1)
    clip = sample_clip(1_000_000 * s.seed + index)
    vae = _vae()
    with torch.no_grad():
        frames = to_video((clip.frames * 255).round().astype(np.uint8))[None]
        latents = vae.encode(frames).latent_dist.mode()[0]
    noise = warp_noise(
        torch.from_numpy(clip.forward),
        backward=torch.from_numpy(clip.backward),
        channels=CHANNELS,
        seed=index,
    )
    pooled = avg_pool2d(noise[::4], 8) * 8  # every fourth frame; mean times 8 keeps unit variance
    return latents.half(), pooled.transpose(0, 1).half(), clip.caption


@cache
def _vae() -> torch.nn.Module:
    vae = build_vae().eval()
    vae.load_state_dict(torch.load(WORK / "vae.pt")["model"])
    return vae


def make_data(s: Settings) -> dict[str, object]:
    """Latents, warped noise and captions of all training clips; cached on disk."""
    path = WORK / f"data-{s.seed}-{s.clips}.pt"
    if not path.exists():
        tasks = [(i, s) for i in range(s.clips)]
        with multiprocessing.get_context("spawn").Pool() as pool:
            made = list(tqdm(pool.imap(make_clip, tasks, 16), "encoding clips", s.clips))
        latents, noise, captions = zip(*made, strict=True)
        save_state(
            path, latents=torch.stack(latents), noise=torch.stack(noise), captions=list(captions)
        )
    return torch.load(path)


def rotate_channels(noise: Tensor) -> Tensor:
    """``noise [B, C, ...]`` with channels mixed by a random orthogonal matrix per sample."""
    batch, channels = noise.shape[:2]
    q, r = torch.linalg.qr(torch.randn(batch, channels, channels))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    return torch.einsum("bij,bj...->bi...", q, noise)


def mix_noise(warped: Tensor, gamma: Tensor) -> Tensor:
    """Go-with-the-Flow's degradation: (1 - gamma) warped + gamma fresh, at unit variance."""
    gamma = gamma.view(-1, *[1] * (warped.dim() - 1))
    mixed = (1 - gamma) * warped + gamma * torch.randn_like(warped)
    return mixed / ((1 - gamma) ** 2 + gamma**2).sqrt()


def train_dit(s: Settings) -> None:
    """Rectified flow on the latents, with warped noise; transformer and text encoder together."""
    torch.manual_seed(s.seed)
    data, tokenizer = make_data(s), build_tokenizer()
    latents, warps, captions = data["latents"].float(), data["noise"], data["captions"]
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    latents = (latents - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    nets = torch.nn.ModuleDict(
        {"transformer": build_transformer(), "text": build_text_encoder(len(tokenizer))}
    )
    average = copy.deepcopy(nets)
    optimiser = torch.optim.AdamW(nets.parameters(), lr=s.dit_lr, betas=(0.9, 0.98))
    path, start, smooth = WORK / "dit.pt", 0, 0.0
    if path.exists():
        state = torch.load(path)
        nets.load_state_dict(state["nets"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = int(state["step"])
    bar = tqdm(range(start, s.dit_steps), "dit", initial=start, total=s.dit_steps)
    for step in bar:
        rng = np.random.default_rng((s.seed, step, 1))
        torch.manual_seed(s.seed * 100_003 + step)
        picks = rng.integers(0, len(latents), s.dit_batch)
        prompts = [captions[i] if rng.random() > 0.1 else "" for i in picks]
        gamma = torch.from_numpy(rng.random(s.dit_batch)).float()
        if step < 0.75 * s.dit_steps:
            gamma = gamma**2  # motion is read from little-degraded noise; learn that first
        gamma[torch.from_numpy(rng.random(s.dit_batch) < 0.1)] = 1.0
        noise = mix_noise(rotate_channels(warps[picks].float()), gamma)
        u = torch.rand(s.dit_batch)
        t = (2 * u / (1 + u)).view(-1, 1, 1, 1, 1)  # more of the noisy end, where motion is decided
        x = latents[picks]
        length = LONG_PROMPT if step % 8 == 7 else PROMPT_TOKENS
        text = encode_text(nets["text"], tokenizer, prompts, length)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            guess = nets["transformer"](
                (1 - t) * x + t * noise, timestep=t.flatten() * 1000, encoder_hidden_states=text
            ).sample
        loss = (guess.float() - (noise - x)).square().mean()
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, s.dit_steps, s.dit_lr)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimiser.step()
        decay = min(s.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), nets.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        smooth = float(loss) if smooth == 0 else 0.98 * smooth + 0.02 * float(loss)
        bar.set_postfix(loss=f"{smooth:.4f}")
        if (step + 1) % 250 == 0 or step + 1 == s.dit_steps:
            save_state(
                path, nets=nets.state_dict(), average=average.state_dict(), step=step + 1,
                optimiser=optimiser.state_dict(), mean=mean, std=std,
            )  # fmt: skip


def export(s: Settings) -> None:
    """Write the averaged weights as a WanPipeline folder."""
    state, vae, tokenizer = torch.load(WORK / "dit.pt"), build_vae(), build_tokenizer()
    vae.load_state_dict(torch.load(WORK / "vae.pt")["model"])
    vae.register_to_config(latents_mean=state["mean"].tolist(), latents_std=state["std"].tolist())
    nets = torch.nn.ModuleDict(
        {"transformer": build_transformer(), "text": build_text_encoder(len(tokenizer))}
    )
    nets.load_state_dict(state["average"])
    save_pipeline(ROOT / "tiny-wan", vae, nets["text"], nets["transformer"])
    size = sum(f.stat().st_size for f in (ROOT / "tiny-wan").rglob("*") if f.is_file())
    print(f"samples/tiny-wan: {size / 2**20:.1f} MiB after {state['step']} steps")


STAGES = {"vae": train_vae, "data": make_data, "dit": train_dit, "export": export}


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    for name in ("clips", "vae-steps", "dit-steps"):
        parser.add_argument(f"--{name}", type=int)
    chosen = vars(parser.parse_args())
    stage = chosen.pop("stage")
    settings = replace(Settings(), **{k: v for k, v in chosen.items() if v is not None})
    for run in STAGES.values() if stage == "all" else [STAGES[stage]]:
        run(settings)


if __name__ == "__main__":
    main()
