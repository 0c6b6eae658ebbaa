"""The page where a proxy serves it: under a path, on a host of its own, on a port that is taken."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.page import browsing, free_port, opened, tab, until
from helpers.studio import Manual, studios_in, submit

from accel.cli import main
from accel.pipelines.job import JobError
from accel.pipelines.ui import safety, view
from accel.pipelines.ui.studio import Studio

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'gradio>=6.31')")

LOCAL = "127.0.0.1"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Studio, Manual]]:
    with studios_in(tmp_path / "out") as open_one:
        studio, engine = open_one()
        submit(studio, 1)
        until(lambda: engine.busy)
        engine.finish()
        until(studio.finished)
        yield studio, engine


def launched(studio: Studio, given: str) -> tuple[Any, str]:
    from accel.pipelines.ui.page import Page, launch

    public = safety.Public.parse(given)
    studio.root = public.path
    page = Page(studio)
    return page.blocks, launch(page, LOCAL, free_port(), None, public).rstrip("/")


@browsing
@pytest.mark.slow
def test_videos_play_under_a_path(browser: Any, both: tuple[Studio, Manual]) -> None:
    studio, engine = both
    blocks, address = launched(studio, "/video/one")
    try:
        with opened(browser, f"{address}/video/one/") as page:
            page.locator("#latest video").wait_for()
            until(lambda: page.evaluate("document.querySelector('#latest video').readyState > 1"))
            tab(page, "Queue and gallery")
            page.locator("#gallery video").wait_for()
            page.locator("[data-act=reuse]").first.click()
            until(lambda: page.locator("#prompt textarea").input_value() == "a red circle")
            page.locator("#go-both").click()
            until(lambda: engine.busy)
    finally:
        blocks.close(verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "host", "root"),
    [
        ("", "", ""), ("/", "", ""), ("/video", "", "/video"), ("/a/b-c/", "", "/a/b-c"),
        ("https://films.example/video/", "films.example", "/video"),
        ("http://films.example:8443", "films.example:8443", ""),
    ],
)  # fmt: skip
def test_files_are_found_whatever_the_proxy_takes_off(
    both: tuple[Studio, Manual], given: str, host: str, root: str
) -> None:
    studio, _ = both
    blocks, address = launched(studio, given)
    try:
        (url,) = re.findall(r'<video src="([^"]+)"', view.latest(studio))
        url = unescape(url)
        assert url.startswith(f"{root}/gradio_api/file=")
        whole = httpx.get(address + url)
        taken_off = httpx.get(address + url.removeprefix(root))
        assert whole.status_code == taken_off.status_code == 200
        assert whole.content == taken_off.content == next(studio.out.glob("*.mp4")).read_bytes()
        for page in {root + "/", "/", root or "/"}:
            assert httpx.get(address + page).status_code == 200
        for bad in ("/docs", "/monitoring", f"{root}/docs", f"{root}/gradio_api/proxy=http://x/"):
            assert httpx.get(address + bad).status_code == 404
        if host:
            asked = {"host": host, "origin": f"https://{host}"}
            assert httpx.get(f"{address}/config", headers=asked).status_code == 200
            only = httpx.get(f"{address}/config", headers={"origin": f"https://{host}"})
            assert only.status_code == 200 and given.rstrip("/") in only.text
        for evil in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            assert httpx.get(f"{address}{root}/config", headers=evil).status_code in (403, 421)
    finally:
        blocks.close(verbose=False)


@pytest.mark.parametrize(
    "given", ["video", "//x", "/a/../b", "ftp://x/y", "https://", "https:///x", "/a b", "/a?b",
              "/<script>", "https://user@x/y", "/a//b", "\\x"],
)  # fmt: skip
def test_what_is_no_root_path_is_refused(given: str) -> None:
    with pytest.raises(JobError, match="--root-path must be a path such as /video"):
        safety.Public.parse(given)


def test_the_variable_of_gradio_counts_where_nothing_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert safety.Public.parse(None) == safety.Public()
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/film")
    assert safety.Public.parse(None) == safety.Public("/film")
    assert str(safety.Public.parse("https://x.org/a")) == "https://x.org/a"
    assert safety.Public.parse("") == safety.Public()


# -------------------------------------------------------------------------------------------- start


def ui(*arguments: str) -> int:
    return main(["ui", *arguments])


def test_a_taken_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui("--out", str(tmp_path / "out"), "--port", str(port)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} on 127.0.0.1 is taken" in line and "accel ui --port N" in line
    assert "launch()" not in line and not (tmp_path / "out").exists()


def test_a_host_of_somebody_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "auth").write_text("me:long enough")
    for host in ("203.0.113.7", "no-such-host.invalid"):
        given = ("--host", host, "--auth-file", str(tmp_path / "auth"), "--port", "8123")
        assert ui("--out", str(tmp_path / "out"), *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"cannot listen on {host}, port 8123" in line


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "99999999999", "٣"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ui(f"--port={port}")
    assert "must be a whole number from 1 to 65535" in capsys.readouterr().err


def test_a_missing_gradio_names_what_pip_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "gradio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "accel.pipelines.ui.page", raising=False)
    monkeypatch.delitem(sys.modules, "accel.pipelines.ui.widgets", raising=False)
    assert ui() == 2
    (line,) = capsys.readouterr().err.splitlines()
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    (wanted,) = re.findall(r'^ui = \["(.+)"\]', project, re.MULTILINE)
    assert f"pip install '{wanted}'" in line and "accel-diffusion[" not in line
