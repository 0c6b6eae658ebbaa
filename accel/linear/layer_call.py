"""Hook of 8-bit layers: what stands in the place of a layer's forward, and its op in graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.autocast import autocasts
from accel.core.graph_labels import label, labeled
from accel.core.stand_in import StandIn
from accel.linear.linear_site import LinearSite, Then, needs_gradient


class Layer(StandIn):
    """Replaces one linear layer's forward.

    ``restore`` takes it out again, which a layer that does not pay does by itself.
    """

    def __init__(self, module: nn.Linear, forward: Callable[..., Any], site: LinearSite) -> None:
        super().__init__(forward)
        self.label = label(self)
        self.restore: Callable[[], None] | None = None
        self._module, self._site, self._features = module, site, module.out_features

    def placed(self, holder: Any, name: str) -> Any:
        """Return a method where that is the layer's own forward, so that graphs are shared."""
        return self.run if holder is self._module and name == "forward" else self

    def __call__(self, input: Tensor) -> Tensor:
        """Return the layer's result [..., N] for ``input`` [..., K]."""
        return self.run(input)

    def run(self, input: Tensor) -> Tensor:
        """Return the same."""
        if torch.compiler.is_compiling():
            if not self.alive or autocasts(input) or needs_gradient(self._module, input):
                return self.forward(input)
            return torch.ops.accel.site_linear(input, self.label, self._features)
        if not self.alive:
            return self.forward(input)
        return self.eager(input)

    def eager(self, input: Tensor, then: Then | None = None) -> Tensor:
        """Run a call outside of compiled graphs, and ``then`` on its result."""
        out = self._site.call(self._module, self.forward, input, then)
        if self._site.never_pays() and self.restore is not None:
            self.restore()
        return out

    def opaque(self, input: Tensor) -> Tensor:
        """Run a call, also one of a compiled graph."""
        if not self.alive:
            return self.forward(input)
        return self._site.call(self._module, self.forward, input)


@torch.library.custom_op("accel::site_linear", mutates_args=())
def _op(x: Tensor, name: Tensor, features: int) -> Tensor:
    """Run a layer's call inside a compiled graph.

    Raises RuntimeError after unpatch, because then the graph has to be compiled again.
    """
    layer: Layer | None = labeled(name)
    if layer is None:
        raise RuntimeError(
            "this graph was compiled while the model was patched with 8-bit layers, and the patch "
            "is gone; compile the model again"
        )
    return layer.opaque(x).contiguous()


@_op.register_fake
def _(x: Tensor, name: Tensor, features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], features)
