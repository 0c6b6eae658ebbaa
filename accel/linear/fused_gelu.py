"""GELU in the pass of the 8-bit layer before it, which saves one pass over the widest tensors.

Hook of diffusers' GELU modules: a linear layer ``proj``, whose result goes nowhere else, and GELU.
They run apart, as without this hook, where something else stands on the layer (an adapter, a hook),
in compiled graphs, where the compiler has its own kernel for GELU, and with a plan that slices: a
slice calls the layer and GELU one after the other, and is to have the bits of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.diffusers_bridge import innermost
from accel.core.stand_in import StandIn, put_in_place, standing
from accel.core.structure import gelu_form
from accel.kernels.linear import Activation
from accel.linear.layer_call import Layer
from accel.linear.linear_site import Then

NAMES: dict[str, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}


class FusedGelu(StandIn):
    """Replaces the forward of one GELU module."""

    def __init__(self, module: Any, forward: Callable[..., Any], layer: Layer) -> None:
        super().__init__(forward)
        self._module, self._layer = module, layer
        self._then = Then(NAMES[gelu_form(module)], module.gelu)

    def placed(self, holder: Any, name: str) -> Any:
        """Return a method where that is the module's own forward, so that graphs are shared."""
        return self.run if holder is self._module and name == "forward" else self

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return GELU of the layer's result [..., N] for ``hidden_states`` [..., K]."""
        return self.run(hidden_states)

    def run(self, hidden_states: Tensor) -> Tensor:
        """Return the same."""
        if torch.compiler.is_compiling() or not (self.alive and self._alone()):
            out: Tensor = self.forward(hidden_states)
            return out
        return self._layer.eager(hidden_states, self._then)

    def _alone(self) -> bool:
        """Return whether our layer is all that stands between the input and GELU."""
        layer = self._module.proj
        ours = standing(vars(layer).get("forward")) is self._layer and self._layer.alive
        hooked = layer._forward_pre_hooks or layer._forward_hooks
        bare = not hooked and innermost(layer) == (layer, "forward")
        return ours and bare and "gelu" not in vars(self._module)


def fuse_gelu(denoiser: nn.Module, layers: dict[int, Layer], undo: ExitStack) -> None:
    """Let the GELU after those layers run with them; ``layers`` maps the id of a module to its own.

    What has to be undone is put on ``undo`` as it is done.
    """
    for part in denoiser.modules():
        if gelu_form(part) and (layer := layers.get(id(part.proj))) is not None:
            holder, slot = innermost(part)
            hook = FusedGelu(part, getattr(holder, slot), layer)
            undo.callback(put_in_place(holder, slot, hook))
