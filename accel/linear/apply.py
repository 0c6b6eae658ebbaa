"""Apply 8-bit layers to a denoiser."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from accel.config import LinearConfig
from accel.core.diffusers_bridge import innermost
from accel.core.run_state import RunState
from accel.core.stand_in import put_in_place
from accel.linear.fused_gelu import fuse_gelu
from accel.linear.layer_call import Layer
from accel.linear.linear_site import LinearSite


def apply_linear(
    denoiser: nn.Module,
    found: dict[str, nn.Linear],
    left: dict[str, str],
    config: LinearConfig,
    state: RunState,
    undo: ExitStack,
    make: Callable[..., LinearSite] = LinearSite,
    *,
    fuse: bool = True,
) -> dict[str, LinearSite]:
    """Make every linear layer of a denoiser's blocks a site, and return them by name.

    ``found`` and ``left`` are what ``linear_layers`` gave: those that are left alone are sites too.
    Each site is made by ``make(name, config, state, left=...)``. A layer's forward is replaced
    below every hook it has. With ``fuse`` a GELU that follows a layer runs in its pass. What has to
    be undone is put on ``undo`` as it is done, so a failure midway can be unwound.
    """
    sites = {path: make(path, config, state, left=why) for path, why in left.items()}
    layers: dict[int, Layer] = {}
    for path, module in found.items():
        site = sites[path] = make(path, config, state)
        holder, slot = innermost(module)
        layer = layers[id(module)] = Layer(module, getattr(holder, slot), site)
        undo.callback(_bring_home(module, denoiser, site))
        layer.restore = put_in_place(holder, slot, layer)
        undo.callback(layer.restore)
    if fuse:
        fuse_gelu(denoiser, layers, undo)
    return sites


def _bring_home(module: nn.Linear, denoiser: nn.Module, site: LinearSite) -> Callable[[], None]:
    """Return a function that brings a weight back to where the rest of the denoiser is."""
    known, model = weakref.ref(module), weakref.ref(denoiser)

    def restore() -> None:
        place, rest = known(), model()
        if place is not None and site.home is not None:
            site.home = site.home if rest is None else _device(rest, site.home)
            site.bring_home(place)
        site.weight.clear()

    return restore


def _device(denoiser: nn.Module, home: torch.device) -> torch.device:
    """Return where most of a denoiser is: ``home``, or the CPU if it was moved there since."""
    devices = [x.device for x in denoiser.buffers()]
    for part in denoiser.modules():
        if not isinstance(part, nn.Linear):
            devices += [x.device for x in part.parameters(recurse=False)]
    return home if home in devices or not devices else devices[0]
