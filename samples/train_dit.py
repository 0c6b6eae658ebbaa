"""Second stage of the embedded model: latents and warped noise, then transformer and text encoder.

Method. Rectified flow: ``x_t = (1 - t) x + t e``, the network predicts ``e - x``. The only
difference from ordinary training is ``e``: it is Gaussian noise warped along the clip's exact
optical flow (Go-with-the-Flow, arXiv 2501.08331, section 3). It is undegraded for three clips in
ten, mixed with fresh noise at strength gamma ~ U(0, 0.4) for three and U(0, 1) for three, and pure
fresh noise for one. The captions never name the motion, so it can only be learned from the noise. A
random rotation of the noise channels, fresh at each use, gives each stored warp endless variants.
The channels are independent and share one graph, so the distribution stays exactly the same.

One step in four has prompts padded to 512 tokens. It also learns to predict the same as for the
short padding of all other steps, because there is no mask on padding and a video must not depend on
it.

One step in three is on single frames. They teach what shapes look like with five times as many
pictures for the same work, and clips gain from that.
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

# Weight of a channel in the loss, by coefficient of the cosine transform, slowest first; mean 1.
WEIGHTS = torch.tensor([1.82, 1.27, 0.64, 0.27]).repeat_interleave(3)
NEAR = 3.0  # how much more latent pixels near a shape count once the noise is gone
LONG_PROMPT = 512  # WanPipeline's default padding


def make_clip(task: tuple[int, Settings]) -> tuple[np.ndarray | str, ...]:
    """Return one clip: latents, noise, paths, what tokens show, and caption.

    Latents and noise are [12, 5, 16, 16], paths [5, 5, 64, 2], what tokens show [5, 8, 8, WIDTH],
    all fp16.
    """
    index, s = task
    torch.set_num_threads(1)
    rng = np.random.default_rng(1_000_000 * s.seed + index)
    # Slow motion is harder to learn: objects that move less than a latent pixel stick to the grid.
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
    """Return one frame of a clip: latents, what tokens show, and caption.

    Latents are [12, 1, 16, 16] and what tokens show is [1, 8, 8, WIDTH], both fp16. The seeds
    follow those of the clips.
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
    """Return the results of ``make`` for ``count`` seeds, by kind."""
    tasks = [(i, s) for i in range(count)]
    made = list(tqdm(pool.imap(make, tasks, 16), make.__name__, count))
    *arrays, captions = zip(*made, strict=True)
    return [*(torch.from_numpy(np.stack(a)) for a in arrays), list(captions)]


def make_data(s: Settings) -> dict[str, Any]:
    """Return latents, warped noise, paths, scenes and captions of all training clips.

    They are cached on disk. ``stills`` holds latents, scenes and captions of single frames.
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
    """Return ``noise [B, C, ...]`` with channels mixed by a random orthogonal matrix per sample."""
    batch, channels = noise.shape[:2]
    q, r = torch.linalg.qr(torch.randn(batch, channels, channels, device=noise.device))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    return torch.einsum("bij,bj...->bi...", q, noise)


def mix_noise(warped: Tensor, gamma: Tensor) -> Tensor:
    """Return Go-with-the-Flow's degradation: (1 - gamma) warped + gamma fresh, at unit variance."""
    gamma = gamma.view(-1, *[1] * (warped.dim() - 1))
    mixed = (1 - gamma) * warped + gamma * torch.randn_like(warped)
    return mixed / ((1 - gamma) ** 2 + gamma**2).sqrt()


def build_nets() -> torch.nn.ModuleDict:
    """Return transformer and text encoder, which are trained together.

    At first keys equal queries. So tokens attend to tokens that look like them, which are those
    with the same noise in other frames, and features travel along the commanded motion from the
    first step on. Independent weights take far longer to find that than everything else.
    """
    text, transformer = build_text_encoder(len(build_tokenizer())), build_transformer()
    for block in transformer.blocks:
        block.attn1.to_k.load_state_dict(block.attn1.to_q.state_dict())
    return torch.nn.ModuleDict({"transformer": transformer, "text": text})


def exported_nets() -> tuple[torch.nn.ModuleDict, Tensor, Tensor]:
    """Return the trained transformer and text encoder, and the latents' mean and deviation.

    They are those of ``samples/tiny-wan``.
    """
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
    """One batch of the training.

    Latents and noise are [B, 12, T, 16, 16], times [B], what tokens show [B, T, 8, 8, WIDTH].
    ``follow`` are targets of attention [B, 320, 320] for clips; single frames (T = 1) have none.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    scenes: Tensor
    prompts: list[str]
    follow: Tensor | None = None

    def mixed(self) -> Tensor:
        """Return the transformer's input: latents mixed with noise, by time."""
        t = self.times.view(-1, 1, 1, 1, 1)
        return (1 - t) * self.latents + t * self.noise


def mirror(latents: Tensor, noise: Tensor, paths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same clips with left and right swapped; captions name neither."""
    paths = paths.unflatten(3, (GRID, GRID)).flip(4).flatten(3, 4)  # a copy
    paths[..., 0] = GRID - 1 - paths[..., 0]
    return latents.flip(-1), noise.flip(-1), paths


def some(captions: list[str], picks: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Return the captions picked; one in ten is left empty, for guidance."""
    return [captions[i] if rng.random() > 0.1 else "" for i in picks]


def some_times(count: int, device: torch.device) -> Tensor:
    """Return random times [count] in 0..1, more of them at the noisy end."""
    u = torch.rand(count, device=device)
    return 2 * u / (1 + u)


def sample_clips(s: Settings, step: int, data: dict[str, Any]) -> Batch:
    """Return one batch of clips; the step is the seed.

    The tensors of ``data`` are on one device.
    """
    rng = np.random.default_rng((s.seed, step, 1))
    torch.manual_seed(s.seed * 100_003 + step)
    picks = rng.integers(0, len(data["latents"]), s.dit_batch)
    prompts = some(data["captions"], picks, rng)
    # Motion is learned from noise that is hardly degraded, so most clips have such noise.
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
    # Noise that is mostly fresh cannot teach where to look.
    follow = follow_targets(paths) * (gamma <= 0.5).to(device).view(-1, 1, 1)
    return Batch(x, noise, some_times(s.dit_batch, device), scenes, prompts, follow)


def sample_stills(s: Settings, step: int, data: dict[str, Any]) -> Batch:
    """Return one batch of single frames; the step is the seed.

    It has as many frames as a batch of clips has latent frames.
    """
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
    """Return the velocity ``noise - x`` that the transformer predicts, shaped as latents."""
    x = batch.mixed()
    fast = x.is_cuda or torch.cpu._is_avx512_bf16_supported()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast):
        guess = nets["transformer"](
            x, timestep=batch.times * 1000, encoder_hidden_states=text
        ).sample
    return guess.float()


def flow_loss(guess: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error of the predicted velocity, and of its change over frames.

    Both have the same minimizer. The second gives more weight to motion, which is a small part of
    the first. Fast changes within a latent frame, which are hard to predict and hardly seen, count
    less (``WEIGHTS``). Shapes are a small part of a clip, and count more (``NEAR``) the less noise
    there is. Where noise hides whether there is a shape, that weight would make the model draw too
    many.
    """
    error = guess - (batch.noise - batch.latents)
    error *= WEIGHTS.to(error.device).sqrt().view(-1, 1, 1, 1)
    calm = (1 - batch.times).view(-1, 1, 1, 1, 1)
    error *= (1 + NEAR * calm * near_outline(batch.scenes)).sqrt()
    loss = error.square().mean()
    return loss if error.shape[2] == 1 else loss + error.diff(dim=2).square().mean()


def build_optimizers(
    nets: torch.nn.ModuleDict, scene: SceneHead, rate: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the transformer's blocks, and AdamW for everything else."""
    matrices = [p for p in nets["transformer"].blocks.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in (*nets.parameters(), *scene.parameters()) if id(p) not in taken]
    return [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), fused=True),
        Muon(matrices, lr=rate),
    ]


def load_data(s: Settings) -> dict[str, Any]:
    """Return ``make_data`` with its tensors on the device of the training, latents in float."""
    data = make_data(s)
    for part in (data, data["stills"]):
        part |= {name: x.to(DEVICE) for name, x in part.items() if isinstance(x, Tensor)}
        part["latents"] = part["latents"].float()
    return data


def train_dit(s: Settings) -> None:
    """Train rectified flow on the latents with warped noise, transformer and text encoder together.

    It continues from the checkpoint if there is one. Otherwise ``warm`` starts from the exported
    weights, and its heads learn to follow from there: calling ``begin`` on them costs more than a
    short run gains back. Such a run lowers its rate earlier.
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
    optimizers = build_optimizers(nets, scene, s.dit_lr)
    if path.exists():
        state = torch.load(path, map_location=DEVICE)
        nets.load_state_dict(state["nets"])
        average.load_state_dict(state["average"])
        scene.load_state_dict(state["scene"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
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
        descend(optimizers, sum(losses.values()), rate)
        decay = s.ema if s.warm else min(s.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), nets.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if DEVICE.type == "cpu" or step % 50 < 3:  # reading the losses waits for a GPU
            now = {name: float(loss.detach()) for name, loss in losses.items()}
            smooth |= {name: 0.98 * smooth.get(name, x) + 0.02 * x for name, x in now.items()}
            bar.set_postfix({name: f"{x:.4f}" for name, x in smooth.items()})
        if (step + 1) % 250 == 0 or step + 1 == s.dit_steps:
            save_state(
                path, nets=nets.state_dict(), average=average.state_dict(), step=step + 1,
                scene=scene.state_dict(),
                optimizers=[o.state_dict() for o in optimizers], mean=mean.cpu(), std=std.cpu(),
            )  # fmt: skip
