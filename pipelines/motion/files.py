"""Flow files: numpy arrays, Middlebury .flo, KITTI pictures and .pfm, alone or in a folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from accel.core.run_log import logger
from accel.pipelines.motion.array_file import ArrayFile, finite
from accel.pipelines.motion.array_formats import open_array
from accel.pipelines.motion.scene import fill_gaps

_SUFFIXES = (".flo", ".npy", ".npz", ".pfm", ".png")
_UNKNOWN = 1e9  # from here on a .flo file means "not known"


def read_flow(path: str, shape: tuple[int, int, int, int]) -> Tensor:
    """Read flow of ``shape`` = [frames - 1, 2, height, width].

    From an array of that shape, from one flow of [2, height, width] for all frames, or from a
    folder with a flow for each. Pixels whose flow a .flo file or a KITTI picture does not know take
    that of their surroundings. Raises ValueError naming the file.
    """
    if not Path(path).is_dir():
        flow = _read(open_array("flow file", path), shape)
        return torch.from_numpy(flow if len(flow) == shape[0] else flow.repeat(shape[0], 0))
    files = _files(path, shape[0])
    out = np.empty(shape, np.float32)
    for step, file in enumerate(files):
        out[step] = _read(open_array("flow file", str(file)), (1, *shape[1:]))[0]
    return torch.from_numpy(out)


def _files(path: str, count: int) -> list[Path]:
    """Return the flows in a folder, 2 before 10."""
    found = [f for f in Path(path).iterdir() if f.suffix.lower() in _SUFFIXES]
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1:
        raise ValueError(f"flow folder {path} holds {' and '.join(kinds)} files; leave one kind")
    if len(found) != count:
        kind = kinds[0] if kinds else " or ".join(_SUFFIXES)
        raise ValueError(f"flow folder {path} has {len(found)} {kind} files, needs {count}")
    return sorted(found, key=_in_order)


def _in_order(file: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), part) if part.isdecimal() else (0, part) for part in parts]


def _read(file: ArrayFile, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return flow [steps or 1, 2, H, W]."""
    if file.kind == "array":
        if file.shape not in (shape, shape[1:]):
            turned = file.shape[-1:] == (2,) and 2 <= len(file.shape) - 1 <= 3
            hint = "; np.moveaxis(flow, -1, -3) puts its last axis there" if turned else ""
            raise _wrong(file, file.shape, shape, hint)
        return file.numbers().reshape(-1, *shape[1:])
    if file.kind == "exr" or (file.kind == "picture" and file.white != 65535):
        raise ValueError(
            f"{file.name} is no picture of a flow: KITTI's are PNG with 16 bits a channel; else "
            "save .npy, .flo or .pfm"
        )
    if file.kind != "flo" and file.shape[2:] != (3,):
        channels = file.shape[2] if len(file.shape) > 2 else 1
        raise ValueError(
            f"{file.name} has {channels} channels; a flow has three (dx, dy and, in a KITTI "
            "picture, whether it is known)"
        )
    if file.shape[:2] != shape[2:]:
        raise _wrong(file, (2, *file.shape[:2]), shape)
    flow, known = _two_channels(file)
    if not known.any():
        raise ValueError(f"{file.name} knows no flow at any pixel")
    if not known.all():
        share = 100 * (1 - float(known.mean()))
        logger.warning(
            "%s: flow unknown at %.1f %% of pixels, filled from around", file.name, share
        )
        flow = fill_gaps(np.where(known[..., None], flow, 0.0), known)
    flow = finite(file.name, flow.astype(np.float32))
    return np.ascontiguousarray(flow.transpose(2, 0, 1))[None]


def _two_channels(file: ArrayFile) -> tuple[np.ndarray, np.ndarray]:
    """Return flow [H, W, 2] and where it is known [H, W], of a format with that in each pixel."""
    raw = file.raw()
    if file.kind == "flo":
        return raw, (np.abs(raw) < _UNKNOWN).all(-1)  # NaN is not known either
    if file.kind == "picture":  # (dx, dy) in 1/64 pixel about 2^15, and whether it is known
        return (raw[..., :2].astype(np.float32) - 32768) / 64, raw[..., 2] > 0
    if raw[..., 2].any():
        raise ValueError(f"{file.name} has a third channel that is not 0: it is no flow")
    return raw[..., :2], np.ones(raw.shape[:2], bool)


def _wrong(
    file: ArrayFile, got: tuple[int, ...], shape: tuple[int, ...], hint: str = ""
) -> ValueError:
    return ValueError(
        f"{file.name} has shape {got}, the job needs {shape} = [frames - 1, 2, height, width] or "
        f"{shape[1:]} for all frames{hint}"
    )
