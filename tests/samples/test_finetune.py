"""The fine-tuning script runs on the embedded model and writes a LoRA that loads."""

from __future__ import annotations

from itertools import islice

import finetune_warped_noise as script
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from accel.pipelines.load import load
from accel.pipelines.video import write_video

SETTINGS = script.Settings(steps=3, rank=2, lr=1e-3, frames=5)


def test_lora_is_trained_saved_and_loaded(tmp_path):
    pipe, losses = load("tiny"), []
    before = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    example = next(script.procedural(SETTINGS))
    script.finetune(
        pipe, iter([example] * 3), SETTINGS, on_step=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 3 and np.isfinite(losses).all()
    frozen = {n.replace(".base_layer", ""): p for n, p in pipe.transformer.named_parameters()}
    assert all(torch.equal(frozen[n], p) for n, p in before.items())
    script.save(pipe, tmp_path)
    fresh = load("tiny")
    fresh.load_lora_weights(tmp_path)
    trained = {n: p for n, p in pipe.transformer.named_parameters() if "lora_B" in n}
    loaded = {n: p for n, p in fresh.transformer.named_parameters() if "lora_B" in n}
    assert len(trained) == len(loaded) > 0 and any(bool(p.any()) for p in trained.values())
    pairs = zip(sorted(trained.items()), sorted(loaded.items()), strict=True)
    assert all(torch.allclose(a[1], b[1]) for a, b in pairs)


@pytest.mark.slow
def test_clips_of_a_folder(tmp_path):
    clip = next(script.procedural(SETTINGS))
    frames = ((clip.frames.movedim(0, -1) + 1) * 127.5).round().byte().numpy()
    write_video(tmp_path / "a.mp4", frames, fps=8)
    with pytest.raises(ValueError, match=r"a\.mp4"):
        next(script.from_folder(tmp_path, SETTINGS))
    (tmp_path / "a.txt").write_text("a red circle\n")
    (example,) = islice(script.from_folder(tmp_path, SETTINGS), 1)
    assert example.caption == "a red circle" and example.frames.shape == (3, 5, 64, 64)
    assert example.forward.shape == example.backward.shape == (4, 2, 64, 64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_of_other_schedulers(kind):
    scheduler = CogVideoXDDIMScheduler(prediction_type=kind)
    x, noise = torch.randn(2, 1, 4, 2, 2, 2)
    if kind == "sample":
        with pytest.raises(ValueError, match="'sample'"):
            script.noisy(scheduler, x, noise, 0.5)
        return
    mixed, target, step = script.noisy(scheduler, x, noise, 0.5)
    keep = scheduler.alphas_cumprod[step].sqrt().float()
    torch.testing.assert_close(mixed, keep * x + (1 - keep**2).sqrt() * noise)
    expected = noise if kind == "epsilon" else keep * noise - (1 - keep**2).sqrt() * x
    torch.testing.assert_close(target, expected)
