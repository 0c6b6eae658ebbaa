"""Where the code lies, for tests that read it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKS = (ROOT / "accel" / "kernels", ROOT / "accel" / "pipelines")


def sources() -> list[Path]:
    """Return every module of the product, by its place beside ``accel/``."""
    found = [p for top in ("accel", "kernels", "pipelines") for p in (ROOT / top).rglob("*.py")]
    return sorted(p for p in found if not any(p.is_relative_to(link) for link in LINKS))
