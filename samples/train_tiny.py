"""Train the embedded model ``samples/tiny-wan`` from scratch.

First the VAE, then text encoder and transformer together, one stage at a time or ``all``:

    python samples/train_tiny.py vae      AutoencoderKLWan on short clips, 50 minutes
    python samples/train_tiny.py data     latents, captions, warped noise; single frames; 15 minutes
    python samples/train_tiny.py dit      WanTransformer3DModel and UMT5EncoderModel, 5 hours
    python samples/train_tiny.py export   samples/tiny-wan as fp16 safetensors

Times are for two cores. The third stage runs on a CUDA GPU if there is one, and a larger
``--dit-batch`` fills it. ``--warm`` starts it from the exported weights. ``--plain``, for the
ablation, gives it only ordinary noise and exports to ``build/tiny/plain-wan``. Every stage is
seeded, shows a progress bar, saves a checkpoint each 250 steps below ``build/tiny`` and continues
from it when started again.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np
import torch
from clips import sample_clip
from diffusers import AutoencoderKLWan
from pooled import pooled_latents
from tiny_model import build_vae, save_pipeline
from torch import Tensor
from tqdm import tqdm
from train_common import FRAMES, ROOT, SIZE, WORK, Settings, cosine, descend, save_state, to_video
from train_dit import build_nets, make_data, train_dit


def vae_clips(s: Settings) -> np.ndarray:
    """Return rendered training clips for the VAE, uint8 ``[N, F, H, W, 3]``, cached on disk."""
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
    """Return a batch of video, as float [B, 3, F, crop, crop] in -1..1.

    Batches are of equal work: 5-frame excerpts, or a quarter as many ``whole`` clips for a long
    causal context.
    """
    length = FRAMES if whole else 5
    batch = (SIZE // crop) ** 2 * (1 if whole else 4)
    cuts = []
    for i in rng.integers(0, len(clips), batch):
        f, y, x = (int(rng.integers(0, n + 1)) for n in (FRAMES - length, SIZE - crop, SIZE - crop))
        cuts.append(clips[i, f : f + length, y : y + crop, x : x + crop])
    return to_video(np.stack(cuts))


def train_vae(s: Settings) -> None:
    """Train the VAE: its encoder to the latents of ``pooled.py``, its decoder back from them.

    Losses are L1 + L2. The decoder gets the latents with a little noise, because those that a
    diffusion model makes are not exact. Crops of many clips come first: a batch must show many
    colors at once.
    """
    torch.manual_seed(s.seed)
    vae, path, start = build_vae(), WORK / "vae.pt", 0
    optimizer = torch.optim.AdamW(vae.parameters(), lr=s.vae_lr, betas=(0.9, 0.99))
    if path.exists():
        state = torch.load(path)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    clips = vae_clips(s)
    bar, smooth = tqdm(range(start, s.vae_steps), "vae", initial=start, total=s.vae_steps), 0.0
    for step in bar:
        rng = np.random.default_rng((s.seed, step))
        torch.manual_seed(s.seed * 100_003 + step)
        x = vae_batch(
            clips, rng, crop=32 if step < 0.75 * s.vae_steps else SIZE, whole=step % 4 == 3
        )
        latents = pooled_latents(x)
        posterior = vae.encode(x).latent_dist
        off = posterior.mean - latents
        error = vae.decode(latents + s.vae_noise * torch.randn_like(latents)).sample - x
        spread = (posterior.logvar - 2 * math.log(s.vae_noise)).square().mean()
        losses = [e.abs().mean() + e.square().mean() for e in (error, 0.2 * off)]
        rate = cosine(step, s.vae_steps, s.vae_lr)
        descend([optimizer], sum(losses) + 1e-3 * spread, rate)
        psnr = -10 * math.log10(float(error.detach().square().mean()) / 4)
        smooth = psnr if smooth == 0 else 0.98 * smooth + 0.02 * psnr
        bar.set_postfix(psnr=f"{smooth:.2f} dB", latents=f"{float(off.detach().std()):.4f}")
        if (step + 1) % 250 == 0 or step + 1 == s.vae_steps:
            save_state(
                path, model=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1
            )


def trained_vae() -> AutoencoderKLWan:
    """Return the VAE of the first stage, from its checkpoint or else from the exported model."""
    vae = build_vae().eval()
    if (WORK / "vae.pt").exists():
        vae.load_state_dict(torch.load(WORK / "vae.pt")["model"])
    else:
        exported = AutoencoderKLWan.from_pretrained(ROOT / "tiny-wan" / "vae")
        vae.load_state_dict(exported.float().state_dict())
    return vae


def export(s: Settings) -> None:
    """Write the averaged weights as a WanPipeline folder; those of ``plain`` go below ``build``."""
    state, vae = torch.load(s.checkpoint, map_location="cpu"), trained_vae()
    vae.register_to_config(latents_mean=state["mean"].tolist(), latents_std=state["std"].tolist())
    nets = build_nets()
    nets.load_state_dict(state["average"])
    folder = WORK / "plain-wan" if s.plain else ROOT / "tiny-wan"
    save_pipeline(folder, vae, nets["text"], nets["transformer"])
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB after {state['step']} steps")


STAGES = {"vae": train_vae, "data": make_data, "dit": train_dit, "export": export}


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, "all"])
    for name in ("clips", "stills", "vae-steps", "dit-steps", "dit-batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dit-lr", type=float)
    parser.add_argument("--warm", action="store_true", help="begin with the exported weights")
    parser.add_argument("--plain", action="store_true", help="ablation: only unwarped noise")
    chosen = vars(parser.parse_args())
    stage = chosen.pop("stage")
    settings = replace(Settings(), **{k: v for k, v in chosen.items() if v is not None})
    for run in STAGES.values() if stage == "all" else [STAGES[stage]]:
        run(settings)


if __name__ == "__main__":
    main()
