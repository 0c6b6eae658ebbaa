"""Warped latents have the shape and the frames that each family's own pipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from helpers.pipelines import (
    animatediff,
    cogvideox,
    easy_animate,
    hunyuan,
    images,
    latte,
    ltx,
    mochi,
    skyreels,
    svd,
    wan,
)

from accel.families.family import Geometry
from accel.pipelines.generate import generate
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import load
from accel.pipelines.motion.latents import arrange, latent_geometry, warped_latents

# Pipeline, frames, pixels of a side, frames that latent frames come from, and how it draws them.
Case = tuple[Callable[[], Any], int, int, list[int], dict[str, Any]]
VIDEO = {"batch_size": 1, "dtype": torch.float32, "device": "cpu", "generator": None}
CASES: dict[str, Case] = {
    "wan 16": (lambda: wan(16, 8), 17, 64, [0, 4, 8, 12, 16], {"num_channels_latents": 16}),
    "wan 48": (lambda: wan(48, 16), 9, 64, [0, 4, 8], {"num_channels_latents": 48}),
    "hunyuan": (hunyuan, 9, 64, [0, 4, 8], {"num_channels_latents": 4}),
    "cogvideox": (cogvideox, 9, 64, [0, 4, 8], {"num_channels_latents": 4}),
    "ltx": (ltx, 17, 64, [0, 8, 16], {"num_channels_latents": 8}),
    "mochi": (mochi, 13, 64, [0, 6, 12], {"num_channels_latents": 4}),
    "animatediff": (animatediff, 4, 64, [0, 1, 2, 3], {"num_channels_latents": 4}),
    "skyreels v2": (skyreels, 9, 64, [0, 4, 8], {"num_channels_latents": 16}),
    "easyanimate": (easy_animate, 9, 64, [0, 4, 8], {"num_channels_latents": 4}),
    "latte": (latte, 4, 64, [0, 1, 2, 3], {"num_channels_latents": 4}),
    "svd": (svd, 4, 64, [0, 1, 2, 3], {"num_channels_latents": 8}),
}


@pytest.mark.parametrize("name", CASES)
def test_shape_is_the_pipelines_own(name):
    build, frames, size, kept, draw = CASES[name]
    pipe = build()
    geometry = latent_geometry(pipe)
    flow = torch.zeros(frames - 1, 2, size, size)
    latents = warped_latents(flow, geometry, seed=1, strength=0.0)
    arguments = {**VIDEO, **draw, "height": size, "width": size, "num_frames": frames}
    own = pipe.prepare_latents(**arguments)
    assert arrange(latents, geometry.layout).shape == own.shape
    assert geometry.latent_frames(frames) == len(kept) == latents.shape[2]
    assert [k * geometry.temporal for k in range(len(kept))] == kept
    given = pipe.prepare_latents(**arguments, latents=arrange(latents, geometry.layout))
    assert given.shape == own.shape


def test_image_pipelines_get_one_latent_per_frame():
    geometry = latent_geometry(images())
    flow = torch.zeros(4, 2, 64, 64)
    flow[:, 0] = 8.0
    latents = arrange(warped_latents(flow, geometry, seed=1, strength=0.0), geometry.layout)
    assert latents.shape == (5, 4, 8, 8)
    torch.testing.assert_close(latents[1:, ..., 1:], latents[:-1, ..., :-1])


class Painter(diffusers.StableDiffusionPipeline):
    """An image pipeline that shows its latents, so that no text encoder is needed."""

    def __call__(self, prompt, height, width, num_inference_steps, latents, generator, output_type):
        picture = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        picture = (picture / 6 + 0.5).permute(0, 2, 3, 1).numpy()
        return diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput(picture, None)


def test_a_job_with_motion_makes_a_clip_of_an_image_pipeline():
    pipe = images()
    pipe.__class__ = Painter
    job = Job(
        "x", steps=1, frames=3, width=64, height=64, preset=None, model="./none", strength=0.0,
        motion={"camera": {"pan": [8, 0]}},
    )  # fmt: skip
    frames = generate(pipe, job).frames
    assert frames.shape == (3, 64, 64, 3)
    assert (frames[1][:, 8:] == frames[0][:, :-8]).all()


def test_tokens_are_what_ltx_packs():
    latents = torch.randn(1, 8, 3, 2, 4)
    packed = diffusers.LTXPipeline._pack_latents(latents, 1, 1)
    assert torch.equal(arrange(latents, "tokens"), packed)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_map_of_strengths_is_exactly_gaussian(strength):
    """A place's strength decides its correlation with the warp, never its variance."""
    geometry, flow = Geometry(64, 8, 4), torch.zeros(4, 2, 256, 256)
    gamma = torch.zeros(5, 256, 256)
    gamma[:, :, 128:] = strength
    free = warped_latents(flow, geometry, seed=1, strength=0.0)[0]
    mixed = warped_latents(flow, geometry, seed=1, strength=gamma)[0]
    assert torch.equal(mixed[..., :16], free[..., :16])
    part, origin = mixed[..., 16:], free[..., 16:]
    n = part[:, 0].numel()
    assert abs(float(part[:, 0].var()) - 1) < 5 * (2 / n) ** 0.5
    wanted = (1 - strength) / ((1 - strength) ** 2 + strength**2) ** 0.5
    found = float((part[:, 0] * origin[:, 0]).mean())
    assert found == pytest.approx(wanted, abs=5 / n**0.5)


@pytest.mark.parametrize("wrong", ["unnormalized", "square roots"])
def test_wrong_mixes_fail_the_variance_check(wrong):
    a, b, g = *torch.randn(2, 100_000), 0.5
    mixed = (1 - g) * a + g * b
    if wrong == "square roots":  # divided by the norm of other weights
        mixed = (g**0.5 * (a + b)) / ((1 - g) ** 2 + g**2) ** 0.5
    assert abs(float(mixed.var()) - 1) > 0.4


def test_pipelines_and_frame_numbers_without_a_rule_are_named():
    with pytest.raises(ValueError, match=r"FluxPipeline.*HunyuanVideo.*Wan"):
        latent_geometry(type("FluxPipeline", (), {})())
    with pytest.raises(ValueError, match=r"multiple of 4 plus 1 .* got 8; the nearest is 9"):
        warped_latents(torch.zeros(7, 2, 8, 8), Geometry(1, 8, 4), seed=0, strength=0)
    job = Job("x", steps=1, motion={"camera": {}}, strength={"map": "no.npy"})
    with pytest.raises(JobError, match=r"no\.npy does not exist"):
        generate(load("tiny"), job)
