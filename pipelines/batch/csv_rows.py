"""Job files in CSV: the separator is found by the header, and a bad row is that row's fault."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accel.core.plain_values import Wrong, shown
from accel.pipelines.job import JobError

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LONGEST = 2**20  # characters of a cell
_MOST_COLUMNS, _MOST_LINES = 256, 2_000_000
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Row:
    """A row of a table: the line it begins in, and its cells by column, those left empty aside."""

    line: int
    cells: dict[str, str] | Wrong


def csv_rows(text: str, path: Path, why_unknown: Callable[[str], str]) -> Iterator[Row]:
    """Yield the rows below the header.

    Args:
        text: The whole table.
        path: For messages.
        why_unknown: What is wrong with the name of a column, or "".

    Raises:
        JobError: A header that cannot be used.
    """
    if (count := max(map(text.count, "\r\n"))) > _MOST_LINES:
        raise JobError(f"{path} has {count:,} lines, at most {_MOST_LINES:,} can be read; split it")
    lines = _LINE_END.split(text)
    start, separator = _separator(lines, path, why_unknown)
    csv.field_size_limit(_LONGEST)
    records = _records(lines, start, separator)
    first = next(records, None)
    if first is None:
        return
    if isinstance(first[1], Wrong):
        raise JobError(f"{path}, line {first[0]}: the header is {first[1].message}")
    header = [name.strip() for name in first[1]]
    _check_header(header, f"{path}, line {first[0]}", separator, why_unknown)
    for line, cells in records:
        yield Row(line, cells if isinstance(cells, Wrong) else _row(header, cells, separator))


def _separator(lines: list[str], path: Path, why_unknown: Callable[[str], str]) -> tuple[int, str]:
    """Return the place of the header and what separates its names.

    Spreadsheets may say it themselves, in a first line such as ``sep=;``.
    """
    at = next((i for i, line in enumerate(lines) if line.strip()), 0)
    head = lines[at]
    if head.lower().startswith("sep=") and len(head) == 5:
        return at + 1, head[4]
    if (count := 1 + max(map(head.count, _SEPARATORS))) > _MOST_COLUMNS:
        raise JobError(
            f"{path}, line {at + 1}: the header has {count:,} columns, at most {_MOST_COLUMNS} can "
            "be read; the first line must name the keys, such as prompt,seed"
        )

    def known(separator: str) -> tuple[bool, int]:
        names = [name.strip().strip('"') for name in head.split(separator)]
        count = sum(not why_unknown(name) for name in names if name)
        return count == len(names), count

    return at, max(_SEPARATORS, key=known)


def _check_header(
    header: list[str], where: str, separator: str, why_unknown: Callable[[str], str]
) -> None:
    for name in header:
        if name and (why := why_unknown(name)):
            raise JobError(
                f"{where} has {why}; columns are separated by a "
                f"{_SEPARATORS.get(separator, repr(separator))} here"
            )
    for name, count in Counter(filter(None, header)).items():
        if count > 1:
            numbers = [i for i, other in enumerate(header, 1) if other == name]
            raise JobError(f"{where}: the column {name!r} stands twice ({numbers}); keep one")


def _records(
    lines: list[str], start: int, separator: str
) -> Iterator[tuple[int, list[str] | Wrong]]:
    """Yield (line, cells) of what is not empty.

    A quotation mark that is never closed takes in all lines below it. So after a fault reading goes
    on with the next line, not behind what the faulty row took in.
    """
    at = start
    while at < len(lines):
        rest = (f"{lines[i]}\n" for i in range(at, len(lines)))
        reader = csv.reader(rest, delimiter=separator, strict=True, skipinitialspace=True)
        begin = at
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield begin + 1, cells
                begin = at + reader.line_num
            return
        except csv.Error as error:
            yield begin + 1, Wrong(_fault(error))
            at = begin + 1


def _fault(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return (
            'a row with a quotation mark (") that is never closed; close it, and write one that '
            'belongs to the text twice ("")'
        )
    if "limit" in text:
        return f"a row with a cell of more than {_LONGEST:,} characters; write less"
    return (
        'a row with text behind a closing quotation mark ("); put the whole cell in quotation '
        'marks, and write one that belongs to the text twice ("")'
    )


def _row(header: list[str], cells: list[str], separator: str) -> dict[str, str] | Wrong:
    used = max(i + 1 for i, cell in enumerate(cells) if cell.strip())
    if used > len(header):
        return Wrong(
            f"a row of {used} cells, but the header has {len(header)}; put text that holds a "
            f"{_SEPARATORS.get(separator, repr(separator))} in quotation marks: "
            f'"a{separator} b"'
        )
    if any("\0" in cell for cell in cells):
        return Wrong("a row with a NUL character; take it out, or save the file as UTF-8")
    named = [(key, cell) for key, cell in zip(header, cells, strict=False) if cell.strip()]
    if unnamed := next((cell for key, cell in named if not key), ""):
        return Wrong(f"a row with the cell {shown(unnamed)} in a column without a name")
    return dict(named)
