"""Second stage of the embedded model: latents and warped noise, then transformer and text encoder.

Method. Rectified flow: ``x_t = (1 - t) x + t e``, the network predicts ``e - x``. The only
difference to ordinary training is ``e``: it is Gaussian noise warped along the clip's exact optical
flow (Go-with-the-Flow, arXiv 2501.08331, section 3): undegraded for three clips in ten, mixed with
fresh noise at strength gamma ~ U(0, 0.4) for three and U(0, 1) for three, pure fresh noise for one.
Since the captions never name the motion, noise is the only place to learn it from. A random
rotation of the noise channels, fresh at each use, gives each stored warp endless variants: the
channels are independent and share one graph, so the law stays exactly the same.

One step in four has prompts padded to 512 tokens and is also to predict what it does for the short
padding of all others, so that a video does not depend on it: there is no mask on padding.

One step in three is on single frames: what shapes look like is learned from five times as many of
them for the same work, and carries over to clips.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from clips import picture, pixels, render, sample_layers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from following import GRID, FollowingHeads, follow_targets, token_paths
from muon import Muon
from pooled import CHANNELS, SPATIAL, TEMPORAL, pooled_latents
from scenes import SceneHead, latent_times, mirror_scenes, near_outline, scene_of, scene_targets
from tiny_model import (
    PROMPT_TOKENS,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    encode_text,
)
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm
from train_common import (
    DEVICE,
    FRAMES,
    ROOT,
    SIZE,
    WORK,
    Settings,
    cosine,
    descend,
    save_state,
    to_video,
)
from transformers import UMT5EncoderModel

from accel.kernels.warp import warp_noise

# Of a channel in the loss: by coefficient of the cosine transform, slowest first; 1 on average.
WEIGHTS = torch.tensor([1.82, 1.27, 0.64, 0.27]).repeat_interleave(3)
NEAR = 3.0  # how much more latent pixels near a shape count once the noise is gone
LONG_PROMPT = 512  # WanPipeline's default padding


def make_clip(task: tuple[int, Settings]) -> tuple[np.ndarray | str, ...]:
    """Of one clip: latents and noise [12, 5, 16, 16], paths [5, 5, 64, 2], what tokens show
    [5, 8, 8, WIDTH], all fp16; caption.
    """
    index, s = task
    torch.set_num_threads(1)
    rng = np.random.default_rng(1_000_000 * s.seed + index)
    # Slow motion is the harder to learn: what moves by less than a latent pixel sticks to the grid.
    layers, caption = sample_layers(rng, speed=rng.uniform(0.5, 2.5))
    clip = render(layers, caption)
    latents = pooled_latents(to_video(clip.frames * 255)[None])[0]
    noise = warp_noise(
        torch.from_numpy(clip.forward),
        backward=torch.from_numpy(clip.backward),
        channels=CHANNELS,
        seed=index,
    )
    # One frame per latent frame; the mean over n x n times n keeps unit variance.
    pooled = avg_pool2d(noise[::TEMPORAL], SPATIAL) * SPATIAL
    noise = pooled.transpose(0, 1).half().numpy()
    return latents.half().numpy(), noise, token_paths(layers), scene_targets(layers), caption


def make_still(task: tuple[int, Settings]) -> tuple[np.ndarray | str, ...]:
    """Of one frame of a clip: latents [12, 1, 16, 16], what tokens show [1, 8, 8, WIDTH]; caption.

    Its seeds follow those of the clips.
    """
    index, s = task
    torch.set_num_threads(1)
    rng = np.random.default_rng(1_000_000 * s.seed + s.clips + index)
    layers, caption = sample_layers(rng)
    time = float(rng.uniform(0, FRAMES - 1))
    frame, _ = picture(layers, pixels(SIZE, SIZE), time)
    latents = pooled_latents(to_video(frame[None] * 255)[None])[0]
    return latents.half().numpy(), scene_of(layers, time)[None].astype(np.float16), caption


def make_all(pool: Any, make: Callable[..., Any], count: int, s: Settings) -> list[list[Any]]:
    """What ``make`` gives of each of ``count`` seeds, by kind."""
    tasks = [(i, s) for i in range(count)]
    made = list(tqdm(pool.imap(make, tasks, 16), make.__name__, count))
    *arrays, captions = zip(*made, strict=True)
    return [*(torch.from_numpy(np.stack(a)) for a in arrays), list(captions)]


def make_data(s: Settings) -> dict[str, Any]:
    """Latents, warped noise, paths, scenes and captions of all training clips; cached on disk.

    ``stills`` are latents, scenes and captions of single frames.
    """
    path = WORK / f"data-{s.seed}-{s.clips}-{s.stills}.pt"
    if not path.exists():
        with multiprocessing.get_context("spawn").Pool() as pool:
            clips = make_all(pool, make_clip, s.clips, s)
            stills = make_all(pool, make_still, s.stills, s)
        data = dict(zip(("latents", "noise", "paths", "scenes", "captions"), clips, strict=True))
        data["stills"] = dict(zip(("latents", "scenes", "captions"), stills, strict=True))
        save_state(path, **data)
    return torch.load(path)


def rotate_channels(noise: Tensor) -> Tensor:
    """``noise [B, C, ...]`` with channels mixed by a random orthogonal matrix per sample."""
    batch, channels = noise.shape[:2]
    q, r = torch.linalg.qr(torch.randn(batch, channels, channels, device=noise.device))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    return torch.einsum("bij,bj...->bi...", q, noise)


def mix_noise(warped: Tensor, gamma: Tensor) -> Tensor:
    """Go-with-the-Flow's degradation: (1 - gamma) warped + gamma fresh, at unit variance."""
    gamma = gamma.view(-1, *[1] * (warped.dim() - 1))
    mixed = (1 - gamma) * warped + gamma * torch.randn_like(warped)
    return mixed / ((1 - gamma) ** 2 + gamma**2).sqrt()


def build_nets() -> torch.nn.ModuleDict:
    """Transformer and text encoder, which are trained together.

    Keys begin as queries: tokens then attend to tokens that look like them, which are those with
    the same noise in other frames, so features travel along the commanded motion from the first
    step on. From independent weights that takes far longer to be found than everything else.
    """
    text, transformer = build_text_encoder(len(build_tokenizer())), build_transformer()
    for block in transformer.blocks:
        block.attn1.to_k.load_state_dict(block.attn1.to_q.state_dict())
    return torch.nn.ModuleDict({"transformer": transformer, "text": text})


def exported_nets() -> tuple[torch.nn.ModuleDict, Tensor, Tensor]:
    """Transformer and text encoder of ``samples/tiny-wan``, and its latents' mean and deviation."""
    folder, nets = ROOT / "tiny-wan", build_nets()
    stored = {
        "transformer": WanTransformer3DModel.from_pretrained(folder / "transformer"),
        "text": UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
    }
    for name, module in stored.items():
        nets[name].load_state_dict(module.float().state_dict())
    config = AutoencoderKLWan.load_config(folder / "vae")
    mean, std = (torch.tensor(config[f"latents_{name}"]) for name in ("mean", "std"))
    return nets, mean, std


class Batch(NamedTuple):
    """Latents and noise [B, 12, T, 16, 16], times [B], what tokens show [B, T, 8, 8, WIDTH].

    ``follow`` are targets of attention [B, 320, 320], of clips; single frames (T = 1) have none.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    scenes: Tensor
    prompts: list[str]
    follow: Tensor | None = None

    def mixed(self) -> Tensor:
        """What the transformer is given: latents with noise, by time."""
        t = self.times.view(-1, 1, 1, 1, 1)
        return (1 - t) * self.latents + t * self.noise


def mirror(latents: Tensor, noise: Tensor, paths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same clips seen in a mirror, left for right; captions name neither."""
    paths = paths.unflatten(3, (GRID, GRID)).flip(4).flatten(3, 4)  # a copy
    paths[..., 0] = GRID - 1 - paths[..., 0]
    return latents.flip(-1), noise.flip(-1), paths


def some(captions: list[str], picks: np.ndarray, rng: np.random.Generator) -> list[str]:
    """The captions picked; one in ten left empty, for guidance."""
    return [captions[i] if rng.random() > 0.1 else "" for i in picks]


def some_times(count: int, device: torch.device) -> Tensor:
    """Random times [count] in 0..1, more of the noisy end."""
    u = torch.rand(count, device=device)
    return 2 * u / (1 + u)


def sample_clips(s: Settings, step: int, data: dict[str, Any]) -> Batch:
    """One batch of clips; the step is the seed. The tensors of ``data`` are on one device."""
    rng = np.random.default_rng((s.seed, step, 1))
    torch.manual_seed(s.seed * 100_003 + step)
    picks = rng.integers(0, len(data["latents"]), s.dit_batch)
    prompts = some(data["captions"], picks, rng)
    # Motion is learned from noise that is hardly degraded, so most of the clips have such.
    draw, gamma = rng.random(s.dit_batch), rng.random(s.dit_batch)
    gamma[draw < 0.6] *= 0.4
    gamma[draw < 0.3] = 0.0
    gamma[draw > 0.9] = 1.0
    gamma = torch.from_numpy(np.where(s.plain, 1.0, gamma)).float()
    x, noise, paths = data["latents"][picks], data["noise"][picks].float(), data["paths"][picks]
    scenes, device = data["scenes"][picks].float(), x.device
    if rng.random() < 0.5:
        x, noise, paths = mirror(x, noise, paths)
        scenes = mirror_scenes(scenes)
    noise = mix_noise(rotate_channels(noise), gamma.to(device))
    # From noise that is mostly fresh there is nothing to learn of where to look.
    follow = follow_targets(paths) * (gamma <= 0.5).to(device).view(-1, 1, 1)
    return Batch(x, noise, some_times(s.dit_batch, device), scenes, prompts, follow)


def sample_stills(s: Settings, step: int, data: dict[str, Any]) -> Batch:
    """One batch of single frames, as many as a batch of clips has; the step is the seed."""
    rng = np.random.default_rng((s.seed, step, 2))
    torch.manual_seed(s.seed * 100_003 + step)
    count = s.dit_batch * len(latent_times())
    picks = rng.integers(0, len(data["latents"]), count)
    prompts = some(data["captions"], picks, rng)
    x, scenes = data["latents"][picks], data["scenes"][picks].float()
    if rng.random() < 0.5:
        x, scenes = x.flip(-1), mirror_scenes(scenes)
    return Batch(x, torch.randn_like(x), some_times(count, x.device), scenes, prompts)


def velocity(nets: torch.nn.ModuleDict, batch: Batch, text: Tensor) -> Tensor:
    """What the transformer predicts for a batch: the velocity ``noise - x``, shaped as latents."""
    x = batch.mixed()
    fast = x.is_cuda or torch.cpu._is_avx512_bf16_supported()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast):
        guess = nets["transformer"](
            x, timestep=batch.times * 1000, encoder_hidden_states=text
        ).sample
    return guess.float()


def flow_loss(guess: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of the predicted velocity, and of its change over frames.

    Both have the same minimiser; the second gives motion, which is a small part of the first, more
    weight. Fast changes within a latent frame, which are hard to predict and hardly seen, count
    less (``WEIGHTS``). Shapes are a small part of a clip, and count more (``NEAR``) the less noise
    there is: where it hides whether there is a shape, to weigh by that would have too many drawn.
    """
    error = guess - (batch.noise - batch.latents)
    error *= WEIGHTS.to(error.device).sqrt().view(-1, 1, 1, 1)
    calm = (1 - batch.times).view(-1, 1, 1, 1, 1)
    error *= (1 + NEAR * calm * near_outline(batch.scenes)).sqrt()
    loss = error.square().mean()
    return loss if error.shape[2] == 1 else loss + error.diff(dim=2).square().mean()


def build_optimisers(
    nets: torch.nn.ModuleDict, scene: SceneHead, rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for everything else."""
    matrices = [p for p in nets["transformer"].blocks.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in (*nets.parameters(), *scene.parameters()) if id(p) not in taken]
    return [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), fused=True),
        Muon(matrices, lr=rate),
    ]


def load_data(s: Settings) -> dict[str, Any]:
    """``make_data`` with its tensors on the device of the training, latents in float."""
    data = make_data(s)
    for part in (data, data["stills"]):
        part |= {name: x.to(DEVICE) for name, x in part.items() if isinstance(x, Tensor)}
        part["latents"] = part["latents"].float()
    return data


def train_dit(s: Settings) -> None:
    """Rectified flow on the latents, with warped noise; transformer and text encoder together.

    Goes on from the checkpoint where there is one; else ``warm`` begins with the exported weights,
    and its heads learn to follow from where they are: to ``begin`` them costs more than a short run
    wins back. Such a run lowers its rate earlier.
    """
    torch.manual_seed(s.seed)
    data, tokenizer = load_data(s), build_tokenizer()
    mean, std = (f(data["latents"], (0, 2, 3, 4)) for f in (torch.mean, torch.std))
    path, start, smooth = s.checkpoint, 0, dict[str, float]()
    nets = build_nets()
    if s.warm:
        nets, *moments = exported_nets()
        mean, std = (x.to(DEVICE) for x in moments)
    nets = nets.to(DEVICE)
    for part in (data, data["stills"]):
        part["latents"] = (part["latents"] - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    average = copy.deepcopy(nets)
    scene = SceneHead(nets["transformer"], data["scenes"]).to(DEVICE)
    optimisers = build_optimisers(nets, scene, s.dit_lr)
    if path.exists():
        state = torch.load(path, map_location=DEVICE)
        nets.load_state_dict(state["nets"])
        average.load_state_dict(state["average"])
        scene.load_state_dict(state["scene"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        start = int(state["step"])
    heads = FollowingHeads(nets["transformer"])
    if not (s.warm or path.exists()):
        batch = sample_clips(replace(s, dit_batch=8 * s.dit_batch), 0, data)
        text = encode_text(nets["text"], tokenizer, batch.prompts, PROMPT_TOKENS)
        heads.begin(batch.mixed(), batch.times, text)
        average.load_state_dict(nets.state_dict())
    nets["transformer"].compile(dynamic=False)  # one graph per kind and prompt length
    bar = tqdm(range(start, s.dit_steps), "dit", initial=start, total=s.dit_steps)
    for step in bar:
        still = step % 3 == 1
        batch = sample_stills(s, step, data["stills"]) if still else sample_clips(s, step, data)
        text = encode_text(nets["text"], tokenizer, batch.prompts, PROMPT_TOKENS)
        guess = velocity(nets, batch, text)
        losses = {}
        if step % 4 == 2:
            short = guess.detach()
            text = encode_text(nets["text"], tokenizer, batch.prompts, LONG_PROMPT)
            guess = velocity(nets, batch, text)
            losses["lengths"] = (guess - short).square().mean() * s.lengths
        losses["stills" if still else "clips"] = flow_loss(guess, batch)
        losses["scene"] = scene.loss(batch.scenes) * s.scene
        if batch.follow is not None:
            losses["follow"] = heads.loss(batch.latents, batch.follow) * s.follow
        flat = s.dit_steps // 2 if s.warm else s.dit_steps * 4 // 5
        rate = cosine(step, s.dit_steps, s.dit_lr, flat=flat)
        descend(optimisers, sum(losses.values()), rate)
        decay = s.ema if s.warm else min(s.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), nets.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if DEVICE.type == "cpu" or step % 50 < 3:  # reading it waits for a card
            now = {name: float(loss.detach()) for name, loss in losses.items()}
            smooth |= {name: 0.98 * smooth.get(name, x) + 0.02 * x for name, x in now.items()}
            bar.set_postfix({name: f"{x:.4f}" for name, x in smooth.items()})
        if (step + 1) % 250 == 0 or step + 1 == s.dit_steps:
            save_state(
                path, nets=nets.state_dict(), average=average.state_dict(), step=step + 1,
                scene=scene.state_dict(),
                optimisers=[o.state_dict() for o in optimisers], mean=mean.cpu(), std=std.cpu(),
            )  # fmt: skip
