"""VMAF by the ffmpeg that the package imageio-ffmpeg brings, whose libvmaf has its model built in.

Li et al., "Toward a practical perceptual video quality metric", 2016; the model is ``MODEL``. It
was trained on films of 1080 rows seen from three times their height: for small clips the number
ranks, and no more. Brightness alone counts; colors do not.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from accel.core.extras import how_to_install
from accel.core.quality.pixel_metrics import CannotMeasure, check_pair, check_size
from accel.core.strict_json import loads

MODEL = "vmaf_v0.6.1"
LEAST = 16  # pixels of the smaller side; libvmaf's scales need them
# Full chroma, so that no size needs padding; brightness is what counts.
_TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv444p"


@cache
def why_not_vmaf() -> str:
    """Return why VMAF cannot be measured here, or ""."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        return f"VMAF needs imageio-ffmpeg: {how_to_install('imageio-ffmpeg')}"
    except RuntimeError as error:
        return f"VMAF needs the ffmpeg of imageio-ffmpeg: {error}"
    help_text = subprocess.run(
        [program, "-v", "error", "-h", "filter=libvmaf"], capture_output=True, text=True
    ).stdout
    if "libvmaf AVOptions" not in help_text:
        return f"VMAF needs an ffmpeg with libvmaf, which {program} is not"
    return ""


def vmaf(reference: np.ndarray, frames: np.ndarray) -> float:
    """Return VMAF of a video beside its reference, 0 to 100, the mean over all frames.

    Equal videos give 97 to 100: the model's own ceiling depends on how much moves.

    Args:
        reference: uint8 [F, H, W, 3].
        frames: Another video of the same shape.

    Raises:
        ValueError: Another dtype, different shapes, frames smaller than 16 x 16, or there is no
            ffmpeg with libvmaf; the message says how to have one.
        OSError: ffmpeg failed.
    """
    check_pair(reference, frames)
    check_size("VMAF", frames, LEAST)
    if reason := why_not_vmaf():
        raise CannotMeasure(reason)
    with tempfile.TemporaryDirectory(prefix="accel-vmaf-") as folder:
        log = _run(Path(folder), reference, frames)
    found = loads(log, "libvmaf's log")
    if len(found["frames"]) != len(frames):
        raise OSError(f"libvmaf measured {len(found['frames'])} of {len(frames)} frames")
    return float(found["pooled_metrics"]["vmaf"]["mean"])


def _run(folder: Path, reference: np.ndarray, frames: np.ndarray) -> str:
    """Return libvmaf's log of two videos, which are written to ``folder`` as plain bytes."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    inputs: list[str] = []
    for name, video in (("frames", frames), ("reference", reference)):
        np.ascontiguousarray(video).tofile(folder / name)
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25"]
        inputs += [*raw, "-i", name]
    graph = (
        f"[0:v]{_TO_YUV}[seen];[1:v]{_TO_YUV}[true];"
        f"[seen][true]libvmaf=model=version={MODEL}:log_fmt=json:log_path=log.json:n_threads=1"
    )
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-v", "error", "-nostdin", *inputs, "-lavfi", graph, "-f", "null", "-"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ffmpeg could not measure VMAF: {done.stderr.strip()[-500:]}")
    return (folder / "log.json").read_text()
