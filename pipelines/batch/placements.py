"""How a job's weights would be placed, for predictions: asked only where they do not all fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accel.config import LinearConfig, RehashConfig
from accel.memory.placement import Room
from accel.pipelines.load_options import LoadOptions


@dataclass(frozen=True)
class Question:
    """What decides a placement: the model, the job's size and plan, and what is free."""

    folder: str
    width: int
    height: int
    frames: int
    dtype: str
    slices: int
    rehash: RehashConfig | None
    offload: str
    room: Room
    allow: tuple[str, ...] = ()
    linear: LinearConfig | None = None


@dataclass(frozen=True)
class Placed:
    """The way that would be taken, its peak in bytes, and the table of all ways."""

    way: str
    peak: int
    table: str


def answered(question: Question) -> Placed | str:
    """Return how weights would be placed, or why that cannot be said."""
    import torch

    from accel.memory.meta_models import Video
    from accel.pipelines.arranging import Techniques, arranged

    try:
        found = arranged(
            Path(question.folder),
            Video(question.width, question.height, question.frames),
            question.room,
            getattr(torch, question.dtype),
            options=LoadOptions(offload=question.offload, allow=question.allow),
            job=Techniques(question.slices, question.rehash, question.linear),
            always=True,
        )
        row = found.placement
    except Exception as error:  # a prediction must never cost the dry run
        return str(error)
    slices = f" in {row.slices} slices" if row.slices > question.slices else ""
    return Placed(f"{row.name}{slices}", row.peak, str(found))
