"""ColorVideoVDP: how visible the difference of two videos is, in just-objectionable differences.

Mantiuk et al., SIGGRAPH 2024; computed by their package ``cvvdp`` on a display of theirs. It asks
torchvision for a Gaussian blur and, in parts that are not used here, for a small network. Where
torchvision cannot be imported (its wheels refuse another build of torch), ``_Blur`` is what the
package sees in its place, while it is imported and never after.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accel.core.extras import how_to_install
from accel.core.quality.pixel_metrics import CannotMeasure, check_pair, check_size
from accel.core.quality.temporal_metrics import FPS

DISPLAY = "standard_4k"  # 30 inches, seen from 0.75 m, 200 cd/m2: the package's default
LEAST = 16  # pixels of the smaller side


def why_not_jod() -> str:
    """Return why JOD cannot be measured here, or ""."""
    try:
        found = find_spec("pycvvdp")
    except ValueError:  # a module without a spec, as a stand-in has
        found = None
    if found is None:
        return f"ColorVideoVDP needs its package: {how_to_install('cvvdp')}"
    return ""


def jod(reference: np.ndarray, frames: np.ndarray, fps: float = FPS) -> float:
    """Return ColorVideoVDP's quality of a video beside its reference: 10 JOD where none differs.

    One JOD less means that 75 % of people prefer the reference.

    Args:
        reference: uint8 [F, H, W, 3], sRGB.
        frames: Another video of the same shape.
        fps: Frames per second.

    Raises:
        ValueError: Another dtype, different shapes, frames smaller than 16 x 16, or the package
            cvvdp is missing; the message says how to have it.
    """
    check_pair(reference, frames)
    check_size("ColorVideoVDP", frames, LEAST)
    if reason := why_not_jod():
        raise CannotMeasure(reason)
    with torch.no_grad():
        quality, _ = _metric().predict(
            frames, reference, dim_order="FHWC", frames_per_second=fps if len(frames) > 1 else 0
        )
    return float(quality)


@cache
def _metric() -> Any:
    with _torchvision():
        import pycvvdp
    return pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=torch.device("cpu"))


@contextmanager
def _torchvision() -> Iterator[None]:
    """Put a stand-in in torchvision's place while it lasts, if there is none to import."""
    before = _loaded()
    try:
        import torchvision.transforms  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: made for another build of torch
        pass
    else:
        yield
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.ops")
    stand_ins = {name: ModuleType(name) for name in names}
    stand_ins["torchvision.transforms"].GaussianBlur = _Blur  # type: ignore[attr-defined]
    stand_ins["torchvision.ops"].MLP = _NoNetwork  # type: ignore[attr-defined]
    try:
        _replace(stand_ins)
        yield
    finally:
        _replace(before)


def _loaded() -> dict[str, ModuleType]:
    return {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "torchvision"}


def _replace(modules: dict[str, ModuleType]) -> None:
    for name in _loaded():
        del sys.modules[name]
    sys.modules.update(modules)


class _Blur(torch.nn.Module):
    """A Gaussian blur of ``size`` x ``size`` pixels, edges mirrored, for [..., C, H, W]."""

    def __init__(self, size: int, sigma: float) -> None:
        super().__init__()
        self.size, self.sigma = size, sigma

    def forward(self, image: Tensor) -> Tensor:
        """Return the blurred image."""
        half = (self.size - 1) / 2
        places = torch.linspace(-half, half, self.size, dtype=image.dtype, device=image.device)
        line = torch.exp(-0.5 * (places / self.sigma) ** 2)
        line = line / line.sum()
        flat = image.reshape(-1, 1, *image.shape[-2:])
        flat = F.pad(flat, [self.size // 2] * 4, mode="reflect")
        flat = F.conv2d(F.conv2d(flat, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
        return flat.reshape(image.shape)


class _NoNetwork:
    """In place of a network that only metrics use which are not measured here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError("this metric of cvvdp needs torchvision")
