"""Line charts as SVG text: panels below each other, a line of values over frames in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

WIDTH, LEFT, RIGHT, PANEL, GAP = 900, 90, 24, 150, 52  # pixels
COLORS = ("#2f6fde", "#c77d2b", "#3f9d6b", "#a04fc0", "#c0444f", "#3a9fb5", "#777733", "#8a8f98")

Lines = Mapping[str, Sequence[float]]


def line_chart(title: str, panels: Sequence[tuple[str, Lines]]) -> str:
    """Return an SVG of ``panels``: a label each, and values over frames by the name of their line.

    A value that is not finite has no point. Lines of one name have one color.
    """
    names = list(dict.fromkeys(name for _, lines in panels for name in lines))
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    parts, y = [_text(10, 24, title, weight="bold")], 44
    for i, name in enumerate(names if len(names) > 1 else []):
        x = LEFT + 200 * (i % 4)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="18" height="4" fill="{color[name]}"/>')
        parts.append(_text(x + 24, y - 2, name))
        y += 20 if i % 4 == 3 or i == len(names) - 1 else 0
    for label, lines in panels:
        parts += _panel(label, lines, color, y + 24)
        y += PANEL + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" '
        f'viewBox="0 0 {WIDTH} {y + 8}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _panel(label: str, lines: Lines, color: dict[str, str], top: float) -> list[str]:
    """Return one panel, its upper edge ``top`` pixels down."""
    finite = [v for values in lines.values() for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = (high - low) * 0.05 or abs(high) * 0.01 or 1.0
    low, high = low - room, high + room
    frames = max((len(values) for values in lines.values()), default=1)
    parts = [_text(10, top - 8, label if finite else f"{label}: equal frames", weight="bold")]

    def place(frame: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * frame / max(frames - 1, 1)
        return f"{x:.1f},{top + PANEL * (high - value) / (high - low):.1f}"

    for share in (0.0, 0.5, 1.0):
        value = low + room + (high - low - 2 * room) * share
        y = float(place(0, value).split(",")[1])
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#d8dbe0"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:.4g}" if finite else "", anchor="end"))
    for name, values in lines.items():
        for points in _runs(values):
            drawn = " ".join(place(frame, value) for frame, value in points)
            parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color[name]}"/>')
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color[name]}"/>'
            for frame, value in enumerate(values)
            if math.isfinite(value)
            for x, y in [place(frame, value).split(",")]
        ]
    parts.append(_text(LEFT, top + PANEL + 14, "frame 0"))
    parts.append(_text(WIDTH - RIGHT, top + PANEL + 14, f"frame {frames - 1}", anchor="end"))
    return parts


def _runs(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Return the stretches of finite values, each with its frames."""
    stretches = groupby(enumerate(values), key=lambda item: math.isfinite(item[1]))
    return [list(points) for finite, points in stretches if finite]


def _text(x: float, y: float, text: str, *, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
