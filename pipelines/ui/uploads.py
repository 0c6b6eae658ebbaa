"""Videos that a browser uploads: looked at with limits, and kept where a later job finds them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from accel.pipelines.job import JobError
from accel.pipelines.video_reading import look, read_video


def first_frame(path: Path) -> np.ndarray:
    """Return the first frame of a video or of a folder of frames, uint8 [H, W, 3].

    What comes after it is not decoded. Raises ValueError for what is no video.
    """
    try:
        return read_video(path, 0, 0)[0]
    except Exception as error:  # decoders of files from anywhere raise anything
        why = str(error).replace(str(path), path.name)
        raise ValueError(f"{path.name} cannot be read as a video: {why}") from error


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
    """Raise JobError unless the files are a video, or pictures of one size.

    A video is counted, not decoded.
    """
    sizes: dict[tuple[int, int], str] = {}
    for file in files:
        try:
            if len(files) == 1:
                look(file)
                return
            with Image.open(file) as image:
                sizes.setdefault((image.width, image.height), file.name)
        except Exception as error:
            why = str(error).replace(repr(str(file)), "the file").replace(str(file), "the file")
            text = why if "cannot be read" in why else f"the file cannot be read: {why}"
            raise JobError(text) from error
    if len(sizes) > 1:
        known = [f"{name} is {width}×{height}" for (width, height), name in sizes.items()]
        raise JobError(f"{' and '.join(known[:2])}; frames of one video have one size")
