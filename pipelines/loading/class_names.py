"""Classes of diffusers and transformers by their names, and the packages that they need."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from accel.core.diffusers_loading import packages_lacking
from accel.core.extras import how_to_install
from accel.core.validate import did_you_mean

LIBRARIES = ("diffusers", "transformers")


@lru_cache(maxsize=len(LIBRARIES))
def names_in(library: str) -> frozenset[str]:
    """Return all names of a library, which takes transformers nearly a second to list."""
    return frozenset(dir(import_module(library)))


def class_in(library: str, name: str, what: str) -> Any:
    """Return a class of a library.

    Args:
        library: One of ``LIBRARIES``.
        name: Of the class.
        what: What is of that class, for the message.

    Raises:
        ValueError: The library has no such class, or a package that it needs is missing.
    """
    package: Any = import_module(library)
    if name not in names_in(library):
        raise ValueError(
            f"{what} is a {name}, which {library} {package.__version__} does not have"
            f"{did_you_mean(name, sorted(names_in(library)))}"
        )
    try:
        found = getattr(package, name)
        lacking = packages_lacking(found)
    except (ImportError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{what} is a {name}, which cannot be imported: {said}") from error
    if lacking:
        raise ValueError(f"{what} is a {name}, which {needs(lacking)}")
    return found


def needs(lacking: list[str]) -> str:
    """Return in words which packages are missing, with the command that installs them."""
    ways = " && ".join(how_to_install(package) for package in lacking)
    return f"needs the package {' and '.join(lacking)}, which is missing: {ways}"
