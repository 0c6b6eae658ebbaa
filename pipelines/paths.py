"""Paths as people write them, and names of files made of their words."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.core.plain_values import shown

LONGEST = 180  # bytes; file systems allow 255, and suffixes and the beginning of an id come behind
_DEPTH = 3  # mappings in mappings that may hold paths: motion.camera.depth


def safe_name(words: str) -> str:
    """Return ``words`` as a name that any file system takes, "" if nothing is left of them.

    Letters, digits, "_", "." and "-" stay, at most 120 of them in at most ``LONGEST`` bytes of
    UTF-8; what can be written as one character or as two (é) is one.
    """
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", words)).strip("-.")[:120]
    return name.encode()[:LONGEST].decode(errors="ignore").strip("-.")


def folded(name: str) -> str:
    """Return what two names have in common that are one path on some file system.

    Some know no upper case (macOS, Windows), some write é in one way only (macOS).
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def user_path(text: str | Path) -> Path:
    """Return a path in which ``~`` is the home folder, as in a shell."""
    return Path(os.path.expanduser(text))


def with_home(value: Any) -> Any:
    """Return a setting with ``~`` expanded in the paths that it or its mappings hold."""
    return _with_texts(value, lambda text: str(user_path(text)) if text[:1] == "~" else text)


def _with_texts(value: Any, change: Callable[[str], str], depth: int = _DEPTH) -> Any:
    """Return ``value`` with its texts changed, itself where none is."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping) and depth:
        changed = {key: _with_texts(inner, change, depth - 1) for key, inner in value.items()}
        return changed if any(changed[key] is not value[key] for key in changed) else value
    if isinstance(value, (list, tuple)) and depth:
        listed = [_with_texts(inner, change, depth - 1) for inner in value]
        return listed if any(a is not b for a, b in zip(listed, value, strict=True)) else value
    return value


def beside_file(settings: Any, file: Path, keys: Sequence[str]) -> Any:
    """Return settings of a job ``file`` whose relative paths, under ``keys``, can be found.

    A path counts from the working directory; where nothing is there, from the folder of the file.
    Patterns with ``*`` and arrays named in a file (``maps.npz:left``) are paths too.
    """
    folder = file.parent
    if not isinstance(settings, Mapping):  # whoever reads it says what is wrong
        return settings

    def found(text: str) -> str:
        if text[:1] in ("~", "/", "") or "\0" in text or not ("/" in text or "." in text):
            return text
        return text if _is_there(text) or not _is_there(str(folder / text)) else str(folder / text)

    return {k: _with_texts(v, found) if k in keys else v for k, v in settings.items()}


def _is_there(text: str) -> bool:
    """Tell whether a path, a pattern or a file's part is there."""
    try:
        return (
            os.path.exists(text)
            or os.path.isfile(text.rpartition(":")[0])
            or ("*" in text and next(glob.iglob(text), None) is not None)
        )
    except OSError:  # no path can be so long
        return False


def check_paths(name: str, value: Any) -> None:
    """Raise ValueError for a text in a motion or strength, or alone, that no path can be."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_paths(f"{name} {key}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_paths(name, inner)
    elif isinstance(value, str):
        parts = value.encode(errors="replace").split(b"/")
        if "\0" in value or max(map(len, parts)) > 255 or sum(map(len, parts)) > 4000:
            raise ValueError(
                f"{name} must be a path that can be, without NUL, a name in it of at most 255 "
                f"bytes, got {shown(value)}"
            )
