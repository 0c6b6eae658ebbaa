"""Bar charts as SVG text: groups of horizontal bars, each with its value."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, LABEL, ROW, GAP = 900, 230, 20, 18  # pixels
COLORS = ("#8a8f98", "#2f6fde", "#3f9d6b", "#c77d2b", "#a04fc0", "#c0444f", "#3a9fb5", "#777733")


def bar_chart(title: str, unit: str, groups: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Return an SVG of ``groups``: a name each, and values by the name of their bar."""
    names = list(dict.fromkeys(name for _, bars in groups for name in bars))
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    most = max((value for _, bars in groups for value in bars.values()), default=1.0) or 1.0
    lines, y = [_text(10, 24, title, "bold")], 48
    for group, bars in groups:
        lines.append(_text(10, y + 10, group, "bold"))
        y += ROW
        for name, value in bars.items():
            length = (WIDTH - LABEL - 90) * value / most
            lines.append(_text(24, y + 12, name))
            lines.append(
                f'<rect x="{LABEL}" y="{y}" width="{max(length, 1):.1f}" height="{ROW - 5}" '
                f'fill="{color[name]}"/>'
            )
            lines.append(_text(LABEL + length + 6, y + 12, f"{value:.2f}{unit}"))
            y += ROW
        y += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        f'viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>\n"])


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'
