"""How large job files may be, and how their bytes become text.

Each limit is far beyond what a queue renders in a week, and keeps a small file from becoming a
large one: aliases and a matrix multiply what is written.
"""

from __future__ import annotations

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path

from accel.core.plain_values import shown
from accel.pipelines.job import JobError


@dataclass(frozen=True)
class Bounds:
    """Most of everything, for one job file.

    ``values``: of all its jobs together, defaults and aliases written out; ``merged``: keys that
    YAML's ``<<`` brings in.
    """

    size: int = 32 * 2**20
    jobs: int = 100_000
    values: int = 20_000_000
    merged: int = 5_000_000


BOUNDS = Bounds()
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the one of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_raw(path: Path) -> bytes:
    """Return the bytes of a job file, a pipe, or for ``-`` of standard input, read once.

    Raises:
        JobError: It cannot be read, or is too large.
    """
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            raw = file.read(BOUNDS.size + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"cannot read job file {shown(str(path))[1:-1]}: {why}") from error
    if len(raw) > BOUNDS.size:
        raise JobError(
            f"{path} is larger than {BOUNDS.size >> 20} MiB, the most for a job file; split it "
            "into several and name them all in one command"
        )
    return raw


def text_of(raw: bytes, path: Path, *, by_line: bool = False) -> str:
    """Return the text of a job file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        raw: What the file holds.
        path: Its name, for messages.
        by_line: A byte that is no UTF-8 is the fault of its line: it becomes half a character,
            which ``check`` of ``plain_values.py`` refuses.

    Raises:
        JobError: It is no text.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in raw[:2]:
        raise JobError(
            f"{path} is no text in UTF-8: it begins with a NUL byte, as UTF-16 without a byte "
            "order mark does; save it as UTF-8"
        )
    try:
        return raw.decode(encoding, "surrogateescape" if by_line else "strict")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise JobError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02X} is no text in "
            f"{encoding.removesuffix('-sig').upper()}; save the file as UTF-8"
        ) from None
