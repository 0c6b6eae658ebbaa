"""The models of the step rehash benchmarks: how each is loaded, called and looked into.

``wan`` is the embedded one. ``dit`` and ``unet`` are small models of pictures, trained by
``samples/train_images.py``. Prompts and seeds were trained on by none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel.pipelines.load import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))
from clips import PATTERNS, SHAPES

SAMPLES = Path(sys.path[0])
Job = dict[str, Any]
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
WAN_PARTS = (r"blocks\.\d+\.attn1", r"blocks\.\d+\.attn2", r"blocks\.\d+\.ffn")
FLUX_PARTS = (
    r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
    r"single_transformer_blocks\.\d+\.(attn|proj_mlp)",
)


@dataclass(frozen=True)
class Model:
    """A model by its short name.

    ``source`` is what ``load`` takes, ``denoiser`` the pipeline's attribute. ``arguments`` gives
    those of a call at a scale of guidance. ``parts`` are the modules whose outputs TaylorSeer
    keeps; none: the denoiser has no ``enable_cache`` and no cache of blocks runs on it.
    """

    name: str
    source: str
    denoiser: str
    arguments: Callable[[float], Job]
    parts: tuple[str, ...] = ()

    def jobs(self, count: int, steps: int, first: int, guidance: float = 3.0) -> list[Job]:
        """Jobs with captions like those of the training, seeds from ``first``."""
        rng = np.random.default_rng(first)
        jobs = []
        for i in range(count):
            a, b = rng.choice(COLORS, 2, replace=False)
            prompt = f"a {a} {rng.choice(SHAPES)} on a {rng.choice(PATTERNS)} {b} background"
            job = {"prompt": prompt, "seed": first + i, "num_inference_steps": steps}
            jobs.append({**job, **self.arguments(guidance)})
        return jobs

    def load(self) -> Any:
        """The pipeline, without a progress bar."""
        pipe = load(self.source)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _wan(guidance: float) -> Job:
    size = {"height": 64, "width": 64, "num_frames": 17}
    return {**size, "guidance_scale": guidance, "max_sequence_length": 64}


def _dit(guidance: float) -> Job:
    """FLUX hides the scale of its two branches; the one it shows does nothing in this model."""
    scales = {"true_cfg_scale": guidance, "guidance_scale": guidance}
    return {"height": 32, "width": 32, **scales, "negative_prompt": "", "max_sequence_length": 16}


def _unet(guidance: float) -> Job:
    return {"height": 32, "width": 32, "guidance_scale": guidance}


MODELS = {
    "wan": Model("wan", "tiny", "transformer", _wan, WAN_PARTS),
    "dit": Model("dit", str(SAMPLES / "tiny-dit"), "transformer", _dit, FLUX_PARTS),
    "unet": Model("unet", str(SAMPLES / "tiny-unet"), "unet", _unet),
}


def denoiser_of(pipe: Any) -> Any:
    """The module that a pipeline calls in each step."""
    found = getattr(pipe, "transformer", None)
    return pipe.unet if found is None else found
