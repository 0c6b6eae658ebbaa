"""Runs that a crude animation leads: what it shows, when it holds, what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_pipelines import RECIPES, small_edits
from helpers.tiny_recipe import job_with, write_files
from PIL import Image

from accel.pipelines.checkpoint import StepCheckpoint
from accel.pipelines.generate import check, generate
from accel.pipelines.job import Job, JobError, make_job
from accel.pipelines.led_run import animation_of, dual_clock
from accel.pipelines.load import load
from accel.pipelines.motion.clocks import DualClock, Follow, noised
from accel.pipelines.motion.crude import animate
from accel.pipelines.motion.encode import encode_frames
from accel.pipelines.motion.flows import Motion
from accel.pipelines.motion.latents import latent_geometry

SQUARE = [[4, 8], [15, 8], [15, 19], [4, 19]]
DRAG = {"drag": [{"polygon": SQUARE, "by": [12, 0]}]}
LED = ("wan 2.1 i2v", "cogvideox i2v", "ltx i2v", "hunyuanvideo i2v", "svd")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("inputs"))


def led_job(name: str, paths: dict[str, str], **changes: Any) -> Job:
    job = {"steps": 6, "motion": DRAG, "follow": {"way": "dual-clock", "loose": 0.3, "tight": 0.6}}
    return make_job(job_with(RECIPES[name], paths, **{**job, "preset": None, **changes}))


def picture() -> np.ndarray:
    ground = np.full((32, 48, 3), 200, np.uint8)
    ground[8:20, 4:16] = [250, 20, 20]
    return ground


# -------------------------------------------------------------------------------------- animation


def test_a_dragged_thing_is_where_it_is_dragged_and_its_place_is_painted_over():
    crude = animate(picture(), Motion.parse(DRAG), 5)
    red = (crude.frames[..., 0] > 220) & (crude.frames[..., 1] < 80)
    for k in range(5):
        y, x = np.nonzero(red[k])
        assert x.mean() == pytest.approx(9.5 + 3 * k, abs=0.6) and len(x) > 90
        assert y.mean() == pytest.approx(13.5, abs=0.6)
        assert (crude.led[k] & red[k]).sum() > 0.9 * red[k].sum()
        assert crude.led[k].sum() < 12 * 12 + 30
    assert np.abs(crude.frames[4, 9:19, 4:14].astype(int) - 200).max() < 30


def test_layers_lie_over_each_other_by_z_and_over_the_camera():
    low = {"polygon": SQUARE, "by": [0, 0], "z": 1}
    high = {"polygon": [[30, 8], [41, 8], [41, 19], [30, 19]], "by": [-26, 0], "z": 2}
    source = picture()
    source[8:20, 30:42] = [20, 20, 250]
    last = animate(source, Motion.parse({"drag": [high, low]}), 3).frames[-1]
    assert last[14, 9, 2] > 220
    filmed = animate(picture(), Motion.parse({"camera": {"pan": [4, 0]}}), 3)
    assert filmed.frames[2, 14, 18, 0] > 240 and filmed.frames[2, 14, 18, 1] < 60
    assert filmed.led[2, :, 8:].all() and not filmed.led[2, :, :8].any() and filmed.led[0].all()


def test_what_cannot_be_led_is_named(paths):
    image = paths["PICTURE"]
    for keys, message in (
        ({"follow": "dual-clock", "image": image}, "add motion"),
        ({"follow": "dual-clock", "motion": DRAG}, "add image: FILE"),
        ({"follow": "both", "motion": {"flow": "f.npy"}, "image": image}, "use drag or camera"),
        ({"follow": "dual", "motion": DRAG}, "did you mean|one of"),
        ({"follow": {"way": "noise", "tight": 0.5}, "motion": DRAG}, "no clocks"),
        ({"follow": {"way": "both", "loose": 0.5, "tight": 0.2}, "motion": DRAG}, "not be above"),
        ({"follow": {"way": "both", "loose": 2}, "motion": DRAG}, "from 0 to 1"),
    ):
        with pytest.raises(JobError, match=message):
            Job("x", **keys)
    job = Job("x", motion=DRAG, image=image, follow="dual-clock", model="./none", frames=5,
              width=32, height=32, steps=2, guidance=1.0, fps=8)  # fmt: skip
    with pytest.raises(JobError, match="single images"):
        check(RECIPES["sd"](), job)


# ------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("name", LED)
def test_latents_are_the_noised_animation_until_the_clocks_run_out(name, paths):
    """Inside, bit for bit; outside the clocks and the led region nothing is touched."""
    pipe, job = RECIPES[name](), led_job(name, paths).resolved()
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    own, clocks = DualClock.step_done, []

    def watched(self: DualClock, pipe: Any, done: int, steps: int, t: Any, latents: Any) -> Any:
        clocks.append(self)
        out = own(self, pipe, done, steps, t, latents)
        level = noised(pipe.scheduler, self.animation, self.noise, t) if done < steps else None
        seen.append((done, latents, out, level))
        return out

    with pytest.MonkeyPatch.context() as patch, small_edits():
        patch.setattr(DualClock, "step_done", watched)
        frames = generate(pipe, job).frames
    assert frames.shape[0] == job.frames and len(seen) == 6
    led, free = (x.expand_as(clocks[0].animation) for x in (clocks[0].led, clocks[0].free))
    assert led.any() and (not led.all() or name.startswith("ltx"))  # whose cells have 32 pixels
    for done, before, after, level in seen:
        inside = ~free if done <= 2 else led & ~free if done <= 4 else torch.zeros_like(free)
        assert torch.equal(after[~inside], before[~inside])
        if inside.any():
            assert torch.equal(after[inside], level.to(after)[inside])
            assert not torch.equal(after, before)


@pytest.mark.parametrize("name", ["wan 2.1 i2v", "cogvideox i2v", "ltx i2v"])
def test_encoded_frames_decode_to_what_a_pipeline_shows(name):
    """Latents of the animation are what the pipeline itself would decode to the VAE's picture."""
    pipe, rng = RECIPES[name](), np.random.default_rng(0)
    frames = rng.integers(0, 256, (5 if "ltx" not in name else 9, 32, 32, 3), np.uint8)
    z = encode_frames(pipe.vae, frames)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        raw = pipe.vae.encode(video).latent_dist.mode()
    config = pipe.vae.config
    if name.startswith("wan"):
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        torch.testing.assert_close(z * std + mean, raw)
    elif name.startswith("cog"):
        torch.testing.assert_close(z / config.scaling_factor, raw)
    else:
        back = pipe._denormalize_latents(
            z, pipe.vae.latents_mean, pipe.vae.latents_std, config.scaling_factor
        )
        torch.testing.assert_close(back, raw)


def test_both_ways_share_one_noise_and_noise_alone_has_no_clock(paths):
    pipe, clocks = RECIPES["wan 2.1 i2v"](), []
    given = []
    call = type(pipe).__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "accel.pipelines.generate.dual_clock",
            lambda *a: clocks.append(dual_clock(*a)) or clocks[-1],
        )
        patch.setattr(type(pipe), "__call__", _noting(call, given))
        for way in ("both", "dual-clock", "noise"):
            generate(pipe, led_job("wan 2.1 i2v", paths, follow=way, steps=2))
    assert torch.equal(given[0], clocks[0].noise) and given[1] is None and len(clocks) == 2
    assert torch.equal(given[2], given[0])
    assert (clocks[0].loose, clocks[0].tight) == (0.06, 0.14)


def _noting(call: Any, given: list[Any], names: tuple[str, ...] = ("latents",)) -> Any:
    import functools

    @functools.wraps(call)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = tuple(kwargs.get(name) for name in names)
        given.append(found if len(names) > 1 else found[0])
        return call(self, *args, **kwargs)

    return noting


@pytest.mark.parametrize("name", LED)
def test_a_resumed_led_run_has_equal_frames(name, paths, tmp_path):
    pipe, job = RECIPES[name](), led_job(name, paths)
    whole = generate(pipe, job).frames
    for at in (1, 3, 5) if name.startswith("wan") else (3,):

        class Halt(Exception):
            pass

        def stop(done: int, steps: int, at: int = at) -> None:
            if done == at:
                raise Halt

        saved = tmp_path / f"{at}.step"
        with pytest.raises(Halt):
            generate(pipe, job, on_step=stop, checkpoint=StepCheckpoint(saved, "k", 1))
        again = StepCheckpoint(saved, "k", 1)
        assert np.array_equal(generate(pipe, job, checkpoint=again).frames, whole)
        assert again.resumed_from == at


def test_led_steps_are_computed_under_step_rehash(paths):
    pipe = RECIPES["wan 2.1 i2v"]()
    plan = {"name": "r", "attention": None, "rehash": {"speedup": 2.0}}
    job = led_job("wan 2.1 i2v", paths, steps=12, plan=plan,
                  follow={"way": "dual-clock", "loose": 0.2, "tight": 0.5})  # fmt: skip
    report = generate(pipe, job).report
    keys = report.rehash.keys
    assert set(range(8)) <= set(keys) and len(keys) < 12
    plain = generate(pipe, led_job("wan 2.1 i2v", paths, steps=12, plan=plan, motion=None,
                                   follow=None)).report  # fmt: skip
    assert not set(range(8)) <= set(plain.rehash.keys)


def test_a_control_video_is_the_animation_and_what_is_dragged_is_kept(paths):
    pipe, given = RECIPES["wan vace"](), []
    call = type(pipe).__call__
    keys = {"video": None, "mask": None, "references": [], "image": paths["PICTURE"]}
    job = led_job("wan vace", paths, follow="control", steps=2, **keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe), "__call__", _noting(call, given, ("video", "mask", "latents")))
        frames = generate(pipe, job).frames
    crude, _ = animation_of(job.resolved())
    video, mask, latents = given[0]
    assert len(frames) == job.frames and latents is None
    assert np.array_equal(np.stack([np.asarray(f) for f in video]), crude.frames)
    painted = np.stack([np.asarray(m) > 0 for m in mask])
    assert not painted[0].any() and np.array_equal(painted[1:], ~crude.led[1:])
    with pytest.raises(JobError, match="takes no video to follow"):
        generate(RECIPES["ltx i2v"](), led_job("ltx i2v", paths, follow="control"))


@pytest.mark.slow
def test_the_embedded_model_is_led_by_a_picture(tmp_path):
    """Its pipeline takes no picture: the animation alone shows it."""
    source = np.full((64, 64, 3), 230, np.uint8)
    source[22:42, 8:28] = [220, 30, 30]
    Image.fromarray(source).save(tmp_path / "p.png")
    motion = {"drag": [{"polygon": [[8, 22], [27, 22], [27, 41], [8, 41]], "by": [24, 0]}]}
    job = Job("a red square on a plain white background", steps=8, frames=9, preset=None,
              motion=motion, image=str(tmp_path / "p.png"),
              follow={"way": "dual-clock", "loose": 0.4, "tight": 0.75})  # fmt: skip
    pipe = load("tiny")
    result = generate(pipe, job)
    assert [used.key for used in result.inputs] == ["image"]
    reds = (result.frames[..., 0].astype(int) - result.frames[..., 1]) > 60
    x = [np.nonzero(red)[1].mean() for red in reds]
    assert x[-1] - x[0] > 12
    with pytest.raises(JobError, match="takes no image"):
        generate(pipe, Job("x", image=str(tmp_path / "p.png"), motion=motion, steps=2))
    crude, _ = animation_of(job.resolved())
    clock = dual_clock(pipe, job.resolved(), crude, latent_geometry(pipe), None)
    assert clock.until(8) == 6 and Follow.parse(job.follow).clocks
