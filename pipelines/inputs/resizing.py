"""Brings a picture to a size: ``crop`` keeps its middle, ``pad`` adds black, or ``stretch``."""

from __future__ import annotations

from PIL import Image

Size = tuple[int, int]  # width, height


def scaled_size(size: Size, target: Size, fit: str) -> Size:
    """Return the size to which a picture is scaled before it is cropped or padded to ``target``."""
    if fit == "stretch":
        return target
    ratios = [t / s for t, s in zip(target, size, strict=True)]
    scale = max(ratios) if fit == "crop" else min(ratios)
    width, height = (max(round(s * scale), 1) for s in size)
    if fit == "crop":
        return max(width, target[0]), max(height, target[1])
    return min(width, target[0]), min(height, target[1])


def fitted(image: Image.Image, target: Size | None, fit: str) -> Image.Image:
    """Return a picture at ``target``: its middle, or all of it on black, or stretched.

    The levels of a mask stay what they are, so that no new ones appear between black and white.
    """
    if target is None or image.size == target:
        return image
    scaled = scaled_size(image.size, target, fit)
    how = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.LANCZOS
    return placed(image.resize(scaled, how) if scaled != image.size else image, target)


def placed(image: Image.Image, target: Size) -> Image.Image:
    """Return a picture cropped to, or in the middle of black at, ``target``."""
    if image.size == target:
        return image
    left, top = (
        (t - s) // 2 if t > s else -((s - t) // 2) for t, s in zip(target, image.size, strict=True)
    )
    out = Image.new(image.mode, target)
    out.paste(image, (left, top))
    return out


def how_fitted(size: Size, target: Size | None, fit: str) -> str:
    """Return in words what ``fitted`` does to a picture of ``size``."""
    if target is None or size == target:
        return "as it is"
    word = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[fit]
    scaled = scaled_size(size, target, fit)
    change = "scaled" if scaled == target else word
    if fit == "stretch" and size[0] * target[1] == size[1] * target[0]:
        change = "scaled"
    return f"{change} from {size[0]} x {size[1]} to {target[0]} x {target[1]}"
