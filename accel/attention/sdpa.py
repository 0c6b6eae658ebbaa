"""The seam to diffusers' attention: one replaced function, and hooks naming the calling module.

``torch.nn.functional.scaled_dot_product_attention`` is replaced once, reference-counted. Forward
hooks on a denoiser and on its attention modules set the number of the calling site; with no site
set the original runs, so text encoders, VAEs and pipelines that are not patched are untouched. This
sees every processor and every block that calls torch's attention, needs no copy of either, and
traces under ``torch.compile(fullgraph=True)``: a site's call is one opaque op
(``accel/attention/site.py``) whose decisions are taken at run time, so a changed precision does not
recompile.

Sites are followed per thread in eager code. Code under ``torch.compile`` uses one plain variable
instead, which Dynamo folds into the graph. There a site is named by a tensor that its module
carries: a tensor is an input of the graph where a number would be part of it, so the equal blocks
of a model share one graph (``compile_repeated_blocks``) instead of compiling each.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from accel.core.clean_copies import LABEL


class Caller(Protocol):
    """What stands behind a site's number."""

    def begin(self) -> None:
        """Note that a call of the module begins."""

    def done(self) -> None:
        """Note that a call of the module came to its end."""

    def keep(self, reason: str) -> None:
        """Note that a call went to the original function, and why."""

    def attend(self, *arguments: Any) -> Tensor:
        """Attention of one call: query, key, value, attn_mask, is_causal, scale, enable_gqa."""


_numbers = itertools.count()
_callers: dict[int, Any] = {}
_of_module: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_by_thread: dict[int, int] = {}
_traced: list[Tensor | None] = [None]
_key: int | None = None
_seam: Seam | None = None
_users = 0
_lock = threading.Lock()


def caller(number: int) -> Any:
    """Return the site of a number, None after it has been unpatched."""
    return _callers.get(number)


def _enter(number: int) -> int:
    """Make ``number`` the calling site of this thread; returns the one before."""
    thread = threading.get_ident()
    before = _by_thread.get(thread, -1)
    if number < 0:
        _by_thread.pop(thread, None)
    else:
        _by_thread[thread] = number
    return before


def _trace(label: Tensor | None) -> Tensor | None:
    """Return the same for the code that is being compiled."""
    before, _traced[0] = _traced[0], label
    return before


def _current() -> int:
    return _by_thread.get(threading.get_ident(), -1)


def hook(module: nn.Module, site: Caller, undo: ExitStack) -> None:
    """Make ``site`` the caller while ``module`` runs.

    What was set before comes back, also after an exception.
    """
    number = next(_numbers)
    stack: list[int] = []
    traced: list[Tensor | None] = []
    _callers[number] = site
    outer = _of_module.get(module, -1)  # of another patch, where two denoisers share the module
    _mark(module, number)
    known = weakref.ref(module)  # what is undone must not keep a dropped pipeline alive

    def before(module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            traced.append(_trace(getattr(module, LABEL)))
            return
        stack.append(_enter(number))
        site.begin()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            if traced:
                _trace(traced.pop())
        elif stack:
            _enter(stack.pop())
            if output is not None:  # as it is after an exception
                site.done()

    handles = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    )
    _share_key(module, handles[1])

    def remove() -> None:
        for handle in handles:
            handle.remove()
        _callers.pop(number, None)
        part = known()
        if part is not None and _of_module.get(part) == number:
            _mark(part, outer if outer in _callers else -1)

    undo.callback(remove)


def _mark(module: nn.Module, number: int) -> None:
    """Make ``number`` the site of a module; below 0 it has none."""
    if number < 0:
        del _of_module[module]
        delattr(module, LABEL)
        return
    _of_module[module] = number
    setattr(module, LABEL, torch.tensor(number, dtype=torch.int64, device="cpu"))


def _share_key(module: nn.Module, handle: RemovableHandle) -> None:
    """Keep every site's hook under one key, that of the first.

    Torch looks a hook that is always called up by its key, so under their own keys equal blocks
    would not share a compiled graph.
    """
    global _key
    _key = handle.id if _key is None else _key
    tables: tuple[dict[int, Any], ...] = (
        module._forward_hooks,
        module._forward_hooks_always_called,
    )
    for hooks in tables:
        hooks[_key] = hooks.pop(handle.id)
    handle.id = _key


def has_site(module: nn.Module) -> bool:
    """Return whether ``hook`` made this module a calling site."""
    return module in _of_module


@contextmanager
def calling(module: nn.Module) -> Iterator[None]:
    """Attention calls inside come from ``module``, though it is not called itself.

    Does nothing for a module that has no site.
    """
    number = _of_module.get(module)
    if number is None:
        yield
        return
    before = _enter(number)
    try:
        _callers[number].begin()
        yield
        _callers[number].done()
    finally:
        _enter(before)


@contextmanager
def unseen() -> Iterator[None]:
    """Attention calls inside are nobody's, also while something is compiled."""
    before, label = _enter(-1), _trace(None)
    try:
        yield
    finally:
        _enter(before)
        _trace(label)


def autocast(*arguments: Any) -> tuple[Any, ...]:
    """Return the arguments of torch's attention as its dispatcher casts them under autocast."""
    kind = arguments[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return arguments
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in arguments
    )


class Seam:
    """One replacement of torch's function: ``function`` stands in for ``original``.

    A dead one passes through, in case somebody else kept it.
    """

    def __init__(self, original: Callable[..., Tensor]) -> None:
        self.original = original
        self.alive = True

        def scaled_dot_product_attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            arguments = (query, key, value, attn_mask, is_causal, scale, enable_gqa)
            training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            plain = not self.alive or training or dropout_p > 0.0
            if torch.compiler.is_compiling():
                label = _traced[0]
                if not plain and label is not None:
                    out = torch.ops.accel.site_attention(*autocast(*arguments), label)
                    return _as_query(out, query)
            elif self.alive and (site := _callers.get(_current())) is not None:
                if not plain:
                    return site.attend(*arguments)
                site.keep("needs gradients" if training else "dropout")
            return original(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                is_causal=is_causal, scale=scale, enable_gqa=enable_gqa,
            )  # fmt: skip

        self.function = scaled_dot_product_attention


def _as_query(out: Tensor, query: Tensor) -> Tensor:
    """Return ``out`` [..., H, T, D] with heads behind tokens in memory where ``query`` has them so.

    Torch's attention does that, and models view its result accordingly.
    """
    swapped = not query.is_contiguous() and query.transpose(-3, -2).is_contiguous()
    return out.transpose(-3, -2).contiguous().transpose(-3, -2) if swapped else out


def original() -> Callable[..., Tensor]:
    """Return the function that would have run without us."""
    return F.scaled_dot_product_attention if _seam is None else _seam.original


def install() -> None:
    """Replace torch's function, once however often this is called."""
    global _seam, _users
    with _lock:
        if _users == 0:
            _seam = Seam(F.scaled_dot_product_attention)
            F.scaled_dot_product_attention = _seam.function
        _users += 1


def uninstall() -> None:
    """Give up one ``install``; the last one restores torch's function."""
    global _seam, _users
    with _lock:
        _users -= 1
        if _users > 0 or _seam is None:
            return
        _seam.alive = False
        # Somebody may have replaced the function after us and may hold ours: then theirs stays.
        if F.scaled_dot_product_attention is _seam.function:
            F.scaled_dot_product_attention = _seam.original
        _seam = None
