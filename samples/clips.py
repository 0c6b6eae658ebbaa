"""Procedural clips with exact optical flow, on which the embedded model was trained.

A clip is a textured background with one or two textured shapes on it. Every layer has a texture
that is a function of its own canonical coordinates ``u`` (pixels, origin at the layer's center),
and an affine path

    p = c + o(k) + s(k) R(theta(k)) u        at frame k

so the flow of a pixel from frame k to k + 1 is known in closed form: take the layer that is on top
there, map the pixel back to ``u`` at frame k and forward again at frame k + 1. No estimator is
involved. The caption names colors, shapes and the pattern of the background, never the motion:
motion can only be learned from the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.14),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.96, 0.90, 0.20),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.15, 0.30, 0.90),
    "purple": (0.60, 0.20, 0.75),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.50),
}
SHAPES = ("circle", "square", "triangle", "crescent")
# Textures: shortest and longest period (pixels), spread of the waves' directions (half turns).
FIELDS = {
    "striped": (15.0, 21.0, 0.2),
    "mottled": (16.0, 24.0, 1.0),
    "dotted": (15.0, 22.0, 1.0),
    "cloudy": (14.0, 40.0, 1.0),
}
PATTERNS = tuple(FIELDS)
WAVES = 16  # number of waves in a field
# Pixels, for one shape and for each of two: a crescent must be several latent pixels wide to show.
RADIUS = {1: (14.0, 20.0), 2: (11.0, 15.0)}


@dataclass(frozen=True)
class Path:
    """Affine path of one layer; velocities are per frame (pixels, log scale, radians)."""

    center: tuple[float, float]
    velocity: tuple[float, float]
    zoom: float
    spin: float
    turn: float = 0.0  # 0: constant speed; 1: slows to a stop halfway and comes back

    def progress(self, k: float) -> float:
        """Return the frames of motion done at frame ``k`` of a 17-frame clip.

        That is ``k`` for constant speed.
        """
        swing = 16.0 / math.pi * math.sin(math.pi * k / 16.0)
        return (1.0 - self.turn) * k + self.turn * swing

    def inverse(self, p: np.ndarray, k: float) -> np.ndarray:
        """Return canonical points for screen points [..., 2] (x, y) in pixels at frame ``k``."""
        t = self.progress(k)
        q = p - np.asarray(self.center) - t * np.asarray(self.velocity)
        c, s = math.cos(self.spin * t), math.sin(self.spin * t)
        out = np.stack([c * q[..., 0] + s * q[..., 1], -s * q[..., 0] + c * q[..., 1]], -1)
        return out * math.exp(-self.zoom * t)

    def forward(self, u: np.ndarray, k: float) -> np.ndarray:
        """Return screen points for canonical points [..., 2] in pixels at frame ``k``."""
        t = self.progress(k)
        c, s = math.cos(self.spin * t), math.sin(self.spin * t)
        q = np.stack([c * u[..., 0] - s * u[..., 1], s * u[..., 0] + c * u[..., 1]], -1)
        return q * math.exp(self.zoom * t) + np.asarray(self.center) + t * np.asarray(self.velocity)


@dataclass(frozen=True)
class Layer:
    """One object that moves.

    ``shape`` is a name in SHAPES, or None for the background. ``size`` is in pixels.
    """

    path: Path
    color: str
    pattern: str
    shape: str | None
    size: float
    phase: tuple[float, float, float]


@dataclass(frozen=True)
class Clip:
    """A clip with its flow.

    ``frames`` are [F, H, W, 3] in 0..1; the flows are [F - 1, 2, H, W] in pixels (dx, dy).
    """

    frames: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    caption: str


@lru_cache(maxsize=64)
def _waves(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return wave vectors [2, N] (radians per pixel) and phases [N] of a layer's random field."""
    rng = np.random.default_rng([int(2**32 * p) for p in layer.phase])
    low, high, spread = FIELDS[layer.pattern]
    period = rng.uniform(low, high, WAVES)
    angle = math.pi * layer.phase[1] + spread * math.pi * rng.uniform(-0.5, 0.5, WAVES)
    vectors = 2 * math.pi / period * np.stack([np.cos(angle), np.sin(angle)])
    return vectors.astype(np.float32), rng.uniform(0, 2 * math.pi, WAVES).astype(np.float32)


def _texture(layer: Layer, u: np.ndarray) -> np.ndarray:
    """Return the brightness in 0..1 at canonical points ``[..., 2]``.

    It is a random field of unit variance with periods of 14 to 40 px, passed through a curve. Some
    periods away the field is independent, as in most natural textures, so a small model can draw
    it.
    """
    vectors, phases = _waves(layer)
    field = np.cos(u.astype(np.float32) @ vectors + phases).sum(-1) * (2 / WAVES) ** 0.5
    if layer.pattern == "cloudy":
        return 0.5 + 0.22 * field
    if layer.pattern == "dotted":
        return 1.0 / (1.0 + np.exp(-5.0 * (field - 0.8)))
    return 0.5 + 0.5 * np.tanh(2.0 * field)


def _distance(shape: str, size: float, u: np.ndarray) -> np.ndarray:
    """Return the signed distance in canonical pixels, negative inside."""
    x, y = u[..., 0], u[..., 1]
    if shape == "circle":
        return np.hypot(x, y) - size
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * size
    if shape == "triangle":
        return np.maximum(np.abs(x) * 0.866 - 0.5 * y, y) - 0.62 * size
    # A crescent: a disc less a smaller one above it, with its center of mass in the middle.
    y = y + 0.39 * size
    return np.maximum(np.hypot(x, y) - 1.2 * size, 0.9 * size - np.hypot(x, y + 0.7 * size))


def _outline(layer: Layer, u: np.ndarray, k: float) -> np.ndarray:
    """Return the signed distance of canonical points from an outline, in screen pixels."""
    scale = math.exp(layer.path.zoom * layer.path.progress(k))
    return _distance(layer.shape, layer.size, u) * scale


def shape_distance(layer: Layer, points: np.ndarray, k: float) -> np.ndarray:
    """Return the signed distance in pixels of screen points [..., 2] from an outline at frame k."""
    return _outline(layer, layer.path.inverse(points, k), k)


def _inside(d: np.ndarray) -> np.ndarray:
    """Return 1 well inside an outline (``d`` negative) to 0 well outside, over about two pixels."""
    return 1.0 / (1.0 + np.exp(np.clip(3.0 * d, -30, 30)))


def _draw(layer: Layer, points: np.ndarray, k: float) -> tuple[np.ndarray, np.ndarray]:
    """Return color ``[H, W, 3]`` and coverage ``[H, W]`` of a layer at frame ``k``."""
    u = layer.path.inverse(points, k)
    base = np.asarray(COLORS[layer.color])
    light = _texture(layer, u)[..., None]
    if layer.shape is None:
        return base * (0.30 + 0.45 * light), np.ones(points.shape[:-1])
    d = _outline(layer, u, k)
    edge = _inside(-(d + 2.0))[..., None]
    return base * (0.80 + 0.25 * light) * (1.0 - 0.75 * edge), _inside(d)


def whereabouts(layers: list[Layer], points: np.ndarray, frames: Sequence[int]) -> np.ndarray:
    """Return where the contents of ``points`` [N, 2] in each frame are in each other, [F, F, N, 2].

    Entry ``[i, j]`` is the position in frame ``frames[j]`` of what ``points`` show in
    ``frames[i]``. It is NaN where something else covers it by then.
    """
    found = np.full((len(frames), len(frames), *points.shape), np.nan)
    for i, start in enumerate(frames):
        top = _top(layers, points, start)
        for n, layer in enumerate(layers):
            here = top == n
            u = layer.path.inverse(points[here], start)
            for j, end in enumerate(frames):
                there = layer.path.forward(u, end)
                there[_top(layers, there, end) != n] = np.nan
                found[i, j, here] = there
    return found


def _top(layers: list[Layer], points: np.ndarray, k: int) -> np.ndarray:
    """Return the index of the layer that is seen at each point in frame ``k``."""
    top = np.zeros(points.shape[:-1], int)
    for n, layer in enumerate(layers):
        if layer.shape is None:
            top[:] = n
        else:
            top[_inside(shape_distance(layer, points, k)) > 0.5] = n
    return top


def pixels(height: int, width: int) -> np.ndarray:
    """Return the coordinates (x, y) of the pixels of a frame, [H, W, 2]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.stack([x, y], -1)


def picture(layers: list[Layer], points: np.ndarray, k: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what is seen at ``points`` [H, W, 2] in frame ``k``, and the layer it belongs to.

    The picture is [H, W, 3] in 0..1; the layer is an index into ``layers``, [H, W].
    """
    image, top = np.zeros((*points.shape[:-1], 3)), np.zeros(points.shape[:-1], int)
    for n, layer in enumerate(layers):
        color, cover = _draw(layer, points, k)
        image += cover[..., None] * (color - image)
        top[cover > 0.5] = n
    return np.clip(image, 0, 1), top


def render(
    layers: list[Layer], caption: str, *, frames: int = 17, height: int = 64, width: int = 64
) -> Clip:
    """Draw ``layers`` (bottom first) with the exact flow of the top layer at every pixel."""
    points = pixels(height, width)
    images = np.empty((frames, height, width, 3), np.float32)
    forward = np.empty((frames - 1, 2, height, width), np.float32)
    backward = np.empty_like(forward)
    for k in range(frames):
        images[k], top = picture(layers, points, k)
        ahead, behind = np.zeros_like(points), np.zeros_like(points)
        for n, layer in enumerate(layers):
            here = top == n
            u = layer.path.inverse(points[here], k)
            ahead[here] = layer.path.forward(u, k + 1) - points[here]
            behind[here] = layer.path.forward(u, k - 1) - points[here]
        if k < frames - 1:
            forward[k] = ahead.transpose(2, 0, 1)
        if k > 0:
            backward[k - 1] = behind.transpose(2, 0, 1)
    return Clip(images, forward, backward, caption)


def _path(rng: np.random.Generator, center: tuple[float, float], speed: float) -> Path:
    angle = rng.uniform(0, 2 * math.pi)
    v = speed * math.sqrt(rng.uniform(0, 1))
    moves = rng.random(3)
    return Path(
        center,
        (v * math.cos(angle), v * math.sin(angle)),
        zoom=rng.uniform(-0.03, 0.03) if moves[0] < 0.5 else 0.0,
        spin=rng.uniform(-0.06, 0.06) if moves[1] < 0.5 else 0.0,
        turn=1.0 if moves[2] < 0.2 else 0.0,
    )


def _shape(rng: np.random.Generator, color: str, radius: float, speed: float, size: int) -> Layer:
    """Return a random shape that stays in the picture; its size halfway is ``radius`` pixels."""
    edge, margin = 0.9 * radius, 0.6 * radius
    while True:
        center = tuple(float(c) for c in rng.uniform(edge, size - edge, 2))
        path = _path(rng, center, speed)
        stops = np.stack([path.forward(np.zeros(2), k) for k in (8, 16)])
        if stops.min() >= margin and stops.max() <= size - margin:
            break
    shape = str(rng.choice(SHAPES))
    first = radius * math.exp(-path.zoom * path.progress(8))
    return Layer(path, color, "cloudy", shape, first, tuple(rng.random(3)))


def sample_layers(
    rng: np.random.Generator, size: int = 64, *, speed: float = 2.5
) -> tuple[list[Layer], str]:
    """Return the layers of a random clip, bottom first, and its caption.

    They move by up to ``speed`` pixels a frame.
    """
    colors = list(rng.permutation(list(COLORS)))
    ground, pattern = colors.pop(), str(rng.choice(PATTERNS))
    still = rng.random() < 0.15
    path = _path(rng, (size / 2, size / 2), 0.0 if still else speed)
    if still:
        path = Path(path.center, (0.0, 0.0), 0.0, 0.0)
    layers = [Layer(path, ground, pattern, None, 0.0, tuple(rng.random(3)))]
    count = 1 if rng.random() < 0.6 else 2
    for _ in range(count):
        radius = rng.uniform(*RADIUS[count])
        layers.append(_shape(rng, colors.pop(), float(radius), speed, size))
    names = [f"a {layer.color} {layer.shape}" for layer in layers[1:]]
    return layers, f"{' and '.join(names)} on a {pattern} {ground} background"


def sample_clip(seed: int, *, frames: int = 17, size: int = 64) -> Clip:
    """Return the clip of a seed: same seed, same clip."""
    layers, caption = sample_layers(np.random.default_rng(seed), size)
    return render(layers, caption, frames=frames, height=size, width=size)
