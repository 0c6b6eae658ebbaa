"""The sizes that a model can make: one rule and one message."""

from __future__ import annotations

from dataclasses import dataclass


def nearest(value: int, multiple: int, plus: int = 0) -> int:
    """Return the nearest multiple of ``multiple`` plus ``plus`` that is at least 1."""
    least = 1 - plus
    return max(least, (value - plus + multiple // 2) // multiple) * multiple + plus


def check_multiple(name: str, value: int, multiple: int, plus: int = 0) -> None:
    """Raise ValueError unless ``value`` is a positive multiple of ``multiple`` plus ``plus``."""
    if value >= 1 and value % multiple == plus % multiple:
        return
    what = f"a multiple of {multiple}" + (f" plus {plus}" if plus else "")
    near = nearest(value, multiple, plus)
    raise ValueError(f"{name} must be {what} for this model, got {value}; the nearest is {near}")


def check_most(name: str, value: int, most: int | None) -> None:
    """Raise ValueError if ``value`` is more than ``most``."""
    if most is not None and value > most:
        raise ValueError(
            f"{name} must be at most {most} for this model, which has positions for no more, "
            f"got {value}"
        )


@dataclass(frozen=True)
class SizeRule:
    """The sizes that a model can make.

    Width and height must be multiples of ``space`` pixels, and at most ``most_side``; frames must
    be a multiple of ``time`` plus 1 (any number for ``time`` 1), and at most ``most_frames``. None
    is no limit.
    """

    space: int
    time: int = 1
    most_side: int | None = None
    most_frames: int | None = None

    def check(self, width: int | None, height: int | None, frames: int | None) -> None:
        """Raise ValueError for a size that the model cannot make; None is not checked."""
        for name, pixels in (("width", width), ("height", height)):
            if pixels is not None:
                check_multiple(name, pixels, self.space)
                check_most(name, pixels, self.most_side)
        if frames is not None:
            check_multiple("frames", frames, self.time, 1 if self.time > 1 else 0)
            check_most("frames", frames, self.most_frames)
