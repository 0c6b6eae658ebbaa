"""What a command prints never ends its work, whatever the stream is."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from accel import cli
from accel.core.standard_streams import StandardStream, StandardStreams, encodable

HARD = "雲 \ud800 é █ 3×"


def narrow(encoding: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding=encoding, errors="strict")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "\\u96f2 \\ud800 \\xe9 # 3x"),
        ("latin-1", "\\u96f2 \\ud800 é # 3x"),
        ("utf-8", "雲 \\ud800 é # 3x"),
        ("cp932", "雲 \\ud800 \\xe9 # 3x"),
    ],
)
def test_what_a_stream_cannot_encode_is_escaped(encoding: str, expected: str) -> None:
    raw, stream = narrow(encoding)
    print(HARD, file=StandardStream(stream), flush=True)  # type: ignore[type-var]
    assert raw.getvalue().decode(encoding) == f"{expected}\n"
    assert encodable(expected, encoding) == expected


class Refusing(io.StringIO):
    """A stream that fails in one way from the first write on."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.asked = error, 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 141),
        (ValueError("I/O operation on closed file"), 141),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (OSError(errno.EIO, "Input/output error"), 2),
    ],
)
def test_a_stream_that_takes_nothing_more_shows_in_the_exit_code_alone(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Refusing(error)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    with StandardStreams() as streams:
        for _ in range(3):
            print("text")
        print("said", file=sys.stderr)
    assert sys.stdout is stream and stream.asked == 1
    assert (streams.exit_code(0), streams.exit_code(1)) == (code, 1)
    assert told.getvalue().startswith("said\n") and ("cannot be written" in told.getvalue()) == (
        code == 2
    )


def test_standard_error_that_is_lost_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Refusing(BrokenPipeError()))
    with StandardStreams() as streams:
        print("text", file=sys.stderr)
    assert streams.exit_code(0) == 0


def test_a_signal_between_two_writes_drops_its_text_only() -> None:
    stream = Refusing(RuntimeError("reentrant call"))
    wrapped = StandardStream(stream)
    assert wrapped.write("a") == wrapped.write("b") == 1 and stream.asked == 2
    assert wrapped.lost is None


@pytest.mark.parametrize("missing", ["stdout", "stderr"])
def test_a_stream_that_is_missing_goes_nowhere(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, missing, None)
    with StandardStreams() as streams:
        print("text", file=getattr(sys, missing))
    assert getattr(sys, missing) is None and streams.exit_code(0) == 0


def test_main_stands_between_every_command_and_the_streams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw, stream = narrow("ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    assert cli.main(["info", str(tmp_path / "雲\udcff.mp4")]) == 2
    stream.flush()
    assert raw.getvalue().endswith(b"\\u96f2\\udcff.mp4\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["env"], ["env", "--json"], ["--help"], ["render", "--help"]]
)
def test_commands_whose_reader_goes_away_end_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "accel", *arguments],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == (0 if "--help" in arguments else 141) and not done.stderr
