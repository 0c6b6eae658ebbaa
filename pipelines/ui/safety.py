"""Who may reach the page, and what the server does not do.

The page is for the person at this machine: it listens on the loopback address and nowhere else
unless a user and a password are given. No analytics, no update check, no tunnel, no address of
another machine in the page.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from accel.pipelines.job import JobError
from accel.pipelines.ui.gate import Gate
from accel.pipelines.ui.settings import Limits

_PUBLIC = re.compile(r"((?P<scheme>https?)://(?P<host>[\w.:\[\]-]+))?(?P<path>(/[\w.~-]+)*)/?")
_SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_access(host: str, auth: tuple[str, str] | None) -> None:
    """Raise JobError for a host that others reach without a password, or a weak password."""
    if auth is None and not is_loopback(host):
        raise JobError(
            f"--host {host} can be reached by other machines; give --auth-file FILE with one line "
            "USER:PASSWORD, or leave --host at 127.0.0.1"
        )
    if auth is not None and (not auth[0] or len(auth[1]) < 8):
        raise JobError(
            "--auth-file needs one line USER:PASSWORD, the password 8 characters or more"
        )


def check_port(host: str, port: int | None) -> None:
    """Raise JobError for an address that cannot be listened on; None is any port."""
    try:
        family, *_, where = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or port is None:
            which = host if port is None else f"{host}, port {port}"
            raise JobError(
                f"cannot listen on {which}: {error.strerror}; choose another --host or --port"
            ) from error
        raise JobError(
            f"port {port} on {host} is taken, perhaps by another accel ui; choose another with "
            f"accel ui --port N, or leave --port out for the first free one"
        ) from error


def read_auth(path: Path | None) -> tuple[str, str] | None:
    """User and password from a file, so that they appear in no list of processes."""
    if path is None:
        return None
    try:
        user, _, password = path.read_text(encoding="utf-8").strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"--auth-file {path} cannot be read: {error}") from error
    return user, password


@dataclass(frozen=True)
class Public:
    """Where a proxy in front of the page serves it: under a path, perhaps on a host of its own."""

    path: str = ""
    scheme: str = ""
    host: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Public:
        """Return what ``--root-path`` gives, else the variable GRADIO_ROOT_PATH, else no proxy.

        Raises JobError for what is neither a path nor an http address.
        """
        text = (os.environ.get("GRADIO_ROOT_PATH") or "") if text is None else text
        match = _PUBLIC.fullmatch(text)
        if match is None or ".." in text.split("/"):
            raise JobError(
                "--root-path must be a path such as /video, or an address such as "
                f"https://example.org/video, got {text!r}"
            )
        return cls(match["path"], match["scheme"] or "", match["host"] or "")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}" if self.host else self.path


def be_silent(temporary: Path) -> None:
    """Set what Gradio reads from the environment. Call before a page is built."""
    os.environ.update(_SILENT, GRADIO_TEMP_DIR=str(temporary))


def launch_options(
    out: Path,
    host: str,
    port: int | None,
    auth: tuple[str, str] | None,
    limits: Limits,
    public: Public,
) -> dict[str, Any]:
    """Arguments for ``Blocks.launch``: only the output folder is served, and not its state."""
    check_access(host, auth)
    hosts = ("127.0.0.1", "localhost", "[::1]", host) if is_loopback(host) else None
    gate = Middleware(Gate, hosts=hosts, upload=limits.upload, root=public.path, public=public.host)
    return {
        "server_name": host, "server_port": port, "auth": auth, "share": False,
        "allowed_paths": [str(out)], "blocked_paths": [str(out / ".accel")],
        "max_file_size": limits.upload, "strict_cors": True, "show_error": True,
        "enable_monitoring": False, "run_history": False, "ssr_mode": False, "mcp_server": False,
        "pwa": False, "app_kwargs": {"middleware": [gate]}, "footer_links": [], "quiet": True,
        "prevent_thread_lock": True, "root_path": str(public),
    }  # fmt: skip
