"""Fine-tune a LoRA of a diffusers video transformer on warped noise, so that it follows motion.

    python samples/finetune_warped_noise.py --model tiny --clips FOLDER --out lora [--steps 1000]

``FOLDER`` holds videos, each with a caption in a text file of its name (``a.mp4``, ``a.txt``);
their motion is taken from the pictures (OpenCV's DIS). ``--clips procedural`` draws clips with
exact flow instead. The loss is the model's own: rectified flow, or epsilon and v-prediction by the
scheduler's config. Only the noise changes: it is warped along each clip's flow and degraded with
gamma ~ U(0, 1) (Go-with-the-Flow, arXiv 2501.08331). One clip in ten gets plain noise, so the model
still works without control. The LoRA is saved by the pipeline and loads with
``pipe.load_lora_weights``. It works for the families of ``accel.pipelines.motion.latents`` whose
transformer takes latents over frames, a timestep and one text embedding: Wan and CogVideoX.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import sample_clip
from torch import Tensor
from tqdm import tqdm
from train_common import cosine, descend, to_video

from accel.pipelines.load import load
from accel.pipelines.motion.driving import Driving
from accel.pipelines.motion.encode import normalized
from accel.pipelines.motion.latents import Geometry, arrange, latent_geometry, warped_latents
from accel.pipelines.video_reading import read_spread

PLAIN = 0.1  # share of clips with ordinary noise


@dataclass(frozen=True)
class Settings:
    """Settings of the training.

    The LoRA has ``rank`` (and an equal alpha) in the linear layers ``targets``.
    """

    steps: int = 1000
    rank: int = 32
    lr: float = 1e-4
    seed: int = 0
    frames: int = 17
    height: int = 64
    width: int = 64
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Example:
    """One clip of the training.

    ``frames`` are float [3, F, H, W] in -1..1; the flows are [F - 1, 2, H, W] pixels.
    """

    frames: Tensor
    forward: Tensor
    backward: Tensor
    caption: str


def procedural(s: Settings) -> Iterator[Example]:
    """Yield an endless sequence of drawn square clips with exact flow."""
    index = 0
    while True:
        clip = sample_clip(50_000_000 + 100_000 * s.seed + index, frames=s.frames, size=s.height)
        frames = to_video((clip.frames * 255).round().astype(np.uint8))
        flows = torch.from_numpy(clip.forward), torch.from_numpy(clip.backward)
        yield Example(frames, *flows, clip.caption)
        index += 1


def from_folder(folder: Path, s: Settings) -> Iterator[Example]:
    """Yield an endless sequence of clips from the videos of a folder, in random order.

    Raises ValueError for a folder without videos, or with a video without a caption.
    """
    videos = sorted(p for p in folder.glob("*") if p.suffix in {".mp4", ".mkv", ".webm", ".mov"})
    missing = [p.name for p in videos if not p.with_suffix(".txt").is_file()]
    if not videos or missing:
        raise ValueError(f"{folder} needs videos with a .txt caption each; missing: {missing}")
    rng = np.random.default_rng(s.seed)
    while True:
        video = videos[rng.integers(len(videos))]
        source = Driving(str(video), cuts="fresh")
        flows = source.flows(s.frames, s.height, s.width)
        pair = [torch.from_numpy(f).float().permute(0, 3, 1, 2).contiguous() for f in flows]
        frames = to_video(read_spread(video, s.frames, (s.height, s.width))[0])
        yield Example(frames, *pair, video.with_suffix(".txt").read_text().strip())


def encode(pipe: Any, frames: Tensor) -> Tensor:
    """Return clean latents [1, C, F', H', W'] as the denoiser takes them.

    They are normalized by the VAE's config. ``frames`` [3, F, H, W] are in -1..1.
    """
    vae = pipe.vae
    return normalized(vae, vae.encode(frames[None].to(vae.dtype)).latent_dist.mode().float())


def noisy(scheduler: Any, x: Tensor, noise: Tensor, u: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, the model's target, and the timestep at time ``u``.

    ``u`` in 0..1 is the time of the scheduler's training. Raises ValueError for an unknown kind of
    prediction.
    """
    config = scheduler.config
    if getattr(config, "use_flow_sigmas", False) or "FlowMatch" in type(scheduler).__name__:
        shift = getattr(config, "flow_shift", None) or getattr(config, "shift", None) or 1.0
        t = shift * u / (1 + (shift - 1) * u)
        time = torch.tensor([t * config.num_train_timesteps])
        return (1 - t) * x + t * noise, noise - x, time
    step = torch.tensor([min(int(u * config.num_train_timesteps), config.num_train_timesteps - 1)])
    mixed = scheduler.add_noise(x, noise, step).to(x.dtype)
    if config.prediction_type == "epsilon":
        return mixed, noise, step
    if config.prediction_type == "v_prediction":
        return mixed, scheduler.get_velocity(x, noise, step).to(x.dtype), step
    raise ValueError(f"no training target for prediction_type {config.prediction_type!r}")


def conditions(pipe: Any, caption: str) -> dict[str, Tensor]:
    """Return the text input of the transformer."""
    embeddings = pipe.encode_prompt(prompt=caption, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeddings[0]}


def add_lora(transformer: torch.nn.Module, s: Settings) -> list[torch.nn.Parameter]:
    """Freeze everything, add trainable low-rank layers, and return their parameters."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=s.rank, lora_alpha=s.rank, target_modules=list(s.targets)))
    return [p for p in transformer.parameters() if p.requires_grad]


def loss_of(pipe: Any, geometry: Geometry, example: Example, seed: int) -> Tensor:
    """Return the loss of one clip; all random numbers follow from ``seed``."""
    rng = np.random.default_rng(seed)
    gamma = 1.0 if rng.random() < PLAIN else float(rng.random())
    noise = warped_latents(
        example.forward, geometry, seed=seed, strength=gamma, backward=example.backward
    )
    with torch.no_grad():
        x, text = encode(pipe, example.frames), conditions(pipe, example.caption)
    mixed, target, time = noisy(pipe.scheduler, x, noise, float(rng.random()))
    guess = pipe.transformer(
        arrange(mixed, geometry.layout), timestep=time, return_dict=False, **text
    )[0]
    return (guess.float() - arrange(target, geometry.layout)).square().mean()


def finetune(
    pipe: Any, examples: Iterator[Example], s: Settings, *, on_step: Callable[[int, float], None]
) -> None:
    """Train a LoRA inside ``pipe.transformer``.

    ``on_step(step, loss)`` is called after every step. Raises ValueError for a pipeline without a
    video transformer.
    """
    geometry = latent_geometry(pipe)
    if geometry.layout not in ("BCFHW", "BFCHW") or not hasattr(pipe, "transformer"):
        raise ValueError(f"{type(pipe).__name__} has no video transformer over latent frames")
    torch.manual_seed(s.seed)
    parameters = add_lora(pipe.transformer, s)
    optimizer = torch.optim.AdamW(parameters, lr=s.lr)
    for step in range(s.steps):
        loss = loss_of(pipe, geometry, next(examples), s.seed * 1_000_003 + step)
        descend([optimizer], loss, cosine(step, s.steps, s.lr, warmup=min(100, s.steps // 10)))
        on_step(step, loss.item())


def save(pipe: Any, folder: Path) -> None:
    """Write the LoRA so that ``pipe.load_lora_weights(folder)`` finds it."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(folder, transformer_lora_layers=layers)


def main() -> None:
    """Load a pipeline, train the LoRA and save it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", help="tiny, a folder, or a hub id")
    parser.add_argument("--clips", default="procedural", help="a folder, or procedural")
    parser.add_argument("--out", type=Path, required=True)
    for name in ("steps", "rank", "lr", "seed", "frames", "height", "width"):
        value = getattr(Settings, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = vars(parser.parse_args())
    model, clips, out = args.pop("model"), args.pop("clips"), args.pop("out")
    s = Settings(**args)
    examples = procedural(s) if clips == "procedural" else from_folder(Path(clips), s)
    pipe = load(model)
    with tqdm(total=s.steps) as bar:
        finetune(
            pipe, examples, s, on_step=lambda _, loss: (bar.set_postfix(loss=loss), bar.update())
        )
    save(pipe, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
