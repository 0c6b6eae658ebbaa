"""The road from job to file on the embedded model: generate, the command, its exit codes."""

from __future__ import annotations

import errno
import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.job_files import QUICK

import accel
import accel.pipelines.batch.output
import accel.pipelines.batch.worker
from accel import AttentionConfig, Plan
from accel.cli import main
from accel.core.quality import psnr
from accel.pipelines.generate import generate
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.video import read_video

FOUR = [
    "a red circle on a striped blue background", "a white square on a mottled green background",
    "an orange triangle on a cloudy grey background",
    "a yellow crescent on a dotted purple background",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return load("tiny")


def test_embedded_model_is_a_whole_pipeline_and_small():
    folder = tiny_folder()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 16 * 2**20
    assert type(load(str(folder))).__name__ == "WanPipeline"


@pytest.mark.slow
def test_patched_and_unpatched_pipeline_is_bit_identical_to_never_patched(pipe):
    def run(p):
        generator = torch.Generator().manual_seed(0)
        return p(
            "a red circle", height=64, width=64, num_frames=5, num_inference_steps=2,
            generator=generator, output_type="np", max_sequence_length=32,
        ).frames  # fmt: skip

    never = DiffusionPipeline.from_pretrained(tiny_folder(), dtype=torch.float32)
    never.set_progress_bar_config(disable=True)
    expected = run(never)
    accel.patch(pipe, plan=Plan("t", AttentionConfig("int4", impl="reference")))
    changed = run(pipe)
    accel.unpatch(pipe)
    assert np.array_equal(run(pipe), expected) and not np.array_equal(changed, expected)


def test_generate_reports_every_attention_call(pipe):
    steps = []
    result = generate(pipe, Job("a red circle", **QUICK), on_step=lambda i, n: steps.append((i, n)))
    assert steps == [(1, 2), (2, 2)] and result.frames.shape == (5, 64, 64, 3)
    report, blocks = result.report, len(pipe.transformer.blocks)
    assert report.runs == 1 and report.calls == 4
    own = [s for s in report.sites if s.name.endswith("attn1")]
    assert len(own) == blocks and all(sum(s.ran.values()) == 4 for s in own)
    assert all(s.error is not None and s.error < 0.1 for s in own)
    assert "attn1" in str(report) and json.dumps(report.to_dict())


def test_rule_over_steps_is_followed(pipe):
    plan = {"attention": {"precision": "int4", "rules": [{"precision": "int8", "end": 0.5}]}}
    report = generate(pipe, Job("a red circle", plan=plan, **QUICK)).report
    assert {name.split()[0] for name in report.sites[0].ran} == {"int4", "int8"}
    assert report.sites[0].steps == [[1, "int8"], [1, "int4"]]


@pytest.mark.slow
def test_same_job_same_pixels_and_motion_changes_them(pipe):
    job = Job("a red circle", seed=3, motion={"camera": {"pan": [1, 0]}}, **QUICK)
    first = generate(pipe, job).frames
    assert np.array_equal(first, generate(pipe, job).frames)
    other = Job(**{**job.to_dict(), "motion": {"camera": {"pan": [-1, 0]}}})
    assert not np.array_equal(first, generate(pipe, other).frames)


def padded(pipe, prompt, tokens, guidance, seed):
    """Frames of 4 steps as uint8, the prompt padded to so many tokens."""
    frames = pipe(
        prompt, height=64, width=64, num_frames=5, num_inference_steps=4, output_type="np",
        guidance_scale=guidance, generator=torch.Generator().manual_seed(seed),
        max_sequence_length=tokens,
    ).frames[0]  # fmt: skip
    return (frames * 255).round().astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("prompt_tokens", [32, 512])
def test_both_prompt_lengths_give_nearly_the_same_video(pipe, prompt_tokens):
    short = generate(pipe, Job(FOUR[0], preset=None, guidance=5.0, **{**QUICK, "steps": 4})).frames
    assert psnr(padded(pipe, FOUR[0], prompt_tokens, 5.0, 0), short) > 20


@pytest.mark.slow
@pytest.mark.proof
def test_prompt_lengths_agree_at_the_guidance_of_jobs(pipe):
    found = [
        psnr(*(padded(pipe, prompt, tokens, 2.0, seed) for tokens in (32, 512)))
        for seed, prompt in enumerate(FOUR)
    ]
    assert np.median(found) > 20, found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 72}, r"width must be a multiple of 16.*got 72.*80"),
        ({"frames": 16}, r"multiple of 4 plus 1.*got 16.*17"),
        ({"motion": {"camera": {"pan": 3}}}, "pan"),
        ({"frames": 1, "motion": {"camera": {}}}, "2 frames"),
    ],
)
def test_job_that_does_not_fit_the_model_is_named(pipe, change, message):
    with pytest.raises(JobError, match=message):
        generate(pipe, Job("x", **{**QUICK, **change}))


def render(*arguments):
    """Exit code of ``accel render`` in this process."""
    return main(["render", *map(str, arguments), "--engine", "inline"])


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".accel")


@pytest.mark.slow
def test_render_writes_video_sidecar_and_settings(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    path = jobs({"prompt": "a red circle", "name": "one"}, {"prompt": "x", "preset": None})
    assert render(path, "--out", out, "--compare") == 0
    printed = capsys.readouterr()
    assert "dB PSNR" in printed.out and "accel report" in printed.out
    assert "2 rendered" in printed.err
    assert visible(out) == ["one.json", "one.mp4", "x-0.json", "x-0.mp4"]
    video = out / "one.mp4"
    assert read_video(video).shape == (5, 64, 64, 3)
    sidecar = json.loads((out / "one.json").read_text())
    assert sidecar["video"]["sha256"] == hashlib.sha256(video.read_bytes()).hexdigest()
    assert sidecar["comparison"]["psnr_db"] > 20 and sidecar["environment"]["dtype"] == "float32"
    assert main(["info", str(video)]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a red circle"
    assert main(["compare", str(video), str(video)]) == 0
    assert "inf dB" in capsys.readouterr().out


@pytest.mark.slow
def test_a_video_renders_again_from_its_own_settings(jobs, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    motion = {"camera": {"pan": [1, 0]}}
    formats = ["mp4", "webm", "gif", "png", "lossless"]
    entries = [{"prompt": "x", "name": f, "format": f, "motion": motion} for f in formats]
    assert render(jobs(*entries), "--out", out) == 0
    files = [out / name for name in ("mp4.mp4", "webm.webm", "gif.gif", "lossless.mkv")]
    assert render(*files, "--out", again) == 0
    for file in files:
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list((out / "png").iterdir())) == 5
    assert np.array_equal(read_video(out / "png"), read_video(out / "lossless.mkv"))
    assert "will differ" not in capsys.readouterr().err


@pytest.mark.slow
def test_restart_renders_nothing_twice_and_repairs_a_damaged_file(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    path = jobs({"prompt": "a"}, {"prompt": "b"})
    assert render(path, "--out", out) == 0
    good, times = (out / "a-0.mp4").read_bytes(), (out / "b-0.mp4").stat().st_mtime_ns
    (out / "a-0.mp4").write_bytes(good[:-1] + b"x")
    capsys.readouterr()
    assert render(path, "--out", out, "--dry-run") == 0
    assert "damaged or changed" in capsys.readouterr().out
    assert render(path, "--out", out) == 0
    assert (out / "a-0.mp4").read_bytes() == good
    assert (out / "b-0.mp4").stat().st_mtime_ns == times
    assert "1 rendered, 1 already done" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "x", "seeds": 1}, "did you mean 'seed'"),
        ({"prompt": "x", "height": 63}, "multiple of 16"),
        ({"prompt": "x", "model": "./nowhere"}, "nowhere"),
    ],
)
def test_bad_job_is_exit_code_1_and_the_others_are_rendered(entry, message, jobs, tmp_path, capsys):
    out = tmp_path / "out"
    path = jobs({"prompt": "good"}, entry)
    assert render(path, "--out", out, "--fail-fast") == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and visible(out) == []
    assert render(path, "--out", out) == 1
    assert visible(out) == ["good-0.json", "good-0.mp4"]


def test_unwritable_output_is_exit_code_2(jobs, tmp_path, capsys, monkeypatch):
    blocker, path = tmp_path / "file", jobs({"prompt": "x"})
    blocker.write_text("")
    code = render(path, "--out", blocker / "out")
    assert code == 2 and "--out" in capsys.readouterr().err

    def refused(path, *arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", refused)
    code = render(path, "--out", tmp_path / "out")
    assert code == 2 and "Read-only file system; choose another" in capsys.readouterr().err


def test_pipeline_without_a_known_denoiser(jobs, tmp_path, capsys, monkeypatch):
    class Strange:
        components = {"vae": None}  # noqa: RUF012

    monkeypatch.setattr("accel.pipelines.batch.worker.placed", lambda *a, **how: Strange())
    assert render(jobs({"prompt": "x"}), "--out", tmp_path / "out") == 1
    assert "no denoiser" in capsys.readouterr().err and visible(tmp_path / "out") == []


@pytest.mark.slow
def test_a_poisoned_job_is_exit_code_1_and_the_others_go_on(jobs, tmp_path, capsys, monkeypatch):
    real, tries = accel.pipelines.batch.worker.generate, []

    def sometimes(pipe, job, **options):
        if job.prompt == "bad":
            tries.append(job)
            raise RuntimeError("no such luck")
        return real(pipe, job, **options)

    monkeypatch.setattr("accel.pipelines.batch.worker.generate", sometimes)
    path, out = jobs({"prompt": "bad"}, {"prompt": "good"}), tmp_path / "out"
    assert render(path, "--out", out, "--retries", "2") == 1
    assert len(tries) == 3 and "no such luck" in capsys.readouterr().err
    assert visible(out) == ["good-0.json", "good-0.mp4"]
    failures = out / ".accel" / "failures"
    text = (failures / "bad-0.txt").read_text()
    assert "Traceback" in text and f"accel render {failures / 'bad-0.json'}" in text
    monkeypatch.undo()
    assert render(failures / "bad-0.json", "--out", tmp_path / "o2") == 0  # the kept job is whole


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure(jobs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("accel.pipelines.batch.worker.generate", lambda *a, **k: 1 / 0)
    out = tmp_path / "out"
    assert render(jobs({"prompt": "a"}, {"prompt": "b"}), "--out", out, "--fail-fast") == 1
    assert visible(out) == [] and "1 failed, 1 left" in capsys.readouterr().err


@pytest.mark.slow
def test_full_disk_ends_the_queue_and_the_next_run_goes_on(jobs, tmp_path, capsys, monkeypatch):
    real, out = accel.pipelines.batch.output.encode, tmp_path / "out"

    def until_full(path, frames, **options):
        if path.name.startswith(".b-"):  # before it has its name
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, frames, **options)

    path = jobs({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    monkeypatch.setattr("accel.pipelines.batch.output.encode", until_full)
    assert render(path, "--out", out) == 2
    assert visible(out) == ["a-0.json", "a-0.mp4"]
    printed = capsys.readouterr().err
    assert "1 rendered, 2 left" in printed and "make room" in printed
    monkeypatch.undo()
    assert render(path, "--out", out) == 0
    assert "from step 2 on" in capsys.readouterr().out  # b had been denoised


@pytest.mark.slow
def test_out_of_memory_climbs_the_ladder(jobs, tmp_path, capsys, monkeypatch):
    real, tries = accel.pipelines.batch.worker.generate, []

    def hungry(pipe, job, **options):
        sliced = (job.accel_plan().slicing or accel.SlicingConfig(1)).slices
        tries.append((sliced, pipe.vae.use_slicing, pipe.vae.use_tiling))
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(pipe, job, **options)

    monkeypatch.setattr("accel.pipelines.batch.worker.generate", hungry)
    out = tmp_path / "out"
    assert render(jobs({"prompt": "a"}, {"prompt": "b"}), "--out", out) == 0
    climbed = [(1, False, False), (16, False, False), (16, True, False), (16, True, True)]
    assert tries == [t for t in climbed for _ in "ab"]
    sidecar = json.loads((out / "a-0.json").read_text())
    assert sidecar["memory"] == ["more slices", "VAE slicing", "VAE tiling"]
    assert "with less memory" in capsys.readouterr().err
    assert main(["info", str(out / "a-0.mp4")]) == 0  # the job's own settings, as ever
    assert '"preset": "balanced"' in capsys.readouterr().out


def test_a_file_of_somebody_else_is_not_overwritten(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a-0.mp4").write_text("holiday")
    (out / "b-0.json").write_text("{}")
    assert render(jobs({"prompt": "a"}, {"prompt": "b"}), "--out", out) == 1
    assert (out / "a-0.mp4").read_text() == "holiday" and visible(out) == ["a-0.mp4", "b-0.json"]
    assert capsys.readouterr().err.count("is not from accel render") == 2


@pytest.mark.slow
def test_a_twin_is_copied(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    path = jobs({"prompt": "a", "name": "one"}, {"prompt": "a", "name": "two"})
    assert render(path, "--out", out) == 0
    assert "two: the same video as one, copied" in capsys.readouterr().err
    assert (out / "one.mp4").read_bytes() == (out / "two.mp4").read_bytes()
    assert render(path, "--out", out) == 0
    assert "2 already done" in capsys.readouterr().err


def test_dry_run_loads_and_writes_nothing(jobs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("accel.pipelines.batch.worker.placed", lambda *a, **k: 1 / 0)
    code = main(["render", jobs({"prompt": "x"}), "--out", str(tmp_path / "out"), "--dry-run"])
    assert code == 0 and "x-0.mp4" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_wrong_usage_is_exit_code_2(jobs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["render"])
    assert stop.value.code == 2
    assert main(["info", "nothing.mp4"]) == 2
    for option, value in (("--shard", "0/2"), ("--engine", "lokal"), ("--set", "stesp=3")):
        code = main(["render", jobs({"prompt": "x"}), "--out", str(tmp_path / "o"), option, value])
        assert code == 2, option
    assert "did you mean 'local'" in capsys.readouterr().err
