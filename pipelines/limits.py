"""What a model takes, as one record from its configurations: sizes, frames, images, motion.

Dry run, page, check and run ask the same record, so that they give the same reasons. A model that
is not on this machine has none before it is loaded; whoever asks is told why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from accel import families
from accel.core.structure import denoisers
from accel.core.validate import number
from accel.families.components import Part
from accel.families.family import Geometry, Pipeline
from accel.families.sizes import SizeRule
from accel.memory.meta_models import size_rule
from accel.pipelines.batch.helper_process import Aside
from accel.pipelines.batch.simulated import (
    NOT_LOCAL,
    config_folder,
    config_of,
    denoiser_of,
    index,
)
from accel.pipelines.inputs.binding import bind, check_call, has, needs_text
from accel.pipelines.inputs.media import check_files
from accel.pipelines.inputs.taken import Takes, takes_of
from accel.pipelines.job import Job, JobError
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.lora_files import problem as lora_problem
from accel.pipelines.loading.source import SINGLE
from accel.pipelines.motion.latents import latent_geometry
from accel.pipelines.motion.prepared import Prepared, check_motion_size, prepare

# A GIF counts hundredths of a second in 16 bits, and viewers slow down pictures of less than two.
FPS = {"gif": (0.002, 50.0)}


@dataclass(frozen=True)
class ModelLimits:
    """What a pipeline takes.

    ``geometry``: its latent grid, or why it can have no motion. ``unknown``: why there may be
    further limits, which are found when it is loaded; None for ``size`` and ``geometry`` is not
    known either.
    """

    pipeline: str
    takes: Pipeline
    size: SizeRule | None = None
    geometry: Geometry | str | None = None
    unknown: str = ""

    def check(self, job: Job) -> None:
        """Raise JobError for a resolved job that the model cannot take, whatever its files hold."""
        if job.fps is not None and job.format in FPS:
            with _as_job_error():
                number(f"fps of a {job.format}", job.fps, *FPS[job.format])
        for need in self.takes.needs:
            if not has(job, need):
                raise JobError(needs_text(self.pipeline, need))
        if self.takes.images and job.frames is not None and job.motion is None:
            raise JobError(
                f"{self.pipeline} makes single images and takes no frames; leave frames out"
            )
        self.check_size(job)

    def check_size(self, job: Job) -> None:
        """Raise JobError for a resolved job of a size that the model cannot make."""
        with _as_job_error():
            if self.size is not None:
                self.size.check(job.width, job.height, job.frames)
            if job.motion is not None:
                check_motion_size(job, self._grid())

    def motion(self, job: Job) -> Prepared | None:
        """Return the motion of a job, None if it has none; the files that it names are read.

        Raises JobError if it cannot be had.
        """
        with _as_job_error():
            return None if job.motion is None else prepare(job, self._grid())

    def _grid(self) -> Geometry:
        if isinstance(self.geometry, str):
            raise ValueError(self.geometry)
        return self.geometry or Geometry(1, 1, 1)


@contextmanager
def _as_job_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise JobError(str(error)) from error


def of_pipe(pipe: Any) -> ModelLimits:
    """Return the limits of a loaded pipeline.

    Raises ValueError for one without a known denoiser.
    """
    main = next(iter(denoisers(pipe).values()))
    main = getattr(main, "_orig_mod", main)
    vae: Any = getattr(pipe, "vae", None)
    part = Part(type(main).__name__, getattr(main, "config", {}))
    known = families.vaes().get(type(vae).__name__)
    scales = _own_scales(pipe) if known is None else known.scales(vae.config)
    names = [cls.__name__ for cls in type(pipe).__mro__]
    return _limits(names[0], part, scales, _geometry(pipe, names))


def _own_scales(pipe: Any) -> tuple[int, int]:
    """Return pixels and frames per latent cell as a pipeline of no family names them."""
    names = ("vae_scale_factor_spatial", "vae_scale_factor")
    space = next((f for name in names if (f := getattr(pipe, name, None))), 8)
    return int(space), int(getattr(pipe, "vae_scale_factor_temporal", None) or 1)


def _geometry(pipe: Any, names: Sequence[str]) -> Geometry | str:
    try:
        return latent_geometry(pipe, names)
    except ValueError as error:
        return str(error)


def _limits(
    name: str, denoiser: Part, scales: tuple[int, int], geometry: Geometry | str | None
) -> ModelLimits:
    takes = families.pipelines().get(name)
    size = size_rule(denoiser, scales, takes.grid if takes else 1)
    unknown = "" if takes and geometry else f"{name} is in no family"
    return ModelLimits(name, takes or Pipeline(1), size, geometry, unknown)


class _Config(dict):
    """A configuration whose settings are attributes as well, as diffusers' are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@lru_cache(maxsize=256)
def of_model(model: str, pipeline: str | None = None) -> ModelLimits:
    """Return the limits of a model that is not loaded, as far as its configurations are here.

    ``pipeline``: the class that it is loaded as, where that is not its own.
    """
    try:
        folder = str(config_folder(model) or "")
        if not folder:
            takes = families.pipelines().get(pipeline or "", Pipeline(1))
            return ModelLimits(pipeline or model, takes, unknown=NOT_LOCAL)
        name, component = pipeline or index(folder)["_class_name"], denoiser_of(folder)
        denoiser, vae = (_Config(config_of(folder, part)) for part in (component, "vae"))
        known = families.vaes().get(vae.pop("_class_name"))
        if known is None:
            takes = families.pipelines().get(name, Pipeline(1))
            return ModelLimits(name, takes, unknown=f"the VAE of {name} is in no family")
        part, scales = Part(denoiser.pop("_class_name"), denoiser), known.scales(vae)
        parts = {component: SimpleNamespace(config=denoiser), "vae": SimpleNamespace(config=vae)}
        try:
            return _limits(name, part, scales, _geometry(SimpleNamespace(**parts), [name]))
        except AttributeError:  # a rule that wants more of a pipeline than its configurations
            return _limits(name, part, scales, None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return ModelLimits(model, Pipeline(1), unknown=f"its configuration cannot be read: {error}")


def _load_problem(model: str, options: LoadOptions) -> str:
    """Return why a model cannot be loaded like this, "" if it can."""
    from accel.pipelines.loading.checking import problem  # diffusers takes seconds

    return problem(model, options)


class StoredLimits:
    """Checks jobs before any model is loaded, each distinct motion once.

    ``aside``: where it is asked what the call of a pipeline takes; ``close`` ends it.
    """

    def __init__(self, aside: Aside | None = None) -> None:
        self._motions: dict[str, str] = {}
        self._taken: dict[str, Takes | str] = {}
        self._aside = aside or Aside()
        self._loads: dict[str, str] = {}

    def why_not(self, job: Job) -> str:
        """Return why a run would refuse a resolved job, "" if it would not."""
        limits = of_model(job.model, job.load_options.pipeline)
        try:
            limits.check(job)
            self._check_call(limits, job)
        except ValueError as error:
            return str(error)
        if why := self._why_not_loaded(job) or lora_problem(job.loras):
            return why
        if job.motion is None:
            return ""
        key = repr([job.model, job.motion, job.strength, job.frames, job.height, job.width])
        if key not in self._motions:
            try:
                limits.motion(job)
                self._motions[key] = ""
            except JobError as error:
                self._motions[key] = str(error)
        return self._motions[key]

    def takes(self, model: str, pipeline: str | None = None) -> Takes | str:
        """Return what the call of a model's pipeline takes, or why that is not known."""
        name = of_model(model, pipeline).pipeline
        return NOT_LOCAL if "/" in name else self._asked(name)

    def _check_call(self, limits: ModelLimits, job: Job) -> None:
        """Raise ValueError for what the pipeline's call does not take, or a file that is no use."""
        uses = bool(job.given_files or job.arguments)
        taken: Takes | str = ""
        if "/" not in limits.pipeline and (uses or limits.pipeline not in families.pipelines()):
            taken = self._asked(limits.pipeline)
        if isinstance(taken, Takes):
            check_call(taken, job)
            bind(taken, job, time=limits.size.time if limits.size else 1, stand_in=True)
        elif job.load_options.pipeline and taken:
            raise JobError(f"load pipeline: {taken}")
        else:
            check_files(job.given_files)

    def _asked(self, name: str) -> Takes | str:
        if name not in self._taken:
            self._taken[name] = self._aside.ask(takes_of, name)
        return self._taken[name]

    def close(self) -> None:
        """End the helper process, if there is one."""
        self._aside.close()

    def _why_not_loaded(self, job: Job) -> str:
        """Return why the model cannot be loaded as the job asks for; once for all such jobs."""
        told = job.load or job.model.endswith(SINGLE)
        if told and job.loaded_as not in self._loads:
            asked = (job.model, job.load_options)
            self._loads[job.loaded_as] = self._aside.ask(_load_problem, *asked)
        return self._loads.get(job.loaded_as, "")
