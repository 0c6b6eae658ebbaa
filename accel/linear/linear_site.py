"""The calls of one linear layer, decided at run time.

State of the technique: a site has the rules, guard and record of attention's sites. A call takes
the precision of the current step. It stays at full precision, with a reason, where it has few rows,
where its tensors are more than plain memory, and where that was measured to be slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.attention import policy
from accel.attention.call import finite
from accel.attention.check import Sample, spread
from accel.attention.guard import BY_PLAN, GuardedSite, failed
from accel.attention.site_record import Now
from accel.config import LinearConfig, LinearPrecision
from accel.core.autocast import autocasts
from accel.kernels import linear as kernels
from accel.kernels.attention_call import why_not_read
from accel.kernels.linear import Activation
from accel.kernels.packed_weight import Packed
from accel.linear import pays
from accel.linear.packed import PackedWeight

Forward = Callable[[Tensor], Tensor]
# Relative L1 error on sampled rows. Per token and channel, N(0, 1) inputs and weights of 1,536
# channels have 0.011 in INT8 and 0.037 in FP8; heavy tails cost several times as much.
LIMITS = {"int8": 0.1, "fp8": 0.15}


def needs_gradient(layer: nn.Linear, x: Tensor) -> bool:
    """Return whether autograd follows a call."""
    bias = layer.bias is not None and layer.bias.requires_grad
    followed = x.requires_grad or layer.weight.requires_grad or bias
    return torch.is_grad_enabled() and followed


@dataclass(frozen=True)
class Then:
    """What a layer's result goes into, and into nothing else: our name of it, and torch's code."""

    name: Activation
    exact: Forward


@dataclass(frozen=True)
class Product:
    """The product with a packed weight; called with [..., K] it returns [..., N]."""

    packed: Packed
    bias: Tensor | None
    then: Then | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run it, with what comes then."""
        name = None if self.then is None else self.then.name
        return kernels.run(x, self.packed, self.bias, name)

    @property
    def by(self) -> str:
        """The implementation: "cpu", "gpu" or "reference"."""
        return str(self.packed.impl).partition("-")[0]


@dataclass
class LinearSite(GuardedSite):
    """One linear layer.

    ``left`` says why the layer is left alone, "" if it is not. ``home``: where the weight was that
    we keep on the CPU. ``gains``: what was measured, by kind of call, and ``doubts``: why that is
    not kept for later runs, where it is not. ``routes``: why it is
    torch's, by kind of call, "" for ours. ``activated``: calls with the activation in one pass.
    """

    config: LinearConfig
    left: str = ""
    home: torch.device | None = None
    gains: dict[str, float] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    weight: PackedWeight = field(init=False)
    routes: dict[Hashable, str] = field(default_factory=dict)
    activated: int = 0

    def __post_init__(self) -> None:
        self.weight = PackedWeight(self.config)
        self._few = f"fewer than {self.config.min_rows} rows"
        self._small: torch.Size | None = None
        self._planned: dict[tuple[int | None, int | None], LinearPrecision] = {}
        self._later = policy.precisions_of(self.config, self.name) - {"full"}

    def call(
        self, layer: nn.Linear, forward: Forward, x: Tensor, then: Then | None = None
    ) -> Tensor:
        """Return the layer's result for ``x`` [..., K] as the plan wants it at this step.

        ``forward`` is what the layer itself would run; ``then`` is applied to the result.
        """
        if x.shape == self._small:
            self.record.kept[self._few] += 1
            return self._full(layer, forward, x, then)
        now = run, step = self.state.refresh(), self.state.step
        place = step, self.state.steps
        if (precision := self._planned.get(place)) is None:
            found = policy.precision_at(self.config, self.name, *place)
            precision = cast(LinearPrecision, found)  # the only ones that its rules may have
            self._planned[place] = precision
        if precision == "full":
            reason = BY_PLAN
            self._look_ahead(layer, x, now)
        else:
            reason = self._why_full(layer, x)
        if not reason and self.demoted_run == run:
            reason = f"demoted: {self.demoted_why}"
        ours: Product | None = None
        if not reason:
            try:
                ours, reason = self._prepare(layer, x, precision, now, then)
            except Exception as error:
                if self.config.impl != "auto":
                    raise
                reason = failed("packing", error)
                self.demote(reason, run)
        if ours is None:
            self.keep_at(reason, now)
            return self._full(layer, forward, x, then)
        return self._quantized(layer, forward, x, ours, precision, now)

    def _why_full(self, layer: nn.Linear, x: Tensor) -> str:
        """Return the reason why no kernel of ours takes this call, or ""."""
        weight, bias, config = layer.weight, layer.bias, self.config
        if needs_gradient(layer, x):
            return "needs gradients"
        if autocasts(x):
            return "under autocast"
        away = config.keep == "cpu" and weight.device != x.device and weight.dtype is x.dtype
        tensors = (x,) if away else (x, weight)
        if why := why_not_read(
            tensors if bias is None else (*tensors, bias), (weight,) if away else ()
        ):
            return why
        if not x.dim() or x.shape[-1] != weight.shape[1]:
            return "sizes that do not fit"
        if x.numel() // x.shape[-1] < config.min_rows:
            self._small = x.shape
            return self._few
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return "inside the capture of a CUDA graph"
        return ""

    def _look_ahead(self, layer: nn.Linear, x: Tensor, now: Now) -> None:
        """Measure, at a site's first call, what the plan has for later steps.

        So a layer that does not gain is free of its hook from then on. What fails here says so at
        the step that it is for.
        """
        later, self._later = self._later, set()
        if self.config.impl == "auto" and later and not self._why_full(layer, x):
            with suppress(Exception):
                for found in later:
                    precision = cast(LinearPrecision, found)  # the only ones its rules may have
                    self._why_torch(layer, x.reshape(-1, x.shape[-1]), precision, now)

    def never_pays(self) -> bool:
        """Return whether the layer was measured and lost, and note that it is left alone."""
        if not self.gains or self.record.ran or max(self.gains.values()) >= pays.MIN_GAIN:
            return False
        self.left = pays.why_not(max(self.gains.values()))
        return True

    def _prepare(
        self, layer: nn.Linear, x: Tensor, precision: LinearPrecision, now: Now, then: Then | None
    ) -> tuple[Product | None, str]:
        """Return the product with the packed weight, or None and why torch's is taken."""
        rows = x.reshape(-1, x.shape[-1])
        route = (x.shape, x.dtype, x.device, layer.weight.dtype, precision, torch.get_num_threads())
        why = self.routes.get(route)
        if why is None:
            why = self.routes[route] = self._why_torch(layer, rows, precision, now)
            if why and not self.record.ran:
                self.weight.clear()
        if why:
            return None, why
        packed = self.weight.find(layer.weight, rows, precision, now)
        ours = Product(packed, layer.bias, then)
        if self.config.keep == "cpu" and not layer.weight.is_cpu:
            self.home = layer.weight.device
            layer.weight.data = layer.weight.data.cpu()
            self.weight.moved(layer.weight)
        return ours, ""

    def _why_torch(
        self, layer: nn.Linear, rows: Tensor, precision: LinearPrecision, now: Now
    ) -> str:
        """Return why calls like this one are torch's, or ""; measures where that is not known.

        Raises RuntimeError where a named implementation cannot run them.
        """
        held = self.weight.held(precision, rows.device)  # its weight may be on the CPU
        weight = layer.weight.to(rows.device) if held is None else held
        why = kernels.why_not(rows, weight, precision, self.config.impl)
        if self.config.impl != "auto":
            if why:
                raise RuntimeError(f"{self.config.impl} cannot run this call: {why}")
            return ""
        if why:
            return str(why)
        name = pays.kind(rows, layer.weight.shape[0], precision, self.config)
        gained = pays.known(rows.device, name)
        if gained is None:
            plain, find = layer.weight.to(rows.device), self.weight.find

            def ours(part: Tensor) -> Tensor:  # with all that such a call costs
                self._why_full(layer, part)
                packed = find(layer.weight, part, precision, now)
                out = Product(packed, layer.bias)(part)
                finite(out)
                return out

            gained = pays.gain(
                rows, layer.weight.shape[0], name, ours,
                lambda part: F.linear(part, plain, layer.bias),
            )  # fmt: skip
        self.gains[name] = gained
        if doubt := pays.doubt(rows.device, name):
            self.doubts[name] = doubt
        return pays.why_not(gained)

    def _quantized(
        self, layer: nn.Linear, forward: Forward, x: Tensor, ours: Product, precision: str, now: Now
    ) -> Tensor:
        """Run a call with the packed weight; at full precision if there is no usable result."""
        self.enter_run(now[0])
        try:
            start = time.perf_counter()
            out = ours(x)
            self.record.seconds += time.perf_counter() - start
            fine, later = self.usable(out, precision)
            why = "" if fine else "result not finite"
            count = None if why else self.rows_due(precision, now[1])
            if count:
                why = self._compare(layer, x, out, ours.then, precision, count, later)
        except Exception as error:  # whatever fails in a kernel of ours, torch computes the call
            why = failed(f"{precision} by {ours.by}", error)
        if not why:
            self.record.ran[(precision, ours.by)] += 1
            self.activated += ours.then is not None
            self.record.at(now, precision)
            return out
        exact = self._full(layer, forward, x, ours.then)
        if finite(exact):
            self.demote(why, now[0])
        else:
            why = f"{why}, nor is torch's"
        self.record.recomputed[why] += 1
        self.record.at(now, "full")
        return exact

    def _compare(
        self, layer: nn.Linear, x: Tensor, out: Tensor, then: Then | None, precision: str,
        count: int, later: bool,
    ) -> str:  # fmt: skip
        """Compare rows with full precision; return why they are too far off, or ""."""
        rows, mine = x.reshape(-1, x.shape[-1]), out.reshape(1, -1, out.shape[-1])
        index = spread(len(rows), count, x.device)
        exact = F.linear(rows[index], layer.weight.to(x.device), layer.bias)
        exact = exact if then is None else then.exact(exact)
        values = Sample(index, exact[None]).values(mine)
        most = LIMITS[precision] if self.config.max_error is None else self.config.max_error
        return self.compare(precision, values, most, later)

    def _full(self, layer: nn.Linear, forward: Forward, x: Tensor, then: Then | None) -> Tensor:
        """Return what the layer gives by itself, also where we keep its weight on the CPU."""
        if self.home is None or layer.weight.device == x.device:
            out = forward(x)
        else:
            out = F.linear(x, layer.weight.to(x.device), layer.bias)
        return out if then is None else then.exact(out)

    def bring_home(self, layer: nn.Linear) -> None:
        """Bring the weight back from the CPU, and drop the packed one."""
        self.weight.clear()
        if self.home is not None:
            layer.weight.data = layer.weight.data.to(self.home)
            self.home = None
