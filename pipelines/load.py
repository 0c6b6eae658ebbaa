"""Opens a diffusers pipeline by the embedded name ``tiny``, a folder, or a hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TINY = "tiny"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Defaults:
    """Settings a job leaves out.

    None: the pipeline's own default.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    fps: float = 16.0


def defaults(model: str) -> Defaults:
    """Return default settings for a model; the embedded one was trained at 64 x 64, 17 frames."""
    return Defaults(64, 64, 17, 20, 2.0, 8.0) if model == TINY else Defaults()


def tiny_folder() -> Path:
    """Return folder of the embedded model, in a checkout or inside the installed package."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "samples" / "tiny-wan", here / "tiny-wan"):
        if (folder / "model_index.json").is_file():
            return folder
    raise FileNotFoundError(
        "the embedded model samples/tiny-wan is missing; reinstall accel-diffusion or run "
        "python samples/train_tiny.py all"
    )


def load(model: str = TINY, *, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """Return a diffusers pipeline.

    ``model``: "tiny" (embedded, no network), a folder written by ``save_pretrained``, or a hub id
    ``owner/name``. ``device`` defaults to cuda where there is one; ``dtype`` to bf16 there and fp32
    on a CPU.

    Raises FileNotFoundError for a folder that is missing or holds no pipeline, OSError if the hub
    cannot be reached or has no such model.
    """
    from diffusers import DiffusionPipeline

    source = _source(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _source(model: str) -> str:
    """Return folder or hub id for ``model``, after checking what can be checked without loading."""
    return str(local_folder(model) or model)


def local_folder(model: str) -> Path | None:
    """Return folder of ``model``, None for a hub id.

    Raises FileNotFoundError for anything else.
    """
    if model == TINY:
        return tiny_folder()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{model} is a folder without model_index.json, so not a diffusers pipeline; give "
                "the folder that save_pretrained wrote"
            )
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(
            f"no model {model!r}: not 'tiny', not an existing folder, not a hub id like owner/name"
        )
    return None
