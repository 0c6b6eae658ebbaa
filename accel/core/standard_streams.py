"""Standard output and error that never end the work.

A reader that goes away (``| head``), a full disk, an encoding without the characters of a prompt:
what a command tells about its work is no reason to stop it. Characters that a stream has not are
written as escapes such as ``\\u96f2``; once a stream takes nothing more, the rest is dropped.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import Any, TextIO, cast

BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
_PLAIN = str.maketrans({"█": "#", "×": "x"})


def encodable(text: str, encoding: str = "utf-8") -> str:
    """Return ``text`` with escapes for what an encoding has not; UTF-8 has no lone surrogates."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


class StandardStream:
    """Stands in for a stream and takes everything; ``lost`` is why the rest was dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what the stream takes of a text, and return its length."""
        if self.lost is None:
            with suppress(RuntimeError):  # a signal handler interrupted a write
                try:
                    encoding = getattr(self._stream, "encoding", None) or "utf-8"
                    self._stream.write(encodable(text, encoding))
                except (OSError, ValueError) as error:  # ValueError: it was closed
                    self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self.lost is None:
            with suppress(RuntimeError):
                try:
                    self._stream.flush()
                except (OSError, ValueError) as error:
                    self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Let what Python still holds back, and writes at its end, go nowhere."""
        self.lost = error
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


class StandardStreams:
    """Puts a ``StandardStream`` in place of ``sys.stdout`` and ``sys.stderr`` inside a block."""

    def __enter__(self) -> StandardStreams:
        """Stand in; a stream that the program was started without goes nowhere."""
        self._undo = ExitStack()
        streams = [sys.stdout, sys.stderr]
        for place, stream in enumerate(streams):
            if stream is None:
                streams[place] = self._undo.enter_context(open(os.devnull, "w"))
        self.out, self.error = map(StandardStream, streams)
        self._undo.enter_context(redirect_stdout(cast(TextIO, self.out)))
        self._undo.enter_context(redirect_stderr(cast(TextIO, self.error)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hand on what was written, and put the streams back."""
        self.out.flush()
        self.error.flush()
        self._undo.close()

    def exit_code(self, code: int) -> int:
        """Return ``code``, or in place of 0 one that says that standard output was lost.

        Ask behind the block.
        """
        lost = self.out.lost
        if code or lost is None:
            return code
        if isinstance(lost, OSError) and not isinstance(lost, ConnectionError):
            why = f"accel: error: standard output cannot be written: {lost.strerror}\n"
            self.error.write(why)
            return 2
        return BROKEN_PIPE
