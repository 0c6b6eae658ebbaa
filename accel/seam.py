"""The seam to diffusers' attention: one replaced function, and hooks naming the calling module.

``torch.nn.functional.scaled_dot_product_attention`` is replaced once, reference-counted. Forward
hooks on a denoiser and on its attention modules set the number of the calling site; with no site
set the original runs, so text encoders, VAEs and pipelines that are not patched are untouched. This
sees every processor and every block that calls torch's attention, needs no copy of either, and
traces under ``torch.compile(fullgraph=True)``: a site's call is one opaque op
(``accel/attention.py``) whose decisions are taken at run time, so a changed precision does not
recompile.

Sites are followed per thread in eager code. Code under ``torch.compile`` uses one plain variable
instead, which Dynamo folds into the graph.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Undo = Callable[[], None]


class Caller(Protocol):
    """What stands behind a site's number."""

    def enter(self) -> None:
        """The module was called."""

    def keep(self, reason: str) -> None:
        """A call went to the original function, and why."""

    def attend(self, *arguments: Any) -> Tensor:
        """Attention of one call: query, key, value, attn_mask, is_causal, scale, enable_gqa."""


_numbers = itertools.count()
_callers: dict[int, Any] = {}
_of_module: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_by_thread: dict[int, int] = {}
_traced = [-1]
_seam: Seam | None = None
_users = 0
_lock = threading.Lock()


def caller(number: int) -> Any:
    """The site of a number, None after it has been unpatched."""
    return _callers.get(number)


def _enter(number: int) -> int:
    """Make ``number`` the calling site of this thread; returns the one before."""
    if torch.compiler.is_compiling():
        before, _traced[0] = _traced[0], number
        return before
    thread = threading.get_ident()
    before = _by_thread.get(thread, -1)
    if number < 0:
        _by_thread.pop(thread, None)
    else:
        _by_thread[thread] = number
    return before


def _current() -> int:
    if torch.compiler.is_compiling():
        return _traced[0]
    return _by_thread.get(threading.get_ident(), _traced[0])


def unwind(undo: list[Undo]) -> None:
    """Undo everything, last first."""
    while undo:
        undo.pop()()


def hook(module: nn.Module, site: Caller, undo: list[Undo]) -> None:
    """Make ``site`` the caller while ``module`` runs; what was set before comes back, also after an
    exception.
    """
    number = next(_numbers)
    stack: list[int] = []
    _callers[number] = site
    _of_module[module] = number
    known = weakref.ref(module)  # what is undone must not keep a dropped pipeline alive

    def before(module: nn.Module, args: Any) -> None:
        stack.append(_enter(number))
        if not torch.compiler.is_compiling():
            site.enter()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if stack:
            _enter(stack.pop())

    handles = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()
        _callers.pop(number, None)
        part = known()
        if part is not None and _of_module.get(part) == number:
            del _of_module[part]

    undo.append(remove)


def has_site(module: nn.Module) -> bool:
    """Whether ``hook`` made this module a calling site."""
    return module in _of_module


@contextmanager
def calling(module: nn.Module) -> Iterator[None]:
    """Attention calls inside come from ``module``, though it is not called itself. Does nothing for
    a module that has no site.
    """
    number = _of_module.get(module)
    if number is None:
        yield
        return
    before = _enter(number)
    try:
        if not torch.compiler.is_compiling():
            _callers[number].enter()
        yield
    finally:
        _enter(before)


class Seam:
    """One replacement of torch's function: ``function`` stands in for ``original``. A dead one
    passes through, in case somebody else kept it.
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
            number = _current() if self.alive else -1
            training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            plain = number < 0 or training or dropout_p > 0.0
            if torch.compiler.is_compiling():
                if not plain:
                    return torch.ops.accel.site_attention(*arguments, number)
            elif (site := _callers.get(number)) is not None:
                if not plain:
                    return site.attend(*arguments)
                site.keep("needs gradients" if training else "dropout")
            return original(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p,
                is_causal=is_causal, scale=scale, enable_gqa=enable_gqa,
            )  # fmt: skip

        self.function = scaled_dot_product_attention


def original() -> Callable[..., Tensor]:
    """The function that would have run without us."""
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
