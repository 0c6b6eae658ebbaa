"""Values of YAML as job files need them: text as it was written.

libyaml parses to events; what they stand for is decided here, by YAML 1.2's core schema: only
null, true, false and numbers are anything but text. So a prompt ``yes``, ``2024-13-45`` or
``190:20:30`` is itself, and under keys whose value is always text a number is too. A value that
cannot be is a ``Wrong``, so it is the fault of its job.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml import events as ev

from accel.core.plain_values import MOST_DEPTH, MOST_VALUES, Wrong, shown, too_large, why_no_text
from accel.pipelines.batch.bounds import BOUNDS
from accel.pipelines.job import JobError

TEXT = ("prompt", "negative_prompt", "name", "model")  # never anything but text
_PATHS = ("file", "flow", "depth", "map", "plan")  # paths, or mappings
SCALARS = _PATHS + TEXT
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_TAG = "tag:yaml.org,2002:"
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OTHER = {".nan": math.nan, ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
_MOST_NESTED = 1000  # levels after which the rest of a file is not looked at


def resolve(text: str) -> Any:
    """Return what a plain scalar stands for."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        if len(text) > 20:
            return Wrong(too_large(text))
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else Wrong(f"{text[:40]}, too large for a number")
    return _OTHER.get(text.lower(), text)


def parse_value(text: str, key: str) -> Any:
    """Return the value of a cell or of ``--set``, under its key.

    Raises:
        JobError: It is no YAML; the message completes "it is ...".
    """
    if key.rpartition(".")[2] in TEXT:
        return text
    if why := why_no_text(text):
        raise JobError(why)
    text = text.strip()
    if re.fullmatch(r"[\w.+-]*", text) and key.rpartition(".")[2] not in SCALARS:
        return resolve(text)
    builder = Builder(text)
    try:
        builder.take()
        if isinstance(builder.first, ev.StreamEndEvent):
            return None
        builder.take()
        value = builder.value(builder.take(), as_text=key.rpartition(".")[2] in SCALARS)
        builder.take()
        builder.close()
    except (yaml.YAMLError, RecursionError):
        raise JobError(
            f"{shown(text)}, which cannot be read; close every bracket and quotation mark"
        ) from None
    return value


class TooMuchError(yaml.MarkedYAMLError):
    """A file so deep or large that the rest of it is not looked at."""

    def __init__(self, problem: str, event: Any) -> None:
        super().__init__(None, None, problem, event.start_mark)


class Builder:
    """Makes values of events, one after the other.

    ``count``: values made so far; whoever begins a new job sets it to 0.
    """

    def __init__(self, text: str) -> None:
        self._events = yaml.parse(text, Loader=_LOADER)
        self._next: Any = None
        self._merged = self.count = 0
        self.anchors: dict[str, Any] = {}

    @property
    def first(self) -> Any:
        """Return the event that comes next."""
        if self._next is None:
            self._next = next(self._events)
        return self._next

    def take(self) -> Any:
        """Return the event that comes next, and pass on."""
        if self._next is None:
            return next(self._events)
        event, self._next = self._next, None
        return event

    def close(self) -> None:
        """Raise yaml.YAMLError unless this is the end."""
        if not isinstance(self.first, ev.StreamEndEvent):
            raise yaml.YAMLError("there is more after the end")

    def key(self, event: Any, depth: int) -> Any:
        """Return a key of a mapping, always as text, or a ``Wrong``."""
        if isinstance(event, ev.ScalarEvent):
            if event.anchor:
                self.anchors[event.anchor] = event.value
            return event.value
        value = self.value(event, depth + 1)
        is_alias = isinstance(event, ev.AliasEvent)
        return value if is_alias and isinstance(value, str) else Wrong("no text")

    def value(self, event: Any, depth: int = 0, *, as_text: bool = False) -> Any:
        """Return the value that begins with an event.

        ``as_text``: a scalar, or each of a list, is text unless it is null.
        """
        self.count += 1
        if self.count > MOST_VALUES:
            raise TooMuchError(
                f"more than {MOST_VALUES:,} values stand in one job or key; split it, or put what "
                "is large into a file of its own",
                event,
            )
        anchor: str = getattr(event, "anchor", None) or ""
        if isinstance(event, ev.AliasEvent):
            none = Wrong(f"*{anchor}, and no anchor &{anchor} stands above it")
            return self.anchors.get(anchor, none)
        if anchor:
            self.anchors[anchor] = Wrong(f"*{anchor} inside of &{anchor} itself, without an end")
        if isinstance(event, ev.ScalarEvent):
            value = _scalar(event, as_text)
        elif depth > MOST_DEPTH:
            self._skip()
            value = Wrong(f"nested deeper than {MOST_DEPTH} levels; write it flatter")
        elif isinstance(event, ev.SequenceStartEvent):
            value = _tagged(event, "seq", self._list(depth, as_text))
        else:
            value = _tagged(event, "map", self._mapping(depth))
        if anchor:
            self.anchors[anchor] = value
        return value

    def _list(self, depth: int, as_text: bool) -> list[Any]:
        values = []
        while not isinstance(event := self.take(), ev.SequenceEndEvent):
            values.append(self.value(event, depth + 1, as_text=as_text))
        return values

    def _mapping(self, depth: int) -> Any:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        wrong: Wrong | None = None
        while not isinstance(event := self.take(), ev.MappingEndEvent):
            key, line = self.key(event, depth), line_of_event(event)
            text = isinstance(key, str) and key.rpartition(".")[2] in SCALARS
            value = self.value(self.take(), depth + 1, as_text=text)
            if isinstance(key, Wrong):
                wrong = wrong or Wrong(f"a mapping with a key that is {key.message}")
            elif key in lines:
                where = f"lines {lines[key]} and {line}" if line > lines[key] else f"line {line}"
                wrong = wrong or Wrong(
                    f"a mapping in which the key {shown(key)} stands twice ({where}); keep one"
                )
            else:
                lines[key] = line
                values[key] = value
        merge = values.pop("<<", None)
        return wrong or (values if merge is None else self._merge(values, merge))

    def _merge(self, values: dict[str, Any], merge: Any) -> Any:
        """Return ``values`` with what ``<<`` brings in; own keys win, then those of the first."""
        for other in merge if isinstance(merge, list) else [merge]:
            if isinstance(other, Wrong):
                return other
            if not isinstance(other, dict):
                return Wrong(f"a mapping whose '<<' needs mappings, got {shown(other)}")
            self._merged += len(other)
            if self._merged > BOUNDS.merged:
                return Wrong(f"a mapping whose '<<' goes beyond {BOUNDS.merged:,} keys in the file")
            values = {**other, **values}
        return values

    def _skip(self) -> None:
        """Pass over the rest of a list or mapping that has begun."""
        depth = 1
        while depth:
            event = self.take()
            if isinstance(event, ev.CollectionStartEvent):
                depth += 1
            elif isinstance(event, ev.CollectionEndEvent):
                depth -= 1
            if depth > _MOST_NESTED:
                raise TooMuchError(f"nested deeper than {_MOST_NESTED} levels", event)


def _scalar(event: Any, as_text: bool) -> Any:
    plain, _ = event.implicit
    if event.tag in (None, "!"):
        if not plain or (as_text and event.value not in _NULLS):
            return event.value
        return resolve(event.value)
    kind, value = event.tag.removeprefix(_TAG), resolve(event.value)
    kinds: dict[str, Any] = {"null": type(None), "bool": bool, "int": int, "float": (int, float)}
    if kind == "str":
        return event.value
    if kind in kinds and isinstance(value, kinds[kind]):
        return value
    return Wrong(f"{shown(event.value)} with the tag {shown(event.tag)}; leave the tag out")


def _tagged(event: Any, kind: str, value: Any) -> Any:
    if event.tag in (None, "!", _TAG + kind):
        return value
    return Wrong(f"a list or mapping with the tag {shown(event.tag)}; leave the tag out")


def line_of_event(event: Any) -> int:
    """Return the line, counted from 1, that an event begins in."""
    return int(event.start_mark.line) + 1


def parsed_cell(cell: str, key: str) -> Any:
    """Return the value of a table's cell, a ``Wrong`` for what is none."""
    try:
        return parse_value(cell, key)
    except JobError as error:
        return Wrong(str(error))
