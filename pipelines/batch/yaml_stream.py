"""Reads a long list inside a YAML file item by item, so that memory does not grow with it.

libyaml parses to events; PyYAML's own composer turns the events of one item at a time into values,
with anchors, aliases and merge keys as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.events import (
    MappingEndEvent,
    MappingStartEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.resolver import Resolver

if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]

    class _Loader(Composer, SafeConstructor, Resolver, CParser):
        def __init__(self, stream: IO[str]) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

else:
    _Loader = yaml.SafeLoader  # type: ignore[assignment, misc]


def _value(loader: Any) -> Any:
    """Return the next node as plain Python values."""
    return loader.construct_document(loader.compose_node(None, None))


def _keys(file: IO[str], name: str) -> Iterator[tuple[Any, Any]]:
    """(key, loader) for each key of the top-level mapping; the caller takes the value's events."""
    loader = _Loader(file)
    loader.get_event()  # start of the stream
    if loader.check_event(StreamEndEvent):
        return
    loader.get_event()  # start of the document
    if not loader.check_event(MappingStartEvent):
        yield None, loader
        return
    loader.get_event()
    while not loader.check_event(MappingEndEvent):
        key = _value(loader)
        yield key, loader


def read_top_level(file: IO[str], name: str) -> tuple[Any, bool]:
    """Return the top-level mapping without the list called ``name``, and whether it is there.

    Anything but a mapping is returned as it is. Raises yaml.YAMLError.
    """
    data: dict[Any, Any] = {}
    found = False
    for key, loader in _keys(file, name):
        if key is None:
            return _value(loader), False
        if key == name and loader.check_event(SequenceStartEvent):
            found = True
            _skip(loader)
        else:
            data[key] = _value(loader)
    return data, found


def stream_list(file: IO[str], name: str) -> Iterator[Any]:
    """Yield items of the top-level list called ``name``.

    Raises yaml.YAMLError.
    """
    for key, loader in _keys(file, name):
        if key == name:
            loader.get_event()
            while not loader.check_event(SequenceEndEvent):
                yield _value(loader)
            return
        _value(loader)


def _skip(loader: Any) -> None:
    """Pass over one list."""
    depth = 0
    while True:
        event = loader.get_event()
        if isinstance(event, (SequenceStartEvent, MappingStartEvent)):
            depth += 1
        elif isinstance(event, (SequenceEndEvent, MappingEndEvent)):
            depth -= 1
        if depth == 0:
            return
