"""Flow files: numpy arrays and Middlebury .flo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FLO = np.float32(202021.25)


def read_flow(path: str, shape: tuple[int, int, int, int]) -> Tensor:
    """Read flow of ``shape`` = [frames - 1, 2, height, width].

    From a .npy file, a .flo file (the same for all frames) or a folder of .flo files in name
    order. Raises ValueError naming the file.
    """
    source = Path(path)
    if source.is_dir():
        files = sorted(source.glob("*.flo"))
        if len(files) != shape[0]:
            raise ValueError(f"flow folder {path} has {len(files)} .flo files, needs {shape[0]}")
        flow = np.stack([read_flo(file) for file in files])
    elif not source.is_file():
        raise ValueError(f"flow file {path} does not exist")
    elif source.suffix == ".flo":
        flow = np.broadcast_to(read_flo(source), (shape[0], *read_flo(source).shape))
    else:
        try:
            flow = np.load(path, allow_pickle=False).astype(np.float32)
        except (ValueError, TypeError, EOFError) as error:
            raise ValueError(
                f"flow file {path} is not a numpy array of numbers: {error}"
            ) from error
    if flow.shape != shape:
        raise ValueError(
            f"flow file {path} has shape {flow.shape}, the job needs {shape} = "
            "[frames - 1, 2, height, width]"
        )
    return torch.from_numpy(np.ascontiguousarray(flow, np.float32))


def read_flo(path: Path) -> np.ndarray:
    """Return one Middlebury flow, float32 [2, H, W] pixels.

    Raises ValueError for another kind of file.
    """
    data = path.read_bytes()
    head = np.frombuffer(data[:12].ljust(12, b"\0"), "<i4")
    width, height = int(head[1]), int(head[2])
    if head[:1].view("<f4")[0] != _FLO or len(data) != 12 + 8 * width * height:
        raise ValueError(f"{path} is not a Middlebury .flo file, or is incomplete")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1)
