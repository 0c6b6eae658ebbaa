"""One generation job: everything that decides the pixels of one video (or image)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from accel.core.plain_values import shown
from accel.core.validate import from_dict, number, one_of, text, whole
from accel.pipelines.load import TINY, defaults
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.motion.clocks import Follow
from accel.pipelines.motion.crude import check_animates
from accel.pipelines.motion.flows import Motion
from accel.pipelines.motion.strength import Strength
from accel.pipelines.paths import check_paths, safe_name, with_home
from accel.plans import PRESETS, Plan

SEEDS = range(2**63)
FITS = ("crop", "pad", "stretch")
FORMATS = ("mp4", "webm", "gif", "png", "lossless")
UNACCELERATED = ("none", "off")  # as presets
FITTED = ("image", "last_image", "video", "mask", "control")  # files brought to the job's size
# What the first jobs did not have: ids and settings of those that do not use it stay the same.
NEWER = (*FITTED, "references", "fit", "loras", "arguments", "load", "follow")
PATHS = ("model", "plan", "motion", "strength", *FITTED, "references", "loras", "arguments")


class JobError(ValueError):
    """A job or job file that cannot be run; the message says what, where, and the way out."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the pixels of one video, checked when it is made.

    Fields hold what was written, since the id of a job depends on it, but for a ``~`` in a path;
    ``movement``, ``gamma`` and ``accel_plan()`` are what they were parsed to.

    Args:
        prompt: What to show; may be left out where a picture or a video says it.
        negative_prompt: What not to show.
        seed: 0 to 2^63 - 1.
        steps: Denoising steps. What is None here and below takes the model's default.
        guidance: Guidance scale.
        width: Pixels.
        height: Pixels.
        frames: Frames; 1 for an image.
        fps: Frames per second.
        model: "tiny", a folder, or a hub id.
        preset: A preset's name; None, "none" or "off", and no ``plan``: not accelerated.
        plan: A plan file or a plan as a mapping, instead of a preset.
        motion: See ``pipelines/motion/flows.py``.
        strength: 0 follows the motion, 1 ignores it; or a mapping, see
            ``pipelines/motion/strength.py``.
        format: See ``pipelines/video.py``.
        name: Only names the output.
        image: Picture to start from, or to edit.
        last_image: Picture to end with.
        video: Video, or folder of pictures, to start from.
        mask: Picture or video that is white where to paint.
        references: Pictures of what should appear.
        control: Picture or video that a control network follows.
        fit: How these are brought to the job's size: one of ``FITS``.
        loras: Mappings of ``file`` or ``id``, ``weight`` (1), and ``name``.
        arguments: Anything else that the pipeline's call takes, by its own names.
        load: How to load the model, see ``pipelines/load_options.py``.
        follow: How the motion is followed: "noise", "dual-clock", "both", "control", or a mapping,
            see ``pipelines/motion/clocks.py``. All but the first animate ``image``.

    Raises:
        JobError: A value that is not allowed.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    model: str = TINY
    preset: str | None = "balanced"
    plan: str | Mapping[str, Any] | None = None
    motion: Mapping[str, Any] | None = None
    strength: float | Mapping[str, Any] = 0.2
    format: str = "mp4"
    name: str = ""
    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    mask: str | None = None
    references: Sequence[str] = field(default_factory=list)
    control: str | None = None
    fit: str = "crop"
    loras: Sequence[Mapping[str, Any]] = field(default_factory=list)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] | None = None
    follow: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, empty in (("references", []), ("loras", []), ("arguments", {})):
            if getattr(self, name) is None:  # as any other key that is left out
                object.__setattr__(self, name, empty)
        for name in PATHS:  # a path may begin with ~
            object.__setattr__(self, name, with_home(getattr(self, name)))
        off = isinstance(self.preset, bool) and not self.preset
        if off or self.preset in UNACCELERATED:
            object.__setattr__(self, "preset", None)
        try:
            self._check()
        except JobError:
            raise
        except ValueError as error:
            raise JobError(str(error)) from error

    def _check(self) -> None:
        for name in ("prompt", "negative_prompt", "model", "name"):
            text(name, getattr(self, name))
        for name in ("steps", "width", "height", "frames"):
            if (count := getattr(self, name)) is not None:
                whole(name, count, 1)
        _check_seed(self.seed)
        for name, low, high in (("guidance", 0.0, 1e3), ("fps", 1e-3, 1e3)):
            if (value := getattr(self, name)) is not None:
                number(name, value, low, high)
        one_of("format", self.format, FORMATS)
        if self.preset is not None:
            one_of("preset", self.preset, (*PRESETS, UNACCELERATED[0]))
        if not isinstance(self.plan, (str, Mapping, NoneType)):
            raise JobError(f"plan must be a plan file or a mapping, got {shown(self.plan)}")
        for name in PATHS[:-1]:  # an argument may be any text
            if not (name == "plan" and isinstance(self.plan, Mapping)):
                check_paths(name, getattr(self, name))
        one_of("fit", self.fit, FITS)
        self._check_inputs()
        _ = self.movement, self.gamma, self._mapped_plan, self.load_options
        self._check_following()

    def _check_inputs(self) -> None:
        for name, what in (("references", "files"), ("loras", "mappings")):
            if not isinstance(value := getattr(self, name), (list, tuple)):
                raise JobError(f"{name} must be a list of {what}, got {shown(value)}")
        for name, path in self.given_files.items():
            text(name, path)
            if not path:
                raise JobError(f"{name} must be the path of a file, got ''; leave it out instead")
        if self.mask is not None and self.image is None and self.video is None:
            raise JobError("mask needs an image or a video to paint in; add image: FILE")
        if not isinstance(self.arguments, Mapping):
            raise JobError(
                "arguments must be a mapping of names of the pipeline's call, such as "
                f"{{strength: 0.6}}, got {shown(self.arguments)}"
            )
        for key in self.arguments:
            text("arguments", key)

    def _check_following(self) -> None:
        if self.following != Follow() and self.movement is None:
            raise JobError("follow says how a motion is followed; add motion: {...}")
        if self.following.animated and self.movement is not None:
            check_animates(self.movement)
            if self.image is None:
                raise JobError(f"follow: {self.following.way} animates a picture; add image: FILE")

    @property
    def given_files(self) -> dict[str, str]:
        """Return the pictures and videos of the job by key, references numbered from 0."""
        found = {key: path for key in FITTED if (path := getattr(self, key)) is not None}
        return found | {f"references {n}": path for n, path in enumerate(self.references)}

    @cached_property
    def movement(self) -> Motion | None:
        """``motion``, parsed."""
        return None if self.motion is None else Motion.parse(self.motion)

    @cached_property
    def following(self) -> Follow:
        """``follow``, parsed."""
        return Follow.parse(self.follow)

    @cached_property
    def gamma(self) -> Strength:
        """``strength``, parsed."""
        return Strength.parse(self.strength)

    @cached_property
    def load_options(self) -> LoadOptions:
        """``load``, parsed."""
        return LoadOptions.parse(self.load)

    @cached_property
    def loaded_as(self) -> str:
        """Model and how it is loaded; jobs with equal ones share one loaded pipeline."""
        return self.load_options.key(self.model)

    @cached_property
    def _mapped_plan(self) -> Plan | None:
        return Plan.from_dict(self.plan) if isinstance(self.plan, Mapping) else None

    def resolved(self) -> Job:
        """Return the job with the model's defaults filled in where it left something open."""
        known = asdict(defaults(self.model))
        return replace(self, **{k: v for k, v in known.items() if getattr(self, k) is None})

    def accel_plan(self) -> Plan | None:
        """Return the plan to patch with, None for a run without acceleration."""
        if isinstance(self.plan, str):
            return _plan_file(self.plan)
        if self.plan is not None:
            return self._mapped_plan
        return None if self.preset is None else Plan.preset(self.preset)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``Job(**job.to_dict())`` is the job again."""
        return asdict(self)

    @property
    def file_name(self) -> str:
        """Name of the output without suffix: ``name``, else words of the prompt and the seed.

        Without a prompt the first picture or video gives the words.
        """
        words = self.prompt or next((Path(p).stem for p in self.given_files.values()), "")
        return safe_name(self.name or f"{words[:48]}-{self.seed}") or f"job-{self.seed}"


def _check_seed(seed: Any) -> None:
    """Raise JobError for what is no seed; many programs take -1 for a random one."""
    if isinstance(seed, int) and not isinstance(seed, bool) and seed in SEEDS:
        return
    way_out = ""
    if seed == -1 or seed is None:
        way_out = (
            "; a random seed could not be rendered again, so give one, or several in a job file: "
            "matrix: {seed: [1, 2, 3]}"
        )
    raise JobError(f"seed must be a whole number from 0 to 2^63 - 1, got {shown(seed)}{way_out}")


_KEYS = {f.name for f in fields(Job)}


@lru_cache(maxsize=64)
def _plan_file(path: str) -> Plan:
    """Return a plan file, read once: ten thousand jobs may share it."""
    return Plan.load(path)


def make_job(data: Mapping[str, Any], where: str = "job") -> Job:
    """Return a job from plain values.

    Raises JobError for an unknown key (with the nearest known one) or a bad value.
    """
    if isinstance(data, Mapping) and data.get("prompt") is None and set(data) <= _KEYS:
        if not any(data.get(key) for key in (*FITTED, "references")):
            raise JobError(f"{where} has no prompt")
        data = {key: value for key, value in data.items() if key != "prompt"}
    try:
        job = from_dict(Job, data, where)
        job.accel_plan()  # a plan file is read now, before any work
    except (ValueError, OSError, TypeError) as error:
        told = str(error)
        raise JobError(told if told.startswith(where) else f"{where}: {told}") from error
    return job
