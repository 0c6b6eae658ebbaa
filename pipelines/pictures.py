"""Pictures of what was measured: heat maps over sites and steps, and strips of frames."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from accel.calibration.choose import Choice
from accel.calibration.table import ErrorTable

GAIN = 8  # of differences, which are small
CELL, LINE, LABEL = 14, 16, 190
LIMITS = (1e-3, 1.0)  # relative L1 errors at both ends of the scale, which is logarithmic
COLORS = {
    "full": (236, 236, 236), "int8": (120, 178, 224), "int6": (244, 200, 92),
    "int4": (222, 96, 74), "fp8": (150, 120, 200),
}  # fmt: skip


def heat_map(table: ErrorTable, choice: Choice | None = None) -> Image.Image:
    """Draw the relative L1 error of each precision at every site (down) and step (across).

    Dark is worse; with a ``choice`` also the precision that it takes there.
    """
    panels = [(p, _shades(table.mean("l1", p))) for p in table.precisions]
    if choice is not None:
        colors = np.array([[COLORS[p] for p in row] for row in choice], np.uint8)
        panels.append(("chosen", colors))
    steps, sites = len(table.sigmas), len(table.sites)
    width, top = steps * CELL + CELL, 2 * LINE
    page = Image.new("RGB", (LABEL + width * len(panels), top + sites * CELL + 3 * LINE), "white")
    pen = ImageDraw.Draw(page)
    for i, site in enumerate(table.sites):
        pen.text((4, top + i * CELL), site[-30:], fill="black")
    for k, (name, cells) in enumerate(panels):
        left = LABEL + k * width
        pen.text((left, LINE - 4), name, fill="black")
        image = Image.fromarray(cells).resize(
            (steps * CELL, sites * CELL), Image.Resampling.NEAREST
        )
        page.paste(image, (left, top))
    _legend(pen, top + sites * CELL + LINE // 2, choice is not None)
    return page


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``GAIN`` times the distance of uint8 videos [F, H, W, 3], cut at white."""
    apart = np.abs(a.astype(np.int16) - b.astype(np.int16)) * GAIN
    return np.minimum(apart, 255).astype(np.uint8)


def frame_strip(
    reference: np.ndarray, video: np.ndarray, *, shown: int = 5, enlarge: int = 2
) -> Image.Image:
    """Frames of two uint8 videos [F, H, W, 3] over each other, and ``GAIN`` times their difference.

    Raises ValueError for videos of different shape.
    """
    if reference.shape != video.shape:
        raise ValueError(f"videos of different shape: {reference.shape} and {video.shape}")
    index = np.linspace(0, len(video) - 1, min(shown, len(video))).round().astype(int)
    rows = (reference, video, difference(reference, video))
    image = Image.fromarray(np.concatenate([np.concatenate(list(r[index]), 1) for r in rows], 0))
    return image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.NEAREST)


def _shades(errors: np.ndarray) -> np.ndarray:
    """Return white to dark red over ``LIMITS``, uint8 [S, N, 3]; white for NaN."""
    low, high = np.log(LIMITS)
    x = (np.log(np.fmax(errors, LIMITS[0])) - low) / (high - low)
    x = np.clip(x, 0, 1)[..., None]
    return (255 - x * np.array([115.0, 235.0, 235.0])).round().astype(np.uint8)


def _legend(pen: ImageDraw.ImageDraw, y: int, chosen: bool) -> None:
    for i in range(100):
        error = LIMITS[0] * (LIMITS[1] / LIMITS[0]) ** (i / 99)
        shade = tuple(_shades(np.array([[error]]))[0, 0].tolist())
        pen.rectangle((LABEL + i, y, LABEL + i + 1, y + 10), fill=shade)
    pen.text((LABEL + 106, y), f"relative L1, {LIMITS[0]:g} to {LIMITS[1]:g}", fill="black")
    for i, (name, color) in enumerate(COLORS.items() if chosen else ()):
        x = LABEL + i * 70
        pen.rectangle((x, y + LINE, x + 10, y + LINE + 10), fill=color, outline="black")
        pen.text((x + 14, y + LINE), name, fill="black")
