"""Renders single jobs in one process on one device; the same code under every engine."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import accel
from accel.core.diffusers_bridge import execution_device
from accel.core.process_memory import peak_bytes, reset_peak
from accel.core.quality import psnr, ssim
from accel.memory.placement import NoWay
from accel.pipelines.arranging import Arrangement, arrangement_of
from accel.pipelines.batch.comparison import keep_reference
from accel.pipelines.batch.events import EmitStep, Note, Part, Step
from accel.pipelines.batch.ladder import (
    Rung,
    Undo,
    available,
    changed,
    classify,
    free_memory,
    in_slices,
)
from accel.pipelines.batch.lease import lease
from accel.pipelines.batch.output import Output
from accel.pipelines.batch.tasks import Check, Kind, Outcome, Task
from accel.pipelines.checkpoint import StepCheckpoint, Stopped
from accel.pipelines.fitting import check_room, placed, still_fits, summary
from accel.pipelines.generate import Result, check, generate
from accel.pipelines.job import Job, JobError
from accel.pipelines.load import usual_device
from accel.pipelines.loading.encoding_store import Store
from accel.pipelines.loading.encodings import Encodings, cached, folder
from accel.pipelines.preview import Preview


class Worker:
    """Holds one loaded pipeline.

    ``stop()`` is asked after every step; ``emit`` gets events.

    ``steps``: output folder in which steps are saved; None for nowhere.
    """

    def __init__(
        self,
        out: Path,
        device: str | None,
        stop: Callable[[], bool],
        emit: EmitStep,
        steps: Path | None,
    ) -> None:
        self._out, self._device, self._stop, self._emit = out, device, stop, emit
        self._steps = steps
        self._encodings, self._told = Store(folder(out)), set[str]()
        self._loaded_as = ""
        self._pipe: Any = None
        self._warm = False
        self._skip = self._rungs = 0
        self._arranged: Arrangement | None = None

    def perform(self, task: Task | Check) -> Outcome:
        """Do one task; every failure comes back as an outcome."""
        if isinstance(task, Check):
            return self._check(task)
        output = Output(self._out, task.name, task.job.format, task.overwrite)
        try:
            with lease(output.lease) as mine:
                if not mine:
                    return Outcome(Kind.BUSY)
                if output.finish(task.id) or not output.why_not_done(task.id, task.compare):
                    return Outcome(Kind.FOUND)
                output.check_ours(task.id)
                return self._render(task, output)
        except Stopped:
            return Outcome(Kind.STOPPED)
        except JobError as error:
            return Outcome(Kind.INVALID, str(error))
        except Exception as error:
            left = 0 if self._pipe is None else self._left(task.rung)
            text = f"{type(error).__name__}: {error}"
            outcome = Outcome(classify(error), text, traceback.format_exc(), rungs_left=left)
        free_memory()  # only here is the failed call's stack, and what it holds, gone
        return outcome

    def _check(self, task: Check) -> Outcome:
        bad: dict[str, str] = {}
        for name, job in task.jobs.items():
            try:
                check(self._loaded(job), job)
            except JobError as error:
                bad[name] = str(error)
            except (OSError, ValueError) as error:
                text = f"cannot load model {task.model!r}: {error}"
                return Outcome(Kind.CHECKED, invalid=dict.fromkeys(task.jobs, text))
        return Outcome(Kind.CHECKED, invalid=bad)

    def _loaded(self, job: Job, skip: int = 0) -> Any:
        """Return the pipeline of a job's model, placed so that the job fits.

        ``skip``: ways of placing it to pass over.
        """
        job = job.resolved()
        alike = self._loaded_as == job.loaded_as and self._skip == skip
        if alike and self._still_fits(job):
            return self._pipe
        self._pipe, self._loaded_as, self._warm = None, "", False
        free_memory()
        device = torch.device(self._device or usual_device())
        try:
            with _quiet_loading():
                self._pipe = placed(job.model, job.load_options, device, job=job, skip=skip)
        except NoWay as error:
            raise JobError(f"{job.model}: {error}") from error
        self._loaded_as, self._skip = job.loaded_as, skip
        self._arranged = arrangement_of(self._pipe)
        return self._pipe

    def _still_fits(self, job: Job) -> bool:
        """Tell whether a job fits the pipeline as it is placed; its slices are looked up."""
        if self._arranged is None:
            return True
        found = still_fits(self._pipe, self._arranged, job)
        self._arranged = found or self._arranged
        return found is not None

    def _left(self, rung: int) -> int:
        """Return the rungs above, and the ways of placing the model above those."""
        ways = 0 if self._arranged is None else self._arranged.ways_left
        return max(0, self._rungs - rung) + ways

    def _render(self, task: Task, output: Output) -> Outcome:
        if self._loaded_as != task.job.resolved().loaded_as:
            self._loaded(task.job)
        if not self._skip:
            self._rungs = len(available(self._pipe))
        # Above the last rung nothing is left to do to the pipeline as it was placed.
        pipe = self._loaded(task.job, max(0, task.rung - self._rungs))
        self._stop_if_asked()
        rungs = available(pipe)[: task.rung]
        undo: list[Undo] = []
        try:
            undo += [rung.apply(pipe) for rung in rungs]
            if self._arranged is not None and not rungs:
                check_room(self._arranged, pipe, execution_device(pipe) or pipe.device)
            outcome = self._written(task, output, pipe, rungs)
        finally:
            for back in reversed(undo):
                back()
        self._steps_file(output).unlink(missing_ok=True)
        return outcome

    def _steps_file(self, output: Output) -> Path:
        return Output(self._steps or self._out, output.name, output.format).steps

    def _written(self, task: Task, output: Output, pipe: Any, rungs: list[Rung]) -> Outcome:
        if task.compare and not self._warm:
            self._warm_up(pipe, task.job)
        every = 0 if self._steps is None else task.checkpoint_steps
        saved = StepCheckpoint(self._steps_file(output), task.id, every, self._stop)
        slices = 1 if self._arranged is None else self._arranged.placement.slices
        job = changed(in_slices(task.job, slices), rungs)
        result, phases, encodings = self._generate(pipe, task, job, saved)
        comparison: dict[str, Any] | None = None
        names = [rung.name for rung in rungs]
        if task.compare:
            plain = replace(task.job, preset=None, plan=None)
            plain = in_slices(plain, slices)
            reference, peaks, _ = self._generate(pipe, task, changed(plain, rungs), None)
            comparison = _compare(result, reference)
            if task.keep:
                comparison |= keep_reference(
                    self._out, task.name, plain, result, reference, peaks, names
                )
        sidecar = {
            "seconds": result.seconds,
            "peak_bytes": max(phases.values()),
            "phase_peak_bytes": phases,
            "frames": len(result.frames),
            "prompt_encoding": str(encodings),
            "prompt_cut": [str(cut) for cut in result.cuts],
            "inputs": [asdict(used) for used in result.inputs],
            "report": None if result.report is None else result.report.to_dict(),
            "comparison": comparison,
            "memory": names,
            "placement": summary(self._arranged),
            "resumed_from_step": saved.resumed_from,
            "steps_not_saved": saved.why_not,
            "environment": _environment(pipe),
        }
        sha256 = output.write(result.frames, task.job, task.id, sidecar)
        self._tell_once(encodings)
        text = "not accelerated (preset: null)" if result.report is None else str(result.report)
        text += f"\n  {encodings}" if str(encodings) else ""
        return Outcome(Kind.DONE, sha256=sha256, sidecar=sidecar, report=text)

    def _tell_once(self, encodings: Encodings) -> None:
        if encodings.why_not and encodings.why_not not in self._told:
            self._told.add(encodings.why_not)
            self._emit(Note(f"encoded prompts are not kept: {encodings.why_not}"))

    def _generate(
        self, pipe: Any, task: Task, job: Job, saved: StepCheckpoint | None
    ) -> tuple[Result, dict[str, int], Encodings]:
        """Render a job; the result, peak bytes up to the last step and after it, its prompts."""
        phases: dict[str, int] = {}

        def on_step(done: int, steps: int) -> None:
            if done == steps:
                phases["denoise"] = peak_bytes()
                reset_peak()
            if saved is not None and done <= saved.resumed_from:
                return  # taken over, not computed
            part = Part.UNACCELERATED if saved is None else Part.RENDER
            self._emit(Step(task.name, done, steps, part))
            if saved is None:  # otherwise the checkpoint asks, after it has saved the step
                self._stop_if_asked()

        preview = Preview(self._emit, task.name) if task.preview else None

        def on_cut(text: str) -> None:
            if saved is not None:  # once is enough
                self._emit(Note(f"{task.name}: {text}", job=task.name))

        reset_peak()
        with cached(pipe, self._encodings, task.job) as encodings:
            result = generate(
                pipe, job, on_step=on_step, on_latents=preview, checkpoint=saved, on_cut=on_cut
            )
        phases["decode" if phases else "all"] = peak_bytes()
        return result, phases, encodings

    def _stop_if_asked(self) -> None:
        if self._stop():
            raise Stopped

    def _warm_up(self, pipe: Any, job: Job) -> None:
        """One step either way, so that no side of a comparison pays for what happens once."""
        for preset in ("balanced", None):
            first = replace(job, steps=1, preset=preset, plan=None)
            generate(pipe, first, on_cut=lambda text: None)  # told by the run itself
        self._warm = True


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No loading bars in a log file."""
    if sys.stderr.isatty():
        yield
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _compare(result: Result, reference: Result) -> dict[str, Any]:
    return {
        "psnr_db": psnr(result.frames, reference.frames),
        "ssim": ssim(result.frames, reference.frames),
        "reference_seconds": reference.seconds,
        "speedup": reference.seconds / result.seconds,
    }


def _environment(pipe: Any) -> dict[str, str]:
    """Return what the id of a job leaves out: where and with what it was rendered."""
    import diffusers

    return {
        "accel": accel.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": str(execution_device(pipe) or pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "machine": platform.node(),
    }
