"""Training of the embedded model: targets of attention, heads that follow, and coming back."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import following
import muon
import numpy as np
import pytest
import torch
import train_dit as script
from clips import COLORS, Layer, Path, render, sample_layers, whereabouts
from train_common import Settings

SETTINGS = Settings(clips=24, stills=12, dit_steps=2, dit_batch=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "WORK", tmp_path_factory.mktemp("data"))
        patch.setattr(
            script.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=ThreadPool)
        )
        made = script.make_data(SETTINGS)
        assert script.make_data(SETTINGS)["captions"] == made["captions"]  # from the file
    return made


def copied(data: dict[str, object]) -> dict[str, object]:
    return {**data, "stills": dict(data["stills"])}


def panning(speed: float) -> list[Layer]:
    path = Path((32.0, 32.0), (speed, 0.0), 0.0, 0.0)
    return [Layer(path, "red", "cloudy", None, 0.0, (0.1, 0.2, 0.3))]


@pytest.mark.slow
def test_single_frames_are_frames_of_clips(data):
    stills = data["stills"]
    assert stills["latents"].shape == (12, 12, 1, 16, 16) and len(stills["captions"]) == 12
    assert stills["scenes"].shape == (12, 1, *data["scenes"].shape[2:])
    rest = stills["latents"][:, 3:]
    assert rest.abs().max() < 1e-4  # nothing moves
    for i in range(12):
        layers, caption = sample_layers(np.random.default_rng(1_000_000 * SETTINGS.seed + 24 + i))
        assert stills["captions"][i] == caption
        color = torch.tensor(COLORS[layers[0].color])
        torch.testing.assert_close(
            stills["scenes"][i, 0, 0, 0, -5:-2].float(), color, atol=1e-3, rtol=0
        )


def test_batches_of_both_kinds_are_as_much_work(data):
    clips = script.sample_clips(SETTINGS, 3, {**data, "latents": data["latents"].float()})
    stills = script.sample_stills(SETTINGS, 3, data["stills"])
    assert clips.latents.numel() == stills.latents.numel()
    assert clips.follow is not None and stills.follow is None
    again = script.sample_stills(SETTINGS, 3, data["stills"])
    torch.testing.assert_close(again.noise, stills.noise, rtol=0, atol=0)
    assert again.prompts == stills.prompts


def test_whereabouts_agree_with_the_flow():
    for seed in range(5):
        layers, caption = sample_layers(np.random.default_rng(seed))
        clip = render(layers, caption)
        y, x = np.mgrid[0:64, 0:64].astype(float)
        points = np.stack([x.ravel(), y.ravel()], -1)
        found = whereabouts(layers, points, (3, 4))[0, 1]
        moved = points + clip.forward[3].reshape(2, -1).T
        seen = ~np.isnan(found[:, 0])
        assert 0.8 < seen.mean() <= 1
        np.testing.assert_allclose(found[seen], moved[seen], atol=1e-3)


def test_a_pan_of_one_token_a_latent_frame_is_followed_exactly():
    paths = torch.from_numpy(following.token_paths(panning(2.0)))[None]  # 8 pixels in four frames
    follow = following.toward(following.follow_targets(paths), 1).view(5, 8, 8, 5, 8, 8)
    for x in range(7):
        assert follow[1, 4, x, 2, 4, x + 1] == 1
    assert not follow[1, 4, 7].any() and not follow[4].any()  # out of the picture, last frame
    _, _, mirrored = script.mirror(torch.zeros(1), torch.zeros(1), paths)
    back = following.toward(following.follow_targets(mirrored), 1).view(5, 8, 8, 5, 8, 8)
    torch.testing.assert_close(back, follow.flip(2, 5))


def test_rows_of_targets_sum_to_one_or_nothing(data):
    follow = following.follow_targets(data["paths"])
    for step in (-1, 1):
        total = following.toward(follow, step).sum(-1)
        assert (((total - 1).abs() < 1e-5) | (total == 0)).all() and total.mean() > 0.6


@pytest.mark.slow
@pytest.mark.proof
def test_heads_begin_by_following_the_noise(data):
    nets, text = script.build_nets(), torch.zeros(24, 32, 128)
    heads = following.FollowingHeads(nets["transformer"])
    follow = following.follow_targets(data["paths"])
    noise = script.rotate_channels(data["noise"].float())
    batch = script.Batch(
        torch.zeros_like(noise), noise, torch.ones(24), data["scenes"], [""] * 24, follow
    )

    def cross_entropy(x: script.Batch) -> float:
        with torch.no_grad():
            nets["transformer"](x.mixed(), timestep=x.times * 1000, encoder_hidden_states=text)
            return float(heads.loss(x.latents, follow))

    before = cross_entropy(batch)
    heads.begin(batch.mixed(), batch.times, text)
    after = cross_entropy(batch)
    fresh = cross_entropy(batch._replace(noise=torch.randn_like(noise)))  # nothing to follow
    assert after < before - 2 and after < fresh - 0.3, (before, after, fresh)


@pytest.mark.slow
@pytest.mark.proof
def test_training_goes_on_where_it_was(data, tmp_path, monkeypatch):
    monkeypatch.setattr("train_common.WORK", tmp_path)
    monkeypatch.setattr(script, "make_data", lambda settings: copied(data))
    monkeypatch.setattr(script, "cosine", lambda *args, **options: 1e-3)
    monkeypatch.setattr(script.WanTransformer3DModel, "compile", lambda *args, **options: None)
    longer = replace(SETTINGS, dit_steps=3)
    script.train_dit(longer)
    whole = torch.load(longer.checkpoint)
    longer.checkpoint.unlink()
    script.train_dit(SETTINGS)
    assert torch.load(SETTINGS.checkpoint)["step"] == 2
    script.train_dit(longer)
    resumed = torch.load(longer.checkpoint)
    assert resumed["step"] == whole["step"] == 3
    for part in ("nets", "average"):
        for name, value in whole[part].items():
            torch.testing.assert_close(resumed[part][name], value, msg=name)


@pytest.mark.slow
def test_training_goes_on_from_the_exported_weights(data, tmp_path, monkeypatch):
    monkeypatch.setattr("train_common.WORK", tmp_path)
    monkeypatch.setattr(script, "make_data", lambda settings: copied(data))
    monkeypatch.setattr(script.WanTransformer3DModel, "compile", lambda *args, **options: None)
    warm = replace(SETTINGS, warm=True)
    script.train_dit(warm)
    exported, trained = script.exported_nets()[0].state_dict(), torch.load(warm.checkpoint)
    assert trained["step"] == 2
    name = "transformer.blocks.0.attn1.to_q.weight"
    change = (trained["nets"][name] - exported[name]).norm() / exported[name].norm()
    assert 0 < change < 0.01


def test_muon_steps_as_torch_does():
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (64, 24), (24, 64)]
    start, gradients = ([torch.randn(s) for s in shapes] for _ in range(2))
    ends = []
    for build in (
        lambda p: muon.Muon(p, lr=0.1),
        lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ):
        matrices = [torch.nn.Parameter(m.clone()) for m in start]
        optimizer = build(matrices)
        for _ in range(3):
            for m, gradient in zip(matrices, gradients, strict=True):
                m.grad = gradient + 0.1 * m.detach()
            optimizer.step()
        ends.append(matrices)
    for begun, ours, theirs in zip(start, *ends, strict=True):
        moved = (theirs - begun).norm()
        assert moved > 0.5 and (ours - theirs).norm() < 0.02 * moved  # theirs is in bfloat16


def test_orthogonal_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(3, 16, 40)))
    assert values.min() > 0.6 and values.max() < 1.3
