"""Every tiny pipeline by a short name, with the job that it renders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from helpers import tiny_images, tiny_videos
from helpers.tiny_recipe import Recipe

RECIPES: dict[str, Recipe] = {**tiny_videos.RECIPES, **tiny_images.RECIPES}


@contextmanager
def small_edits(side: int = 32) -> Iterator[None]:
    """Pipelines that edit bring a picture to a megapixel; here to the least they can take."""
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(side, side)])
        patch.setattr(edit, "calculate_dimensions", lambda area, ratio: (side, side, None))
        patch.setattr(plus, "VAE_IMAGE_SIZE", side**2)
        patch.setattr(plus, "CONDITION_IMAGE_SIZE", side**2)
        yield
