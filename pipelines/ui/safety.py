"""Who may reach the page, and what the server does not do.

The page is for the person at this machine: it listens on the loopback address and nowhere else
unless a user and a password are given. No analytics, no update check, no tunnel, no address of
another machine in the page.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from accel.pipelines.job import JobError
from accel.pipelines.ui.gate import Gate
from accel.pipelines.ui.settings import Limits

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


def read_auth(path: Path | None) -> tuple[str, str] | None:
    """User and password from a file, so that they appear in no list of processes."""
    if path is None:
        return None
    try:
        user, _, password = path.read_text(encoding="utf-8").strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"--auth-file {path} cannot be read: {error}") from error
    return user, password


def be_silent(temporary: Path) -> None:
    """Set what Gradio reads from the environment. Call before a page is built."""
    os.environ.update(_SILENT, GRADIO_TEMP_DIR=str(temporary))


def launch_options(
    out: Path, host: str, port: int | None, auth: tuple[str, str] | None, limits: Limits
) -> dict[str, Any]:
    """Arguments for ``Blocks.launch``: only the output folder is served, and not its state."""
    check_access(host, auth)
    hosts = ("127.0.0.1", "localhost", "[::1]", host) if is_loopback(host) else None
    gate = Middleware(Gate, hosts=hosts, upload=limits.upload)
    return {
        "server_name": host, "server_port": port, "auth": auth, "share": False,
        "allowed_paths": [str(out)], "blocked_paths": [str(out / ".accel")],
        "max_file_size": limits.upload, "strict_cors": True, "show_error": True,
        "enable_monitoring": False, "run_history": False, "ssr_mode": False, "mcp_server": False,
        "pwa": False, "app_kwargs": {"middleware": [gate]}, "footer_links": [], "quiet": True,
        "prevent_thread_lock": True,
    }  # fmt: skip
