"""Pictures of measurements, as SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

_COLOURS = {
    "full": "#9ca3af", "int8": "#2563eb", "int6": "#0d9488", "int4": "#ea580c",
    "computed": "#16a34a", "reused": "#d6d3d1", "mixed": "#a855f7", "not called": "#f3f4f6",
}  # fmt: skip
_WIDTH = 640
_MOST = 2000  # steps of one entry that are drawn


def _svg(width: float, height: float, label: str, body: str) -> str:
    return (
        f'<div class="wide"><svg class="chart" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width:g} {height:g}">{body}</svg></div>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def psnr_plot(values: Sequence[float]) -> str:
    """PSNR in dB over frames. The line with the class ``cursor`` is moved by ``players.js``."""
    low, high = _range(values)
    left, right, top, bottom = 52.0, _WIDTH - 8.0, 12.0, 150.0
    step = (right - left) / max(len(values) - 1, 1)
    y = [bottom - (v - low) / (high - low) * (bottom - top) for v in values]
    points = [(left + k * step, value) for k, value in enumerate(y)]
    grid = []
    for value in (low, (low + high) / 2, high):
        at = bottom - (value - low) / (high - low) * (bottom - top)
        grid.append(f'<line class="grid" x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        grid.append(_text(left - 6, at + 4, f"{value:.1f}", "end"))
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"><title>frame {k}: {v:.2f} dB</title></circle>'
        for k, ((a, b), v) in enumerate(zip(points, values, strict=True))
    )
    cursor = (
        f'<line class="cursor" data-left="{left}" data-step="{step}" '
        f'x1="{left}" x2="{left}" y1="{top}" y2="{bottom}"/>'
    )
    last = len(values) - 1
    axis = _text(left, 170, "frame 0") + _text(right, 170, f"frame {last}", "end")
    label = f"PSNR per frame, {min(values):.1f} to {max(values):.1f} dB"
    body = f'{"".join(grid)}<polyline points="{line}"/>{dots}{cursor}{axis}'
    return _svg(_WIDTH, 178, label, body)


def _range(values: Sequence[float], least: float = 2.0) -> tuple[float, float]:
    """Limits of an axis, at least ``least`` wide."""
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), (least - (high - low)) / 2)
    return low - room, high + room


def precision_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """(site, precision that ran at each step, note) of a report's last run. Where steps were
    reused, the first row says which were not.
    """
    sites = [(site, _steps(site)) for site in report.get("sites", ())]
    rehash = report.get("rehash") or {}
    keys, steps = rehash.get("keys") or [], max((len(s) for _, s in sites), default=0)
    steps = max(steps, rehash.get("steps") or 0) if keys else steps
    rows = []
    if keys:
        cells = ["computed" if step in keys else "reused" for step in range(steps)]
        rows.append(("key steps", cells, f"{len(keys)} of {steps} steps were computed"))
    for site, ran in sites:
        cells = [what or "not called" for what in ran + [""] * (steps - len(ran))]
        cells = ["reused" if keys and step not in keys else c for step, c in enumerate(cells)]
        rows.append((str(site["name"]), cells, _note(site)))
    return rows if steps else []


def _steps(site: Mapping[str, Any]) -> list[str]:
    """What ran at each step: a site's [number of steps, precision] spread out, within limits."""
    pairs = site.get("steps") or ()
    return [_mixed(str(what)) for count, what in pairs for _ in range(min(int(count), _MOST))]


def _mixed(what: str) -> str:
    return "mixed" if "+" in what else what


def _note(site: Mapping[str, Any]) -> str:
    parts = [f"{what}: {n} calls" for what, n in (site.get("ran") or {}).items()]
    for key, text in (("kept", "full"), ("recomputed", "computed again in full")):
        parts += [f"{text}: {n} calls ({why})" for why, n in (site.get(key) or {}).items()]
    return "; ".join(parts)


def heat_map(rows: Sequence[tuple[str, list[str], str]]) -> str:
    """Precision over layers (down) and steps (across)."""
    if not rows:
        return '<p class="quiet">The report does not say what ran at which step.</p>'
    left, steps = 150.0, len(rows[0][1])
    cell, high = (_WIDTH - left - 4) / max(steps, 1), max(6.0, min(18.0, 480 / len(rows)))
    body = []
    for row, (name, cells, note) in enumerate(rows):
        y, at = 4 + row * high, 0
        if high >= 10:
            body.append(_text(left - 6, y + high * 0.75, name[-24:], "end"))
        for precision, group in groupby(cells):
            count = len(list(group))
            body.append(
                f'<rect x="{left + at * cell:.2f}" y="{y:.2f}" width="{count * cell:.2f}" '
                f'height="{high - 1:.2f}" fill="{_COLOURS.get(precision, "#000")}">'
                f"<title>{escape(f'{name}, from step {at}: {precision}. {note}')}</title></rect>"
            )
            at += count
    bottom = 4 + len(rows) * high
    body += [
        _text(left, bottom + 14, "step 0"),
        _text(_WIDTH - 4, bottom + 14, f"{steps - 1}", "end"),
    ]
    used = dict.fromkeys(p for _, cells, _ in rows for p in cells)
    legend = "".join(
        f'<span><i style="background:{_COLOURS.get(p, "#000")}"></i>{escape(p)}</span>'
        for p in used
    )
    label = f"precision of {len(rows)} layers over {steps} steps"
    return f'<div class="legend">{legend}</div>' + _svg(_WIDTH, bottom + 20, label, "".join(body))


def memory_bars(groups: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Peak bytes by phase for each (name, phases)."""
    most = max((b for _, phases in groups for b in phases.values()), default=0)
    if not most:
        return '<p class="quiet">No memory was measured.</p>'
    body, y = [], 16.0
    for name, phases in groups:
        for phase, size in phases.items():
            width = (_WIDTH - 260) * size / most
            body.append(_text(150, y, f"{name}, {phase}", "end"))
            body.append(
                f'<rect class="bar" x="158" y="{y - 11:.1f}" width="{width:.1f}" height="14"/>'
            )
            body.append(_text(164 + width, y, f"{size / 2**30:.3f} GiB"))
            y += 22
        y += 6
    return _svg(_WIDTH, y - 8, "peak memory by phase", "".join(body))


def scatter(points: Sequence[tuple[str, float, float]]) -> str:
    """(label, GiB, dB) of measured runs."""
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([p[1] for p in points], 0.02), _range([p[2] for p in points])
    x0 = max(0.0, x0)
    left, right, top, bottom = 52.0, _WIDTH - 12.0, 12.0, 220.0
    body = [f'<line class="grid" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
            f'<line class="grid" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>']  # fmt: skip
    for label, gib, db in points:
        x = left + (gib - x0) / (x1 - x0) * (right - left)
        y = bottom - (db - y0) / (y1 - y0) * (bottom - top)
        title = escape(f"{label}: {gib:.2f} GiB, {db:.1f} dB")
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>')
    body += [_text(left, 238, f"{x0:.2f} GiB"), _text(right, 238, f"{x1:.2f} GiB", "end")]
    body += [_text(left - 6, top + 8, f"{y1:.0f} dB", "end")]
    body += [_text(left - 6, bottom, f"{y0:.0f}", "end")]
    return _svg(_WIDTH, 246, f"memory and quality of {len(points)} runs", "".join(body))
