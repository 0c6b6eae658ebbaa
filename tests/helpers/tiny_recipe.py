"""A tiny pipeline and the job that it renders, with the files that such jobs name.

A job names files by what they hold: PICTURE, LAST, MASK, CLIP, POSE, FACE, EDGES, SUBJECT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

IMAGE = {
    "model": "./none",
    "prompt": "a red circle moves left",
    "steps": 2,
    "width": 32,
    "height": 32,
}
VIDEO = {**IMAGE, "frames": 5}


@dataclass(frozen=True)
class Recipe:
    """A pipeline's factory, and the job that it renders.

    ``whole``: no part of it is a stand-in, so that it can be stored and loaded.
    """

    build: Callable[[], Any]
    job: dict[str, Any]
    whole: bool = True

    def __call__(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline, the same every time."""
        torch.manual_seed(0)
        pipe = self.build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(dtype)


def write_files(folder: Path) -> dict[str, str]:
    """Write every kind of input into a folder; their paths by name."""
    random = np.random.default_rng(0)
    paths = {}
    for name in ("PICTURE", "LAST", "MASK", "EDGES", "SUBJECT"):
        levels = random.integers(0, 256, (5, 7, 3), np.uint8)
        image = Image.fromarray(levels).resize((90, 70), Image.Resampling.BICUBIC)
        if name == "MASK":
            image = Image.new("L", (90, 70))
            image.paste(255, (20, 10, 60, 40))
        image.save(folder / f"{name.lower()}.png")
        paths[name] = str(folder / f"{name.lower()}.png")
    for name in ("CLIP", "POSE", "FACE"):
        (folder / name.lower()).mkdir()
        start, end = random.integers(0, 256, (2, 40, 60, 3), np.uint8).astype(float)
        for n in range(12):
            levels = start + (end - start) * n / 11
            Image.fromarray(levels.astype(np.uint8)).save(folder / name.lower() / f"{n:02}.png")
        paths[name] = str(folder / name.lower())
    return paths


def with_files(value: Any, paths: dict[str, str]) -> Any:
    """A job with the names of files replaced by their paths."""
    if isinstance(value, dict):
        return {k: with_files(v, paths) for k, v in value.items()}
    if isinstance(value, list):
        return [with_files(v, paths) for v in value]
    return paths.get(value, value) if isinstance(value, str) else value


def job_with(recipe: Recipe, paths: dict[str, str], **changes: Any) -> dict[str, Any]:
    """The recipe's job with the paths of its files, and with these changes."""
    return {**with_files(recipe.job, paths), **changes}
