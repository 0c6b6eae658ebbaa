"""Renders jobs one after the other: all checked before the first starts, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from accel.pipelines.generate import Result, check, generate
from accel.pipelines.job import Job, JobError, read_jobs, settings_text
from accel.pipelines.load import load
from accel.pipelines.video import write_video
from accel.quality import psnr, ssim


@dataclass(frozen=True)
class Options:
    """``compare``: render each job also without acceleration and measure the difference."""

    out: Path
    compare: bool = False
    dry_run: bool = False
    fail_fast: bool = False


def collect(files: Iterable[str | Path]) -> list[Job]:
    """Jobs of all files, checked. Raises JobError, also for two jobs that would write one file."""
    jobs: list[Job] = []
    for file in files:
        jobs += read_jobs(file)
    seen: dict[str, int] = {}
    for number, job in enumerate(jobs, 1):
        if job.name in seen:
            raise JobError(
                f"jobs {seen[job.name]} and {number} would both write {job.name}.mp4; "
                "give one a name"
            )
        seen[job.name] = number
    return [job.resolved() for job in jobs]


def prepare_folder(out: Path) -> None:
    """Create the output folder and prove that it can be written. Raises JobError if not."""
    probe = out / f".accel-write-test-{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise JobError(
            f"cannot write to {out}: {error.strerror}; choose another folder with --out"
        ) from error


def render(jobs: list[Job], options: Options) -> int:
    """Render all jobs; returns the number that failed.

    Every model is loaded and every job checked against it before the first job starts; a job that
    does not fit raises JobError and nothing is rendered. A job that fails while running is reported
    with its traceback, and the others go on unless ``fail_fast``.
    """
    if options.dry_run:
        for job in jobs:
            print(f"{options.out / job.name}.mp4  {settings_text(job)}")
        return 0
    pipes = _load_all(jobs)
    prepare_folder(options.out)
    if options.compare:
        _warm_up(pipes, jobs)
    failed = 0
    for number, job in enumerate(jobs, 1):
        try:
            _render_one(pipes[job.model], job, options, f"[{number}/{len(jobs)}] {job.name}")
        except Exception:
            failed += 1
            print(f"job {job.name!r} failed:\n{traceback.format_exc()}", file=sys.stderr)
            if options.fail_fast:
                break
    return failed


def _load_all(jobs: list[Job]) -> dict[str, Any]:
    """Load each model once and check its jobs. Raises JobError naming job and model."""
    pipes: dict[str, Any] = {}
    for job in jobs:
        if job.model not in pipes:
            try:
                pipes[job.model] = load(job.model)
            except (OSError, ValueError) as error:
                raise JobError(
                    f"job {job.name!r}: cannot load model {job.model!r}: {error}"
                ) from error
        check(pipes[job.model], job)
    return pipes


def _warm_up(pipes: dict[str, Any], jobs: list[Job]) -> None:
    """One step of a job per model, so that no side of a comparison pays for what happens once."""
    for model, pipe in pipes.items():
        job = next(job for job in jobs if job.model == model)
        for preset in ("balanced", None):
            generate(pipe, replace(job, steps=1, preset=preset, plan=None))


def _render_one(pipe: Any, job: Job, options: Options, title: str) -> None:
    with tqdm(total=job.steps, desc=title, unit="step", file=sys.stderr) as bar:
        result = generate(pipe, job, on_step=lambda done, steps: _advance(bar, done, steps))
    comparison = None
    if options.compare:
        plain = replace(job, preset=None, plan=None)
        with tqdm(
            total=job.steps, desc=f"{title}, unaccelerated", unit="step", file=sys.stderr
        ) as bar:
            reference = generate(
                pipe, plain, on_step=lambda done, steps: _advance(bar, done, steps)
            )
        comparison = _compare(result, reference)
    target = options.out / f"{job.name}.mp4"
    write_video(target, result.frames, fps=job.fps or 16.0, comment=settings_text(job))
    _write_sidecar(target, job, result, comparison)
    print(f"{target}: {len(result.frames)} frames in {result.seconds:.2f} s")
    print(result.report if result.report is not None else "not accelerated (preset: null)")
    if comparison is not None:
        print(
            f"  against the same seed unaccelerated: {comparison['psnr_db']:.2f} dB PSNR, "
            f"SSIM {comparison['ssim']:.4f}, {comparison['reference_seconds']:.2f} s, "
            f"speed {comparison['speedup']:.2f}x" + _verdict(comparison["speedup"])
        )


def _verdict(speedup: float) -> str:
    return "" if speedup >= 1 else " (slower than not patching)"


def _advance(bar: Any, done: int, steps: int) -> None:
    bar.total = steps
    bar.update(done - bar.n)


def _compare(result: Result, reference: Result) -> dict[str, float]:
    return {
        "psnr_db": psnr(result.frames, reference.frames),
        "ssim": ssim(result.frames, reference.frames),
        "reference_seconds": reference.seconds,
        "speedup": reference.seconds / result.seconds,
    }


def _write_sidecar(
    target: Path, job: Job, result: Result, comparison: dict[str, float] | None
) -> None:
    """Settings, report and hash beside the video; written last, so its presence means done."""
    data = {
        "job": job.to_dict(),
        "video": {"file": target.name, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()},
        "seconds": result.seconds,
        "report": None if result.report is None else result.report.to_dict(),
        "comparison": comparison,
    }
    part = target.with_name(f"{target.stem}.json.part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    part.replace(target.with_suffix(".json"))
