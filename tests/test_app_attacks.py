"""What attacks on the page find: refused or escaped, and the server is still there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.page import SCRIPT, served

from accel.cli import main

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")


def calls(address: str) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """All handlers of the page, and the types of its widgets."""
    config = httpx.get(f"{address}/config").json()
    return config["dependencies"], {c["id"]: c["type"] for c in config["components"]}


PATHS = [
    "/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x",
    "..\\..\\etc\\passwd", "%2e%2e/%2e%2e/etc/passwd", "\x00/etc/passwd", "~/.ssh/id_rsa",
]  # fmt: skip
UPLOADS = {"file", "image"}  # widgets that take a file
FORBIDDEN = [
    "/static/..%2f..%2fblocks.py", "/assets/..%2f..%2f..%2fblocks.py", "/docs", "/monitoring",
    "/gradio_api/proxy=http://127.0.0.1:1/", "/openapi.json",
]  # fmt: skip


def call(client: httpx.Client, handler: dict[str, Any], data: list[Any], event: Any) -> str:
    """What the server answers to one event, as the page sends it."""
    session = f"attack{handler['id']}"
    body = {"fn_index": handler["id"], "data": data, "event_data": event, "session_hash": session}
    if handler["queue"] is False:
        return client.post("/gradio_api/run/predict", json=body).text
    answer = client.post("/gradio_api/queue/join", json=body)
    if answer.status_code != 200:
        return answer.text
    said = ""
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            said += line
            if "process_completed" in line or "close_stream" in line:
                break
    return said


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.proof
def test_no_handler_opens_a_path(address: str, path: str) -> None:
    handlers, types = calls(address)
    assert len(handlers) > 20
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    event = {"act": "compare", "name": path, "drawing": {"layers": path, "brush": path}}
    with httpx.Client(base_url=address, timeout=120) as client:
        for handler in handlers:
            widgets = [types[i] for i in handler["inputs"]]
            said = call(client, handler, [file if w in UPLOADS else path for w in widgets], event)
            assert said and "root:" not in said and "PRIVATE KEY" not in said
            assert not UPLOADS & {*widgets} or '"success":false' in said, said
        assert client.get("/").status_code == 200


def test_only_the_output_folder_is_served(address: str, page_out: Path) -> None:
    out = page_out
    (out / "public.json").write_text("{}")
    (out.parent / "secret.txt").write_text("what nobody may read")
    (out / "link.txt").symlink_to(out.parent / "secret.txt")
    get = f"{address}/gradio_api/file="
    assert httpx.get(f"{get}{out}/public.json").status_code == 200
    for path in (
        *PATHS, f"{out}/../secret.txt", f"{out}/%2e%2e/secret.txt", f"{out}/link.txt",
        f"{out.parent}/secret.txt", f"{out}/.accel/manifest-ui.sqlite",
        f"{out}/.accel/ui/queue.json", f"{Path(__file__).parents[1]}/app.py",
    ):  # fmt: skip
        answer = httpx.get(httpx.URL(get + path.replace("\x00", "%00")))
        assert answer.status_code in (403, 404) and "nobody" not in answer.text
    for path in FORBIDDEN:
        assert httpx.get(address + path).status_code == 404
    assert httpx.get(f"{address}/gradio_api/info").json()["named_endpoints"] == {}
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 421


def test_huge_requests_are_refused(address: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 2**20

    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as line:
        head = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**12}\r\n\r\n"
        )
        line.sendall(head.encode())
        assert line.recv(64).startswith(b"HTTP/1.1 413")
    with httpx.Client(timeout=60) as client:
        try:
            answer = client.post(f"{address}/gradio_api/run/predict", content=endless())
            assert answer.status_code in (400, 413)
        except httpx.WriteError:
            pass  # it hung up on us, which is as good
        deep = "[" * 200_000
        answer = client.post(f"{address}/gradio_api/run/predict", content=deep)
        assert answer.status_code >= 400
        assert client.get(address).status_code == 200


def test_a_name_of_an_upload_stays_in_its_folder(address: str, tmp_path: Path) -> None:
    for name in ("../../../../tmp/evil.mp4", "/tmp/evil.mp4", f"{SCRIPT}.mp4", "x" * 300 + ".mp4"):
        files = {"files": (name, b"no video")}
        answer = httpx.post(f"{address}/gradio_api/upload", files=files)
        if answer.status_code == 200:
            (path,) = answer.json()
            assert "/accel-ui-" in path and ".." not in path and "<" not in path
    assert not Path("/tmp/evil.mp4").exists()


def test_fifty_clients(address: str) -> None:
    handlers, _ = calls(address)
    poll = next(h["id"] for h in handlers if h["api_name"] == "poll")

    def visit(number: int) -> list[int]:
        body = {"fn_index": poll, "data": [None, None], "session_hash": f"client{number}"}
        with httpx.Client(base_url=address, timeout=120) as client:
            codes = [client.get("/").status_code]
            codes += [client.post("/gradio_api/run/predict", json=body).status_code
                      for _ in range(3)]  # fmt: skip
            return codes

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(visit, range(50))) == [[200] * 4] * 50


def test_nobody_gets_in_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("me:correct horse")
    with served(tmp_path / "out", "--auth-file", str(tmp_path / "auth")) as address:
        file = f"/gradio_api/file={tmp_path}/out/x.json"
        (tmp_path / "out" / "x.json").write_text(json.dumps("inside"))
        with httpx.Client(base_url=address) as client:
            for path in ("/config", file, "/gradio_api/info"):
                assert client.get(path).status_code == 401
            answer = client.post("/gradio_api/run/predict", json={"fn_index": 0, "data": []})
            assert answer.status_code == 401
            wrong = client.post("/login", data={"username": "me", "password": "wrong"})
            assert wrong.status_code == 400
            right = client.post("/login", data={"username": "me", "password": "correct horse"})
            assert right.status_code == 200 and client.get(file).text == '"inside"'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached by other machines"),
        (["--auth-file", "/nowhere"], "cannot be read"),
        (["--model", "/nowhere"], "no model"),
    ],
)
def test_unsafe_starts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["ui", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
