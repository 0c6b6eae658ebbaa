"""The way out where an optional package is missing.

This distribution may come from a checkout or a wheel and need not be on any index, so a message
names what is on one: the package itself, in the version that the extra asks for.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "accel-diffusion"


def how_to_install(package: str) -> str:
    """Return the command that installs a package which one of our extras names."""
    try:
        known = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # a bare checkout
        known = []
    for requirement in known:
        wanted = requirement.partition(";")[0].strip()
        if re.split(r"[^\w.-]", wanted)[0] == package:
            return f"pip install '{wanted}'"
    return f"pip install {package}"
