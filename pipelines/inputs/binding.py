"""Binds a job to its pipeline's call: which key goes to which argument, files read and resized.

Pictures and videos that the result shows (``image``, ``last_image``, ``video``, ``mask``,
``control``) are brought to the job's width and height, or to the call's own where those are
numbers; without either they are handed over as they are, and the pipeline resizes them. References
and files in ``arguments`` are handed over as they are. A video gives its first frames, as many as
the job has; a single picture in its place stands for every frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from accel import families
from accel.pipelines.inputs import media
from accel.pipelines.inputs.arguments import check_arguments, file_of
from accel.pipelines.inputs.media import Used
from accel.pipelines.inputs.resizing import Size, fitted
from accel.pipelines.inputs.taken import FILES, PLAIN, Takes, takes
from accel.pipelines.job import FITTED, Job
from accel.pipelines.prompt_tokens import longest

__all__ = ["Bound", "bind", "bound", "call_arguments", "check_call", "takes"]

WHAT = {
    "image": "a picture to start from or to edit", "last_image": "a picture to end with",
    "video": "a video to start from", "mask": "a picture or video that is white where to paint",
    "references": "pictures of what should appear", "control": "what its control follows",
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """The arguments of a pipeline's call that a job gives, and what became of its files."""

    arguments: dict[str, Any]
    inputs: tuple[Used, ...] = ()


def call_arguments(pipe: Any, job: Job) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, its pictures and videos read and resized.

    The random generator, motion and callbacks are not among them. Raises ValueError for a job that
    the call does not take, or a file that cannot be used.
    """
    return bound(pipe, job).arguments


def bound(pipe: Any, job: Job) -> Bound:
    """Return ``call_arguments`` with what became of the job's files."""
    taken = takes(pipe.__class__)
    check_call(taken, job)
    given = bind(taken, job, time=frame_step(pipe))
    tokens = prompt_tokens(pipe, taken)
    padded = {} if tokens is None else {"max_sequence_length": tokens}
    return Bound({**padded, **given.arguments}, given.inputs)


def prompt_tokens(pipe: Any, taken: Takes) -> int | None:
    """Return the tokenizers' own length where it is shorter than the call's, else that one.

    Of several tokenizers the longest counts: a pipeline with a CLIP model of 77 tokens means the
    other one. None where one of them is not known.
    """
    length, default = longest(pipe), taken.size("max_sequence_length")
    return None if length is None or default is None else min(length, default)


def frame_step(pipe: Any) -> int:
    """Return frames per latent frame of a pipeline."""
    return int(getattr(pipe, "vae_scale_factor_temporal", None) or 1)


def check_call(taken: Takes, job: Job) -> None:
    """Raise ValueError for a job that the call does not take; no file is looked at."""
    name = taken.pipeline
    for key in (*FITTED, "references"):
        animated = key == "image" and job.following.animated
        if getattr(job, key) and key not in taken.binds and not animated:
            raise ValueError(f"{name} takes no {key}{_instead(taken, key)}; leave it out")
    made = ("video", "mask", "control") if job.following.way == "control" else ()
    lacking = [need for need in taken.needs if not has(job, need) and need not in made]
    for need in lacking:
        raise ValueError(needs_text(name, need))
    check_arguments(taken, job)
    given = [key for key in PLAIN if getattr(job, key) not in (None, "")]
    if job.motion is not None or any(taken.is_frames(key) for key in _files(taken, job)):
        given = [key for key in given if key != "frames"]
    if any(key in FITTED for key in _files(taken, job)):  # then they say what to resize it to
        given = [key for key in given if key not in ("width", "height")]
    if missing := [PLAIN[key] for key in given if key not in taken.binds]:
        raise ValueError(f"{name} takes no {', '.join(missing)}; leave out the matching keys")
    _check_motion(taken, job)


def _check_motion(taken: Takes, job: Job) -> None:
    name, noise = taken.pipeline, job.motion is not None and job.following.noise
    if noise and "latents" not in taken.parameters:
        raise ValueError(f"{name} takes no latents; leave out the matching keys")
    if job.following.way == "control":
        taken.control_keys()
    if job.following.clocks:
        if "callback_on_step_end" not in taken.parameters:
            raise ValueError(f"{name} shows no latents between its steps; use follow: noise")
        if "num_frames" not in taken.parameters and "video" not in taken.parameters:
            raise ValueError(f"{name} makes single images, not a clip to lead; leave follow out")
    if "strength" in taken.parameters:
        _check_strength(name, job, noise)


def _check_strength(name: str, job: Job, noise: bool) -> None:
    if noise:
        raise ValueError(
            f"{name} makes its first noise of what it is given, so a motion would be lost; leave "
            "motion out, or use follow: dual-clock"
        )
    if job.motion is None and job.strength != Job.strength:
        raise ValueError(
            "strength of a job belongs to its motion; how far "
            f"{name} changes what it is given is arguments: {{strength: {job.strength}}}"
        )


def has(job: Job, need: str) -> bool:
    """Tell whether a job has a key, or "arguments.NAME"."""
    first, _, name = need.partition(".")
    value = job.arguments.get(name) if first == "arguments" else getattr(job, first)
    return value not in (None, "", [], ())


def needs_text(name: str, need: str) -> str:
    """Return what is said to a job without something that its pipeline needs."""
    first, _, inner = need.partition(".")
    if first == "arguments":
        return f"{name} needs {need}; add arguments: {{{inner}: ...}} to the job"
    value = "[FILE]" if first == "references" else "FILE"
    return f"{name} needs {need}: {WHAT[first]}; add {first}: {value} to the job"


def _instead(taken: Takes, key: str) -> str:
    if key == "image" and taken.binds.get("control") == "image":
        return " beside what its control follows, which is control: FILE"
    known = [k for k in FILES if k in taken.binds]
    return f" (it takes {', '.join(known)})" if known else " or other picture"


def _files(taken: Takes, job: Job) -> dict[str, str]:
    """Return the fitted files of a job that the call takes, by key."""
    return {k: p for k in FITTED if (p := getattr(job, k)) is not None and k in taken.binds}


# --------------------------------------------------------------------------------------- arguments


def bind(taken: Takes, job: Job, *, time: int = 1, stand_in: bool = False) -> Bound:
    """Return what a job gives to the call, by the call's own names.

    Args:
        taken: What the call takes.
        job: A job that ``check_call`` let pass.
        time: Frames per latent frame; a video that decides the number of frames is cut to a
            multiple of it plus 1.
        stand_in: Only look at the files, and put blank pictures of their sizes in their place.

    Raises:
        ValueError: A file that is missing, broken, too large or too short.
    """
    binder = _Binder(taken, job, time, stand_in)
    arguments = {
        target: value
        for key, target in taken.binds.items()
        if key in PLAIN and (value := getattr(job, key)) is not None
    }
    if binder.count is not None and "frames" in taken.binds and binder.frames:
        arguments[taken.binds["frames"]] = binder.count
    arguments |= dict(binder.files())
    arguments |= dict(binder.others())
    return Bound(arguments, tuple(binder.inputs))


@dataclass
class _Binder:
    """Reads the files of one job.

    ``frames``: the files that give several pictures in order, by key; ``count``: how many of each.
    """

    taken: Takes
    job: Job
    time: int
    stand_in: bool
    inputs: list[Used] = field(default_factory=list)
    frames: dict[str, str] = field(init=False)
    count: int | None = field(init=False)

    def __post_init__(self) -> None:
        files = _files(self.taken, self.job)
        self.frames = {key: path for key, path in files.items() if self.taken.is_frames(key)}
        for name, value in self.job.arguments.items():
            found = file_of(self.taken.parameters[name], value)
            if found is not None and found[0] == "frames":
                self.frames[f"arguments.{name}"] = found[1]
        self.count = self._count()

    def _count(self) -> int | None:
        """Return the number of frames of every video; None if the job leaves it to the pipeline."""
        wanted = self.job.frames or self.taken.size("num_frames")
        lengths = {}
        for key, path in self.frames.items():
            media.check_file(key, path)
            if not media.is_still(path):
                lengths[key] = media.video_head(key, path).frames
        if self.taken.conditions or not lengths:  # where a video may end before the result does
            return wanted
        shortest = min(lengths, key=lambda key: lengths[key])
        if self.job.frames is None:
            most = min(filter(None, (wanted, lengths[shortest])))
            return most - (most - 1) % self.time
        if lengths[shortest] < self.job.frames:
            most = lengths[shortest] - (lengths[shortest] - 1) % self.time
            raise ValueError(
                f"{shortest} {self.frames[shortest]} has {lengths[shortest]} frames, the job asks "
                f"for {self.job.frames}; ask for frames: {most}, or give a longer one"
            )
        return self.job.frames

    @property
    def target(self) -> Size | None:
        """Width and height that pictures are brought to; None to leave that to the pipeline."""
        width = self.job.width or self.taken.size("width")
        height = self.job.height or self.taken.size("height")
        return None if width is None or height is None else (width, height)

    def files(self) -> Iterator[tuple[str, Any]]:
        """Yield the arguments that the job's pictures and videos go to."""
        given: dict[str, Any] = {}
        for key, path in _files(self.taken, self.job).items():
            several = key in self.frames
            given[key] = self._read(key, path, self.target, several, key == "mask")
        if self.taken.conditions and given:
            keys = ("image", "last_image", "video")
            make = families.pipelines()[self.taken.conditions].conditions
            assert make is not None
            kept = {k: given.pop(k) for k in keys if k in given}
            if not self.stand_in or "diffusers" in sys.modules:  # too large for a dry run
                yield "conditions", make(kept, self.count)
        references = [
            self._read("references", path, None, False) for path in self.job.references
        ]  # fmt: skip
        for key, value in given.items():
            if references and self.taken.binds[key] == self.taken.binds["references"]:
                references.insert(0, value)
            else:
                yield self.taken.binds[key], value
        if references:
            target = self.taken.binds["references"]
            one = len(references) == 1 and not target.endswith("s")
            yield target, references[0] if one else references

    def others(self) -> Iterator[tuple[str, Any]]:
        """Yield the further arguments, their files read."""
        for name, value in self.job.arguments.items():
            found = file_of(self.taken.parameters[name], value)
            if found is not None:
                kind, path = found
                value = self._read(f"arguments.{name}", path, None, kind == "frames")
            yield name, value

    def _read(
        self, key: str, path: str, target: Size | None, several: bool, mask: bool = False
    ) -> Any:
        count = (self.count or 1) if several else 1
        if several and not media.is_still(path):
            return self._video(key, path, target, mask)
        size = media.picture_size(key, path)
        if self.stand_in:
            image = Image.new("L" if mask else "RGB", target or size)
        else:
            image = fitted(media.read_picture(key, path, mask), target, self.job.fit)
            self.inputs.append(media.used(key, path, size, target, self.job.fit))
        return [image] * count if several else image

    def _video(self, key: str, path: str, target: Size | None, mask: bool) -> list[Image.Image]:
        head = media.video_head(key, path)
        size = (head.width, head.height)
        count = min(self.count or head.frames, head.frames)
        if self.stand_in:
            return [Image.new("L" if mask else "RGB", target or size)] * count
        frames = media.read_frames(key, path, count, target, self.job.fit, mask)
        if len(frames) < count:
            raise ValueError(f"{key} {path} has {len(frames)} frames, the job needs {count}")
        self.inputs.append(media.used(key, path, size, target, self.job.fit, (count, head.frames)))
        return frames
