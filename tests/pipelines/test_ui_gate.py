"""What the gate before the server lets through, and who may reach it at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accel.pipelines.job import JobError
from accel.pipelines.ui import safety
from accel.pipelines.ui.gate import BODY, Gate


def ask(
    gate: Gate, path: str, host: str = "127.0.0.1:1", body: int = 0, told: int | None = None,
    origin: str = "",
) -> tuple[int, dict[bytes, bytes]]:  # fmt: skip
    """Status and headers of a request through the gate; ``told`` is its content length."""
    chunks = [b"x" * min(65536, body - at) for at in range(0, body, 65536)] or [b""]
    headers = [(b"host", host.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    headers += [] if told is None else [(b"content-length", str(told).encode())]
    scope = {"type": "http", "path": path, "headers": headers, "method": "POST"}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    run = gate(scope, receive, send).__await__()
    with pytest.raises(StopIteration):
        next(run)
    return sent[0]["status"], dict(sent[0]["headers"])


async def accepting(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_gate() -> None:
    gate = Gate(accepting, ("127.0.0.1", "localhost", "[::1]"), upload=10 * 2**20)
    good = ["/", "/config", "/assets/a.js", "/gradio_api/queue/join", "/gradio_api/file=/tmp/a.mp4"]
    assert [ask(gate, path)[0] for path in good] == [200] * len(good)
    bad = ["/gradio_api/proxy=http://x/", "/monitoring", "/gradio_api/vibe-edit", "/docs",
           "/gradio_api/file=http://x/", "/gradio_api/file=//x/a", "/static/../x", "/.git",
           "/gradio_api/stream/a", "/gradio_api/component_server", "/openapi.json"]  # fmt: skip
    assert [ask(gate, path)[0] for path in bad] == [404] * len(bad)
    assert ask(gate, "/", host="evil.example")[0] == 421
    assert [ask(gate, "/", host=h)[0] for h in ("localhost", "[::1]:80", "127.0.0.1")] == [200] * 3
    assert ask(gate, "/", origin="http://127.0.0.1:1")[0] == 200
    for origin in ("http://evil.example", "http://127.0.0.1:2", "null"):
        assert ask(gate, "/gradio_api/queue/join", origin=origin)[0] == 403
    assert ask(Gate(accepting, None, 0), "/", host="any.example")[0] == 200
    assert "frame-ancestors 'none'" in str(ask(gate, "/")[1][b"content-security-policy"])


def test_gate_bounds_bodies() -> None:
    gate = Gate(accepting, None, upload=8 * 2**20)
    path, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    assert ask(gate, path, told=BODY + 1)[0] == 413
    assert ask(gate, path, body=BODY + 1)[0] == 413  # its length was not told
    assert ask(gate, path, body=BODY + 1, told=5)[0] == 413  # or a wrong one
    assert ask(gate, upload, body=BODY + 1)[0] == 200
    assert ask(gate, upload, body=13 * 2**20)[0] == 413


def test_access(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        safety.check_access(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.example.org", ""):
        with pytest.raises(JobError, match="reached by other machines"):
            safety.check_access(host, None)
    safety.check_access("0.0.0.0", ("me", "long enough"))
    with pytest.raises(JobError, match="8 characters"):
        safety.check_access("0.0.0.0", ("me", "short"))
    (tmp_path / "auth").write_text("me:pass:word\n")
    assert safety.read_auth(tmp_path / "auth") == ("me", "pass:word")
    with pytest.raises(JobError, match="cannot be read"):
        safety.read_auth(tmp_path / "none")
