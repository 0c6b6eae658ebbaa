"""Two videos, or two folders of them paired by name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from accel.pipelines.video_reading import existing, is_rendered


class VideoPair(NamedTuple):
    """A video and the one beside it, under the name that both have."""

    name: str
    a: Path
    b: Path


def video_pairs(a: Path, b: Path) -> tuple[list[VideoPair], list[str]]:
    """Return the pairs of two videos or two folders, and the videos without a partner.

    A folder of PNG frames is a video; any other folder holds videos, which are paired by name.

    Raises:
        ValueError: Nothing is there, one is a video and the other a folder of videos, or no name
            is in both.
    """
    a, b = existing(a), existing(b)
    if not (_holds_videos(a) or _holds_videos(b)):
        return [VideoPair(b.name, a, b)], []
    for path in (a, b):
        if not _holds_videos(path):
            raise ValueError(f"{path} is one video; compare two videos, or two folders of them")
    ours, theirs = ({p.name for p in folder.iterdir() if is_rendered(p)} for folder in (a, b))
    both = sorted(ours & theirs)
    if not both:
        raise ValueError(f"no video has the same name in {a} and {b}")
    alone = [*(a / name for name in ours - theirs), *(b / name for name in theirs - ours)]
    return [VideoPair(name, a / name, b / name) for name in both], sorted(map(str, alone))


def _holds_videos(path: Path) -> bool:
    return path.is_dir() and not is_rendered(path)
