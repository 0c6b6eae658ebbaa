"""Nested tuples, lists and dicts of values, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return nested tuples, lists, dicts and slices with ``function`` applied to every leaf."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, leaf) for leaf in tree))
    if isinstance(tree, (tuple, list)):
        items = [tree_map(function, leaf) for leaf in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, Mapping):
        return {key: tree_map(function, leaf) for key, leaf in tree.items()}
    if isinstance(tree, slice):
        return slice(*(tree_map(function, leaf) for leaf in (tree.start, tree.stop, tree.step)))
    return function(tree)


def leaves(tree: Any) -> list[Any]:
    """Return all leaves of nested tuples, lists, dicts and slices, in order."""
    found: list[Any] = []
    tree_map(found.append, tree)
    return found
