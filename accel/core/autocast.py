"""Whether torch casts what is computed: slices would round otherwise than the whole."""

from __future__ import annotations

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Return whether ``torch.autocast`` is on for the device of ``x``."""
    return torch.is_autocast_enabled("cpu" if x.is_meta else x.device.type)
