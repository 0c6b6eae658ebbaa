"""Training of the two small models of pictures: data, losses, and a step of each."""

from __future__ import annotations

from dataclasses import replace

import image_models as models
import numpy as np
import pytest
import torch
import train_images as script
from diffusers import FluxPipeline

SHORT = script.Length(pictures=12, vae=1, dit=1, unet=1, batch=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    return tmp_path


def test_pictures_have_one_shape_and_the_caption_of_their_seed(folder):
    pictures, captions = script.draw_all(SHORT)
    assert pictures.shape == (12, 3, 32, 32) and pictures.dtype == torch.uint8
    assert len(captions) == 12 and not any(" and " in caption for caption in captions)
    picture, caption = script.draw(1_000_000 * SHORT.seed + 5)
    assert caption == captions[5]
    np.testing.assert_array_equal(picture, pictures[5].movedim(0, -1).numpy())
    again, _ = script.draw_all(SHORT)  # from the file
    torch.testing.assert_close(again, pictures, rtol=0, atol=0)


def test_latents_are_near_unit_variance(folder):
    pictures, _ = script.draw_all(replace(SHORT, pictures=64))
    latents = models.mean_latents(pictures.float() / 127.5 - 1)
    assert latents.shape == (64, 3, 16, 16)
    assert abs(float(latents.mean())) < 0.3 and 0.7 < float(latents.std()) < 1.3


def test_latents_are_packed_as_flux_packs_them():
    latents = torch.randn(2, 3, 16, 16)
    packed = FluxPipeline._pack_latents(latents, 2, 3, 16, 16)
    torch.testing.assert_close(models.pack(latents), packed, rtol=0, atol=0)
    ids = FluxPipeline._prepare_latent_image_ids(2, 8, 8, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(models.places(), ids, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_step_of_training_changes_denoiser_and_text_encoders(folder, name):
    script.train_denoiser(name, SHORT)
    state = torch.load(folder / f"{name}.pt")
    assert state["step"] == 1 and 0 < state["loss"] < 10
    torch.manual_seed(SHORT.seed)
    fresh = models.trained_parts(script.BUILD[name](models.build_image_vae())).state_dict()
    moved = {key.split(".")[0] for key, old in fresh.items() if not old.equal(state["net"][key])}
    assert moved == {key.split(".")[0] for key in fresh}
    assert all(value.isfinite().all() for value in state["net"].values())
    script.train_denoiser(name, SHORT)  # there is nothing left to do
    assert torch.load(folder / f"{name}.pt")["loss"] == state["loss"]


@pytest.mark.slow
def test_a_step_of_the_vae(folder):
    script.train_image_vae(SHORT)
    state = torch.load(folder / "vae.pt")
    assert state["step"] == 1 and 0 < state["loss"] < 10
    assert all(value.isfinite().all() for value in state["net"].values())


def test_a_report_counts_words_of_the_nearest_picture():
    known = torch.stack([torch.zeros(3072), torch.full((3072,), 200.0)])
    captions = [
        "a red circle on a dotted blue background",
        "a red square on a cloudy blue background",
    ]
    made = np.full((2, 32, 32, 3), 190, np.uint8)
    prompts = [captions[1], "a blue square on a dotted blue background"]
    told = script.report("x", made, prompts, known, captions)
    assert told == ("x: nearest picture 28.1 dB; color 50%, shape 100%, pattern 50%, ground 100%")
