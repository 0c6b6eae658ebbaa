"""LPIPS: distance in the features of a network, where its weights are at hand.

Zhang et al., CVPR 2018, version 0.1 with AlexNet. Nothing is downloaded. The network's weights are
torchvision's ``alexnet-owt-7be5be79.pth``, given by the user; the linear layer's come with the
packages ``torchmetrics`` and ``lpips``, or are given too.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accel.core.extras import how_to_install
from accel.core.quality.pixel_metrics import CannotMeasure, check_pair, check_size

BACKBONE = (
    "alexnet-owt-7be5be79.pth"  # https://download.pytorch.org/models/alexnet-owt-7be5be79.pth
)
LEAST = 31  # pixels of the smaller side that the network's strides leave something of
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in -1 to 1
_CHANNELS = (64, 192, 384, 256, 256)


class _Layer(NamedTuple):
    """A convolution of the network: its number in torchvision's file, stride, padding."""

    number: int
    stride: int
    padding: int
    pooled: bool  # whether 3 x 3 maxima, every second, come before it


_LAYERS = (
    _Layer(0, 4, 2, False), _Layer(3, 1, 2, True), _Layer(6, 1, 1, True), _Layer(8, 1, 1, False),
    _Layer(10, 1, 1, False),
)  # fmt: skip


class Lpips:
    """LPIPS with AlexNet: ``Lpips(backbone)(a, b)`` for two videos uint8 [F, H, W, 3].

    Args:
        backbone: torchvision's weights of AlexNet, a ``.pth`` or ``.safetensors`` file.
        linear: LPIPS's own weights (``alex.pth``, version 0.1); by default those of an installed
            package.

    Raises:
        ValueError: A file is missing, is no file of weights, or holds another network's.
    """

    def __init__(self, backbone: str | Path, linear: str | Path | None = None) -> None:
        network, heads = _weights(Path(backbone)), _weights(_linear(linear))
        self.convolutions = [
            (
                _named(network, f"features.{layer.number}.weight", backbone),
                _named(network, f"features.{layer.number}.bias", backbone),
            )
            for layer in _LAYERS
        ]
        for (weight, _), channels in zip(self.convolutions, _CHANNELS, strict=True):
            if weight.shape[0] != channels:
                raise ValueError(f"{backbone} holds another network's weights than AlexNet's")
        self.heads = [
            _named(heads, f"lin{k}.model.1.weight", linear or "the package's weights of LPIPS")
            for k in range(len(_LAYERS))
        ]

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """Return the distance of two videos uint8 [F, H, W, 3], the mean over frames; 0 is equal.

        Raises ValueError for another dtype, different shapes, or frames smaller than 31 x 31.
        """
        check_pair(a, b)
        check_size("LPIPS", a, LEAST)
        with torch.no_grad():
            return float(np.mean([self._frame(x, y) for x, y in zip(a, b, strict=True)]))

    def _frame(self, a: np.ndarray, b: np.ndarray) -> float:
        pixels = torch.from_numpy(np.stack([a, b])).float().permute(0, 3, 1, 2) / 127.5 - 1
        mean = torch.tensor(MEAN, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
        spread = torch.tensor(SPREAD, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
        x, total = (pixels - mean) / spread, 0.0
        for layer, (weight, bias), head in zip(_LAYERS, self.convolutions, self.heads, strict=True):
            x = F.max_pool2d(x, 3, 2) if layer.pooled else x
            x = F.relu(F.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding))
            unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
            total += float(F.conv2d((unit[:1] - unit[1:]) ** 2, head).mean())
        return total


def why_not_lpips() -> str:
    """Return what LPIPS needs of the user."""
    return (
        f"LPIPS needs the weights of AlexNet, torchvision's file {BACKBONE}: "
        "--lpips-weights FILE, or accel.quality.lpips(FILE)"
    )


def _linear(given: str | Path | None) -> Path:
    """Return the file of LPIPS's own weights."""
    if given is not None:
        return Path(given)
    places = (("torchmetrics", "functional/image/lpips_models"), ("lpips", "weights/v0.1"))
    for package, folder in places:
        found = find_spec(package)
        for root in (found.submodule_search_locations or []) if found else []:
            file = Path(root) / folder / "alex.pth"
            if file.is_file():
                return file
    raise CannotMeasure(
        "LPIPS needs the weights of its linear layer, which torchmetrics has: "
        f"{how_to_install('torchmetrics')}"
    )


def _weights(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name; no code in it is run."""
    if not path.is_file():
        raise ValueError(f"LPIPS: no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader of weights raises for what is none
        raise ValueError(f"LPIPS: {path} cannot be read as weights: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"LPIPS: {path} holds no tensors by name")
    return found


def _named(weights: dict[str, Tensor], name: str, where: str | Path) -> Tensor:
    if not isinstance(weights.get(name), Tensor):
        raise ValueError(f"LPIPS: {where} has no tensor {name}; it is another file's")
    return weights[name].float()
