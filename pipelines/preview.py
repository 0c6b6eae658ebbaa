"""Small pictures of a running denoising, for whoever waits for it.

What a clip is going to be shows long before its latents are free of noise. For flow matching
x_t = (1 - sigma) x_0 + sigma n, so between two steps the velocity is a difference quotient and

    x_0 ~ x_t - sigma_t (x_t - x_s) / (sigma_t - sigma_s)

(exact for Euler steps). Other schedules show the latents as they are. One latent frame, reduced to
at most ``_SIDE`` latent pixels, goes through the pipeline's own VAE. The time that takes is held to
a small share of the run.
"""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from accel.pipelines.batch import events

_SIDE = 32  # latent pixels along the longer side
_SHARE = 10  # a preview waits for this many times its own duration


class Preview:
    """What ``generate`` calls as ``on_latents`` to emit a preview, at most one a second.

    A pipeline whose latents it cannot show gets a single one, with ``why_not``.
    """

    def __init__(self, emit: events.EmitStep, name: str) -> None:
        self._emit, self._name = emit, name
        self._before: tuple[Tensor, float] | None = None
        self._next = 0.0
        self._failed = False

    def __call__(self, pipe: Any, latents: Tensor) -> None:
        """Look at ``latents`` after a step of ``pipe``."""
        if self._failed:
            return
        start, sigma = time.monotonic(), _sigma(pipe.scheduler)
        if start >= self._next:
            try:
                picture = decode(pipe, denoised(latents, sigma, self._before))
                self._emit(events.Preview(self._name, jpeg(picture)))
            except (ValueError, RuntimeError, AttributeError, TypeError) as error:
                self._failed = True  # a preview must never cost a render
                self._emit(events.Preview(self._name, why_not=f"no preview: {error}"))
            self._next = time.monotonic() + max(1.0, _SHARE * (time.monotonic() - start))
        self._before = None if sigma is None else (latents.detach().clone(), sigma)


def _sigma(scheduler: Any) -> float | None:
    """Return noise level after the step just done, None if the schedule is not flow matching."""
    config = getattr(scheduler, "config", {})
    flow = config.get("prediction_type") == "flow_prediction" or "Flow" in type(scheduler).__name__
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    if not flow or index is None or not isinstance(sigmas, Tensor) or index >= len(sigmas):
        return None
    return float(sigmas[index])


def denoised(latents: Tensor, sigma: float | None, before: tuple[Tensor, float] | None) -> Tensor:
    """Estimate of the clean latents from two steps, or ``latents`` where there is no second."""
    if sigma is None or before is None or abs(before[1] - sigma) < 1e-6:
        return latents
    earlier, level = before
    return latents - sigma * (latents - earlier) / (sigma - level)


def decode(pipe: Any, latents: Tensor) -> np.ndarray:
    """Return the middle frame of ``latents`` as uint8 [H, W, 3].

    Raises ValueError for latents that are not [B, C, H, W], [B, C, F, H, W] or [B, F, C, H, W].
    """
    vae = pipe.vae
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    frame = _middle(latents, channels)
    side = max(frame.shape[-2:])
    if side > _SIDE:
        frame = interpolate(frame.float(), scale_factor=_SIDE / side, mode="area")
    frame = _unscaled(vae.config, frame.to(vae.dtype))
    with torch.no_grad():
        video = frame[:, :, None] if latents.ndim == 5 else frame
        picture = vae.decode(video, return_dict=False)[0].float()
    picture = picture[0, :, 0] if picture.ndim == 5 else picture[0]
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def _middle(latents: Tensor, channels: int) -> Tensor:
    """Return one frame [1, C, H, W] out of the latents of the first clip."""
    if latents.ndim == 4 and latents.shape[1] == channels:
        return latents[:1]
    if latents.ndim == 5 and latents.shape[1] == channels:
        return latents[:1, :, latents.shape[2] // 2]
    if latents.ndim == 5 and latents.shape[2] == channels:
        return latents[:1, latents.shape[1] // 2]
    raise ValueError(f"latents of shape {tuple(latents.shape)} are not a picture")


def _unscaled(config: Any, latents: Tensor) -> Tensor:
    """Undo the normalization that a VAE's configuration names."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        return latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)
    scale = getattr(config, "scaling_factor", None) or 1.0
    return latents / scale + (getattr(config, "shift_factor", None) or 0.0)


def jpeg(picture: np.ndarray) -> bytes:
    """``picture`` uint8 [H, W, 3] as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()
