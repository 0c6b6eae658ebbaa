"""Videos that a browser uploads: looked at with limits, and kept where a later job finds them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image

from accel.pipelines.job import JobError
from accel.pipelines.video import files_of

_PICTURES = (".gif", ".png")


def first_frame(path: Path) -> np.ndarray:
    """Return the first frame of a video or of a folder of frames, uint8 [H, W, 3].

    What comes after it is not decoded. Raises ValueError for what is no video.
    """
    try:
        file = files_of(path)[0]
        picture = file.suffix.lower() in _PICTURES
        how: dict[str, Any] = {"plugin": "pillow", "mode": "RGB"} if picture else {"plugin": "pyav"}
        with file.open("rb") as opened:  # imageio takes a name such as "run:1" for an address
            return iio.imread(opened, index=0, **how)
    except Exception as error:  # decoders of files from anywhere raise anything
        raise ValueError(f"{path.name} cannot be read as a video: {error}") from error


def keep_driving(files: Sequence[Path], folder: Path, limit: int) -> Path:
    """Keep a driving video of at most ``limit`` bytes in ``folder``, under a hash of its content.

    Several files are the frames of a folder. Raises JobError for what is no video.
    """
    if sum(file.stat().st_size for file in files) > limit:
        raise JobError(f"the video is larger than {limit >> 20} MiB; cut it")
    files = sorted(files, key=lambda file: (len(file.name), file.name))
    pictures = [file for file in files if file.suffix.lower() == ".png"]
    if len(files) > 1 and len(pictures) < len(files):
        raise JobError(f"{len(files)} files were given; give one video, or PNG frames alone")
    if len(files) == len(pictures) == 1:
        raise JobError("one picture is no driving video; give all frames of its folder at once")
    _check(files)
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    name = whole.hexdigest()[:24]
    if len(files) == 1:
        kept = folder / f"{name}{files[0].suffix.lower()[:8]}"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[0], kept)
        return kept
    kept = folder / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        shutil.copyfile(file, kept / f"{number:05}.png")
    return kept


def _check(files: Sequence[Path]) -> None:
    """Raise JobError unless the files are a video, or pictures of one size."""
    try:
        shape = first_frame(files[0]).shape
        for file in files[1:]:
            with Image.open(file) as image:
                size = (image.height, image.width)
            if size != shape[:2]:
                raise JobError(
                    f"{files[0].name} is {shape[1]}×{shape[0]} and {file.name} "
                    f"{size[1]}×{size[0]}; frames of one video have one size"
                )
    except JobError:
        raise
    except Exception as error:
        raise JobError("the file cannot be read as a video") from error
