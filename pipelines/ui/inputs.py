"""Pictures and videos that a job starts from: kept uploads, and what the form says of them.

An uploaded picture is decoded and written anew, so that nothing but its pixels is kept.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from accel.core.atomic_write import write_atomic
from accel.pipelines.inputs.media import formats, read_picture
from accel.pipelines.job import FITTED, Job, JobError
from accel.pipelines.ui.settings import Limits
from accel.pipelines.ui.uploads import keep_driving
from accel.pipelines.video_reading import look, read_video

PICTURES = {
    "image": "Picture", "last_image": "Last picture", "mask": "Mask, white where to paint",
}  # fmt: skip
VIDEO = "video"
KEYS = (*FITTED, "references", "fit")  # of a job, kept beside the form


def keep_picture(file: Path, folder: Path, limits: Limits) -> Path:
    """Keep the pixels of an uploaded picture in ``folder``, under a hash of them.

    Raises JobError for what is no picture, or a larger one than ``limits`` allow.
    """
    if file.stat().st_size > limits.upload:
        raise JobError(f"the picture is larger than {limits.upload >> 20} MiB; scale it down")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                _check_size(image, limits)
                turned = ImageOps.exif_transpose(image)
                alpha = "A" in turned.getbands() or "transparency" in turned.info
                pixels = turned.convert("RGBA" if alpha else "RGB")
    except JobError:
        raise
    except Exception as error:  # decoders of files from anywhere raise anything
        why = str(error).replace(repr(str(file)), "the file").replace(str(file), "the file")
        raise JobError(f"this cannot be read as a picture: {why}") from error
    return _kept(pixels, folder)


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if max(width, height) > limits.picture or width * height > limits.picture**2 // 4:
        raise JobError(
            f"the picture has {width} x {height} pixels; at most {limits.picture} on a side and "
            f"{limits.picture**2 // 4:,} in all are taken here; scale it down"
        )


def _kept(pixels: Image.Image, folder: Path) -> Path:
    buffer = BytesIO()
    pixels.info.clear()
    pixels.save(buffer, "PNG")
    data = buffer.getvalue()
    path = folder / f"{hashlib.sha256(data).hexdigest()[:24]}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path


def keep_last_frame(video: Path, folder: Path) -> Path:
    """Keep the last frame of a finished video as a picture.

    Raises JobError for a video that cannot be read.
    """
    try:
        last = look(video).frames - 1
        frame = read_video(video, last, last)[0]
    except ValueError as error:
        raise JobError(str(error)) from error
    return _kept(Image.fromarray(frame), folder)


def keep_video(files: list[Path], folder: Path, limits: Limits) -> Path:
    """Keep an uploaded video, or its frames.

    Raises JobError for what is no video.
    """
    return keep_driving(files, folder, limits.upload)


def of_job(job: Job) -> dict[str, Any]:
    """Return what a job starts from, as the page keeps it: nothing that is as by default."""
    plain, values = Job("").to_dict(), job.to_dict()
    return {key: values[key] for key in KEYS if values[key] != plain[key]}


def preview(inputs: Mapping[str, Any], key: str) -> Image.Image | None:
    """Return a small picture of an input, None if there is none or it cannot be read."""
    if not inputs.get(key):
        return None
    try:
        small = read_picture(key, inputs[key])
    except ValueError:  # the list of inputs still names it
        return None
    small.thumbnail((512, 512))
    return small


def listed(inputs: Mapping[str, Any]) -> str:
    """Return what a job starts from, as HTML; "" for nothing."""
    parts = []
    for key in KEYS:
        value = inputs.get(key)
        if key == "references" and value:
            parts.append(f"{len(value)} reference pictures")
        elif value and key in (VIDEO, "control"):
            parts.append(f"{key}: {escape(_about(Path(value)))}")
        elif value and key != "fit":
            lost = "" if Path(value).is_file() else ", missing"
            parts.append(f"{PICTURES[key].split(',')[0].lower()}{lost}")
    return f'<p class="quiet">Starts from: {"; ".join(parts)}.</p>' if parts else ""


def _about(path: Path) -> str:
    try:
        head = look(path)
        return f"{head.width}×{head.height}, {head.frames} frames"
    except ValueError:
        return "cannot be read" if path.exists() else "missing"
