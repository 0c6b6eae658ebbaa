"""A process that has diffusers loaded and simulates, so that a dry run need not."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


class Helper:
    """A process that has diffusers loaded and answers requests.

    ``work`` answers one; it is a function of a module.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: Any) -> Any:
        """Return what ``work(request)`` gives in the process, or a text that it ended."""
        try:
            self._connection.send(request)
            return self._connection.recv()
        except (EOFError, OSError):
            return "the process that simulates it ended"

    def close(self) -> None:
        """End the process, whatever it works on."""
        self._process.kill()
        self._process.join(10)
        self._connection.close()


class Aside:
    """Work that needs diffusers: done here where it is loaded, else in one helper process.

    ``close`` ends the process, if there is one.
    """

    def __init__(self) -> None:
        self._helper: Helper | None = None

    def ask(self, work: Callable[..., Any], *question: Any) -> Any:
        """Return ``work(*question)``, or a text that the process ended."""
        if "diffusers" in sys.modules:  # the memory is spent already
            return work(*question)
        self._helper = self._helper or Helper(_answer)
        return self._helper.ask((work, question))

    def close(self) -> None:
        """End the helper process, if there is one."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()


def _answer(asked: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    work, question = asked
    return work(*question)


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Run the helper process: requests in, answers out, until the other side is gone."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            connection.send(work(connection.recv()))
