"""Let a VAE decode in diffusers' own tiles, which need less memory and change the picture."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any


def can_tile(vae: Any) -> bool:
    """Return whether a VAE has tiles."""
    return callable(getattr(vae, "enable_tiling", None))


def apply_tiles(vae: Any, undo: ExitStack) -> str:
    """Turn tiles on, put on ``undo`` what turns them off again, and return a note for reports."""
    if not can_tile(vae):
        return "the VAE has no tiles; it decodes as without them"
    before = dict(vars(vae))
    vae.enable_tiling()
    changed = [name for name, value in vars(vae).items() if before.get(name, vae) is not value]

    def back() -> None:
        for name in changed:
            if name in before:
                setattr(vae, name, before[name])
            else:
                delattr(vae, name)

    undo.callback(back)
    return "the VAE decodes in tiles, which changes the picture a little"
