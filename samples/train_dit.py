"""Second stage of the embedded model: latents and warped noise, then transformer and text encoder.

Method. Rectified flow: ``x_t = (1 - t) x + t e``, the network predicts ``e - x``. The only
difference to ordinary training is ``e``: it is Gaussian noise warped along the clip's exact optical
flow (Go-with-the-Flow, arXiv 2501.08331, section 3), mixed with fresh noise at strength gamma ~
U(0, 1); one clip in ten gets pure noise. Since the captions never name the motion, noise is the
only place to learn it from. A random rotation of the noise channels, fresh at each use, gives each
stored warp endless variants: the channels are independent and share one graph, so the law stays
exactly the same.
"""

from __future__ import annotations

import copy
import multiprocessing
from functools import cache
from typing import Any

import numpy as np
import torch
from clips import sample_clip
from diffusers import AutoencoderKLWan
from tiny_model import (
    CHANNELS,
    PROMPT_TOKENS,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
    encode_text,
)
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm
from train_common import ROOT, WORK, Settings, cosine, descend, save_state, to_video

from accel.kernels.warp import warp_noise

LONG_PROMPT = 512  # WanPipeline's default padding; some batches train with it so that both work


def make_clip(task: tuple[int, Settings]) -> tuple[Tensor, Tensor, str]:
    """Latents and warped noise [16, 5, 8, 8] fp16 (not yet normalised) and caption of one clip."""
    index, s = task
    torch.set_num_threads(1)
    clip = sample_clip(1_000_000 * s.seed + index)
    vae = trained_vae()
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
def trained_vae() -> AutoencoderKLWan:
    """The VAE of the first stage, from its checkpoint or else from the exported model."""
    vae = build_vae().eval()
    if (WORK / "vae.pt").exists():
        vae.load_state_dict(torch.load(WORK / "vae.pt")["model"])
    else:
        exported = AutoencoderKLWan.from_pretrained(ROOT / "tiny-wan" / "vae")
        vae.load_state_dict(exported.float().state_dict())
    return vae


def make_data(s: Settings) -> dict[str, Any]:
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


def build_nets() -> torch.nn.ModuleDict:
    """Transformer and text encoder, which are trained together."""
    text = build_text_encoder(len(build_tokenizer()))
    return torch.nn.ModuleDict({"transformer": build_transformer(), "text": text})


def exported_nets() -> torch.nn.ModuleDict:
    """The nets of ``samples/tiny-wan``, to go on from where no checkpoint is left."""
    nets = build_nets()
    folder = ROOT / "tiny-wan"
    nets["transformer"].load_state_dict(
        type(nets["transformer"]).from_pretrained(folder / "transformer").float().state_dict()
    )
    nets["text"].load_state_dict(
        type(nets["text"]).from_pretrained(folder / "text_encoder").float().state_dict()
    )
    return nets


def sample_batch(
    s: Settings, step: int, latents: Tensor, data: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Clean latents and noise [B, 16, 5, 8, 8], times [B] and prompts; the step is the seed."""
    rng = np.random.default_rng((s.seed, step, 1))
    torch.manual_seed(s.seed * 100_003 + step)
    picks = rng.integers(0, len(latents), s.dit_batch)
    prompts = [data["captions"][i] if rng.random() > 0.1 else "" for i in picks]
    gamma = torch.from_numpy(rng.random(s.dit_batch)).float()
    if step < 0.75 * s.dit_steps:
        gamma = gamma**2  # motion is read from little-degraded noise; learn that first
    gamma[torch.from_numpy(rng.random(s.dit_batch) < 0.1)] = 1.0
    noise = mix_noise(rotate_channels(data["noise"][picks].float()), gamma)
    u = torch.rand(s.dit_batch)
    return latents[picks], noise, 2 * u / (1 + u), prompts  # more of the noisy end


def flow_loss(
    nets: torch.nn.ModuleDict, x: Tensor, noise: Tensor, times: Tensor, text: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity ``noise - x``."""
    t = times.view(-1, 1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        guess = nets["transformer"](
            (1 - t) * x + t * noise, timestep=times * 1000, encoder_hidden_states=text
        ).sample
    return (guess.float() - (noise - x)).square().mean()


def train_dit(s: Settings) -> None:
    """Rectified flow on the latents, with warped noise; transformer and text encoder together.

    Goes on from the checkpoint, else from the exported model, else from random weights.
    """
    torch.manual_seed(s.seed)
    data, tokenizer = make_data(s), build_tokenizer()
    latents = data["latents"].float()
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    latents = (latents - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    path, start, smooth = WORK / "dit.pt", 0, 0.0
    exported = (ROOT / "tiny-wan" / "model_index.json").exists()
    nets = exported_nets() if exported and not path.exists() else build_nets()
    average = copy.deepcopy(nets)
    optimiser = torch.optim.AdamW(nets.parameters(), lr=s.dit_lr, betas=(0.9, 0.98), fused=True)
    if path.exists():
        state = torch.load(path)
        nets.load_state_dict(state["nets"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = int(state["step"])
    nets["transformer"].compile(dynamic=False)  # one graph per prompt length
    bar = tqdm(range(start, s.dit_steps), "dit", initial=start, total=s.dit_steps)
    for step in bar:
        x, noise, times, prompts = sample_batch(s, step, latents, data)
        length = LONG_PROMPT if step % 8 == 7 else PROMPT_TOKENS
        loss = flow_loss(
            nets, x, noise, times, encode_text(nets["text"], tokenizer, prompts, length)
        )
        descend(optimiser, loss, cosine(step, s.dit_steps, s.dit_lr))
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
