"""diffusers' registry of attention backends, and which one a processor was told to use.

With ``diffusers_bridge.py`` the only place for private names of diffusers. A backend that a later
release adds, or that somebody registers, is found here without a change.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from accel.core.copied_state import copied_with
from accel.core.described import first_line
from accel.core.diffusers_backends import rings

NATIVE = "native"  # the backend that calls torch's attention, which accel stands before
_SLOT, _PARALLEL = "_attention_backend", "_parallel_config"


@dataclass(frozen=True)
class Backend:
    """One entry of the registry.

    ``function`` takes tensors [B, T, H, D] and, by name, those of the further ``arguments`` that it
    has. ``checks`` raise where a call does not fit. ``remote``: its kernel is fetched from a hub.
    """

    name: str
    function: Callable[..., Any]
    arguments: frozenset[str]
    checks: tuple[Callable[..., None], ...]
    remote: bool

    def missing(self) -> str:
        """Return what is not installed, as diffusers says it, or ""."""
        from diffusers.models import attention_dispatch as dispatch

        try:
            dispatch._check_attention_backend_requirements(dispatch.AttentionBackendName(self.name))
        except (RuntimeError, ValueError) as error:
            return first_line(error)
        return ""

    def fetch(self) -> None:
        """Load the kernel of a remote backend, from the hub if it is not there yet."""
        from diffusers.models import attention_dispatch as dispatch

        name = dispatch.AttentionBackendName(self.name)
        dispatch._maybe_download_kernel_for_backend(name)

    def fetched(self) -> bool:
        """Return whether a remote backend's kernel is loaded; others need none."""
        from diffusers.models import attention_dispatch as dispatch

        kernels = dispatch._HUB_KERNELS_REGISTRY
        config = kernels.get(dispatch.AttentionBackendName(self.name))
        return config is None or config.kernel_fn is not None


def backends() -> list[str]:
    """Return the names of all registered backends, in the order of the registry."""
    return [_text(key) for key in _registry()._backends]


def backend(name: str) -> Backend | None:
    """Return a registered backend, None if there is none of that name."""
    from diffusers.models import attention_dispatch as dispatch

    registry = _registry()
    try:
        key = dispatch.AttentionBackendName(name)
        function = registry._backends[key]
    except (ValueError, KeyError):
        return None
    return Backend(
        name,
        function,
        frozenset(registry._supported_arg_names[key]),
        tuple(registry._constraints.get(key, ())),
        key in dispatch._HUB_KERNELS_REGISTRY,
    )


def active() -> str:
    """Return the backend of processors that were told none."""
    return _text(_registry()._active_backend)


@cache
def _registry() -> Any:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry


class Chosen:
    """The backend that the user chose for one attention module, while its processor calls torch's.

    A processor that has one is pointed at the native backend, so that its calls reach accel; what
    the user chooses afterwards is noted at the next call. ``name`` is that choice, and ``note``
    says why it was left alone, where it was.
    """

    def __init__(self, module: nn.Module, undo: ExitStack) -> None:
        self._module = weakref.ref(module)
        self._processor: Callable[[], Any] = lambda: None
        self._own: tuple[bool, Any] = False, None  # whether the processor had one, and which
        self._undo = undo
        self._seen: tuple[Any, ...] = (_SLOT,) * 4  # nothing yet
        self.name = NATIVE
        self.note = ""
        self.follow()
        undo.callback(self._restore)

    def follow(self) -> None:
        """Take note of what the user chose since the last call."""
        processor = getattr(self._module(), "processor", None)
        told, parallel = getattr(processor, _SLOT, None), getattr(processor, _PARALLEL, None)
        active = _registry()._active_backend
        if all(map(operator.is_, (processor, told, parallel, active), self._seen)):
            return
        self._look(processor)
        self._seen = processor, getattr(processor, _SLOT, None), parallel, active

    def _look(self, processor: Any) -> None:
        if processor is not self._processor():
            self._restore()
            self._processor = weakref.ref(processor) if hasattr(processor, _SLOT) else lambda: None
        if not hasattr(processor, _SLOT):
            self.name, self.note = NATIVE, ""  # it calls torch itself, whatever was chosen
            return
        chosen = getattr(processor, _SLOT)
        pointed = _pointed(processor)
        if not pointed:
            self._own = _SLOT in vars(processor), chosen
        own = self._own[1]
        self.name = active() if own is None else _text(own)
        self.note = _why_left(processor, self.name)
        if self.name != NATIVE and not self.note and not pointed:
            copied_with(processor, _SLOT, self._undo)
            setattr(processor, _SLOT, NATIVE)

    def _restore(self) -> None:
        processor = self._processor()
        if processor is None or not _pointed(processor):
            return
        had, own = self._own
        if had:
            setattr(processor, _SLOT, own)
        else:
            delattr(processor, _SLOT)


def _pointed(processor: Any) -> bool:
    """Return whether it was accel that told a processor to use the native backend.

    Accel sets text, diffusers members of an enumeration.
    """
    chosen = vars(processor).get(_SLOT)
    return type(chosen) is str and chosen == NATIVE


def _text(backend: Any) -> str:
    return str(getattr(backend, "value", backend))


def _why_left(processor: Any, name: str) -> str:
    """Return why a processor's backend ``name`` stays, or ""."""
    supported = getattr(processor, "_SUPPORTED_BACKENDS", (NATIVE,))
    if NATIVE not in supported or getattr(type(processor), _SLOT) is not None:
        return f"its processor needs diffusers' backend {name!r}"
    if name != NATIVE and rings(getattr(processor, _PARALLEL, None)):
        return f"diffusers' backend {name!r} computes its attention, in a ring, outside this patch"
    return ""


def call_arguments(
    backend: Backend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> dict[str, Any]:
    """Return a call of tensors [B, H, T, D] as ``backend`` takes it.

    Raises:
        ValueError: An argument that the backend does not have and that changes the result.
    """
    if attn_mask is not None and attn_mask.dim() == 2:
        attn_mask = attn_mask[None, None]  # [Tq, Tk] here; two sizes are [B, Tk] to backends
    width = query.shape[-1] ** -0.5
    usual = scale is None or abs(scale - width) <= 1e-6 * width
    given = {
        "attn_mask": (attn_mask, attn_mask is not None),
        "is_causal": (is_causal, is_causal),
        "scale": (scale, not usual),
        "enable_gqa": (enable_gqa, False),  # what has no such argument shares heads by itself
    }
    for name, (_, matters) in given.items():
        if matters and name not in backend.arguments:
            raise ValueError(f"it has no argument {name}")
    tensors = {"query": query, "key": key, "value": value}
    arguments: dict[str, Any] = {name: x.transpose(1, 2) for name, x in tensors.items()}
    return arguments | {n: x for n, (x, _) in given.items() if n in backend.arguments}
