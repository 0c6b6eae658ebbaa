"""Pictures of measurements, as SVG that takes its colors from the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from typing import Any

_COLORS = {
    "full": "#9ca3af", "int8": "#2563eb", "int6": "#0d9488", "int4": "#ea580c",
    "fp8": "#7c3aed",
    "computed": "#16a34a", "reused": "#d6d3d1", "mixed": "#a855f7", "not called": "#f3f4f6",
}  # fmt: skip
_MOST = 2000  # steps of one entry that are drawn


def _svg(height: float, label: str, body: str, left: float = 0, right: float = 0) -> str:
    """Return a picture as wide as the page allows: across it counts in percent, down in pixels.

    ``left`` and ``right`` are pixels beside it for text.
    """
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" height="{height:g}" '
        f'style="margin: 0 {right:g}px 0 {left:g}px; width: calc(100% - {left + right:g}px)">'
        f"{body}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", beside: float = 0) -> str:
    """Return text at ``x`` percent, ``beside`` pixels to the right."""
    return (
        f'<text x="{x:g}%" y="{y:g}" dx="{beside:g}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _beside(names: Iterable[str]) -> float:
    """Return the pixels that ``names`` take left of a picture, in a font of 12 pixels.

    The widest fonts that a page falls back to take 7 pixels a character.
    """
    return 12 + 7 * max((len(name) for name in names), default=0)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, more: str = "") -> str:
    return (
        f'<line class="{kind}" {more} x1="{x1:.3f}%" y1="{y1:.1f}" x2="{x2:.3f}%" y2="{y2:.1f}"/>'
    )


def psnr_plot(values: Sequence[float]) -> str:
    """Return PSNR in dB over frames.

    The line with the class ``cursor`` is moved by ``players.js``.
    """
    low, high = _range(values)
    top, bottom, step = 12.0, 150.0, 100 / max(len(values) - 1, 1)

    def down(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = []
    for value in (low, (low + high) / 2, high):
        parts.append(_line(0, down(value), 100, down(value), "grid"))
        parts.append(_text(0, down(value) + 4, f"{value:.1f}", "end", -8))
    for k, (a, b) in enumerate(pairwise(values)):
        parts.append(_line(k * step, down(a), (k + 1) * step, down(b), "curve"))
    parts += [
        f'<circle cx="{k * step:.3f}%" cy="{down(v):.1f}" r="3">'
        f"<title>frame {k}: {v:.2f} dB</title></circle>"
        for k, v in enumerate(values)
    ]
    parts.append(_line(0, top, 0, bottom, "cursor", f'data-step="{step:.6f}"'))
    parts += [_text(0, 170, "frame 0"), _text(100, 170, f"frame {len(values) - 1}", "end")]
    label = f"PSNR per frame, {min(values):.1f} to {max(values):.1f} dB"
    return _svg(178, label, "".join(parts), left=46, right=8)


def _range(values: Sequence[float], least: float = 2.0) -> tuple[float, float]:
    """Return limits of an axis, at least ``least`` wide."""
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), (least - (high - low)) / 2)
    return low - room, high + room


def precision_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """(site, precision that ran at each step, note) of a report's last run.

    Where steps were reused, the first row says which were not.
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
    """Spread a site's [number of steps, precision] out to what ran at each step, within limits."""
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
    """Return precision over layers (down) and steps (across)."""
    if not rows:
        return '<p class="quiet">The report does not say what ran at which step.</p>'
    steps, high = len(rows[0][1]), max(6.0, min(18.0, 480 / len(rows)))
    cell, body = 100 / max(steps, 1), []
    for row, (name, cells, note) in enumerate(rows):
        y, at = 4 + row * high, 0
        if high >= 10:
            body.append(_text(0, y + high * 0.75, name[-20:], "end", -8))
        for precision, group in groupby(cells):
            count = len(list(group))
            body.append(
                f'<rect x="{at * cell:.3f}%" y="{y:.2f}" width="{count * cell:.3f}%" '
                f'height="{high - 1:.2f}" fill="{_COLORS.get(precision, "#000")}">'
                f"<title>{escape(f'{name}, from step {at}: {precision}. {note}')}</title></rect>"
            )
            at += count
    bottom = 4 + len(rows) * high
    body += [_text(0, bottom + 14, "step 0"), _text(100, bottom + 14, f"{steps - 1}", "end")]
    used = dict.fromkeys(p for _, cells, _ in rows for p in cells)
    legend = "".join(
        f'<span><i style="background:{_COLORS.get(p, "#000")}"></i>{escape(p)}</span>' for p in used
    )
    label = f"precision of {len(rows)} layers over {steps} steps"
    left = _beside(name[-20:] for name, _, _ in rows) if high >= 10 else 8
    picture = _svg(bottom + 20, label, "".join(body), left=left, right=4)
    return f'<div class="legend">{legend}</div>{picture}'


def memory_bars(groups: Sequence[tuple[str, Mapping[str, int]]], limit: int = 0) -> str:
    """Return peak bytes by phase for each (name, phases), and a hollow bar of ``limit`` bytes."""
    most = max((b for _, phases in groups for b in phases.values()), default=0)
    if not most:
        return '<p class="quiet">No memory was measured.</p>'
    body, y = [], 16.0
    shown = [[(f"{name}, {phase}", size) for phase, size in phases.items()]
             for name, phases in groups]  # fmt: skip
    for rows in [*shown, *([[("at most", limit)]] if limit else [])]:
        for name, size in rows:
            width, kind = 100 * size / max(most, limit), "bar" if rows in shown else "limit"
            body.append(_text(0, y, name, "end", -8))
            body.append(
                f'<rect class="{kind}" x="0" y="{y - 11:.1f}" width="{width:.2f}%" height="14"/>'
            )
            body.append(_text(width, y, f"{size / 2**30:.3f} GiB", beside=6))
            y += 22
        y += 6
    left = _beside(name for rows in shown for name, _ in rows)
    return _svg(y - 8, "peak memory by phase", "".join(body), left=left, right=76)


def scatter(points: Sequence[tuple[str, float, float]]) -> str:
    """(label, GiB, dB) of measured runs."""
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([p[1] for p in points], 0.02), _range([p[2] for p in points])
    x0 = max(0.0, x0)
    top, bottom = 12.0, 220.0
    body = [_line(0, bottom, 100, bottom, "grid"), _line(0, top, 0, bottom, "grid")]
    for label, gib, db in points:
        x, y = 100 * (gib - x0) / (x1 - x0), bottom - (db - y0) / (y1 - y0) * (bottom - top)
        title = escape(f"{label}: {gib:.2f} GiB, {db:.1f} dB")
        body.append(f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="5"><title>{title}</title></circle>')
    body += [_text(0, 238, f"{x0:.2f} GiB"), _text(100, 238, f"{x1:.2f} GiB", "end")]
    body += [_text(0, top + 8, f"{y1:.0f} dB", "end", -8), _text(0, bottom, f"{y0:.0f}", "end", -8)]
    label = f"memory and quality of {len(points)} runs"
    return _svg(246, label, "".join(body), left=46, right=12)
