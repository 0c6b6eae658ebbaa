"""Frames to latents, normalized as a pipeline's denoiser takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel import families


def encode_frames(vae: Any, frames: np.ndarray, device: torch.device | None = None) -> Tensor:
    """Return the latents fp32 [1, C, F', H', W'] of frames uint8 [F, H, W, 3].

    The mode of the VAE's distribution, shifted and scaled as its configuration says: (z - mean) *
    scaling factor / std. A VAE of pictures gets one frame at a time. ``device``: where the VAE
    runs, if its weights are elsewhere now.
    """
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    device = device or next(vae.parameters()).device
    kind = families.vaes().get(type(vae).__name__)
    with torch.no_grad():
        if kind is not None and kind.framewise:
            pictures = video[0].transpose(0, 1)
            found = [_mode(vae, picture[None].to(device, vae.dtype)) for picture in pictures]
            z = torch.cat(found).transpose(0, 1)[None]
        else:
            z = _mode(vae, video.to(device, vae.dtype))
    return normalized(vae, z.float().cpu())


def _mode(vae: Any, pixels: Tensor) -> Tensor:
    encoded = vae.encode(pixels)
    if (distribution := getattr(encoded, "latent_dist", None)) is not None:
        mode: Tensor = distribution.mode()
        return mode
    latent: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latent


def normalized(vae: Any, z: Tensor) -> Tensor:
    """Return a VAE's latents [1, C, F, H, W] as its denoiser takes them."""
    config, shape = vae.config, (1, -1, 1, 1, 1)

    def stored(name: str) -> Any:
        value = config.get(name)
        return getattr(vae, name, None) if value is None else value

    mean, std = stored("latents_mean"), stored("latents_std")
    if mean is not None and std is not None:
        z = z - torch.as_tensor(mean, dtype=torch.float32).view(shape)
        z = z / torch.as_tensor(std, dtype=torch.float32).view(shape)
    elif (shift := config.get("shift_factor")) is not None:
        z = z - shift
    return z * float(config.get("scaling_factor") or 1.0)
