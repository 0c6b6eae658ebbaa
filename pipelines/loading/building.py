"""Builds a pipeline of what a source and the options say; they are checked already."""

from __future__ import annotations

from typing import Any

import torch

from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.overrides import loaded, overrides, whole_pipeline
from accel.pipelines.loading.scheduler import with_scheduler
from accel.pipelines.loading.source import Source
from accel.pipelines.loading.weights import kinds, pipeline_configuration


def built(source: Source, options: LoadOptions, dtype: torch.dtype) -> Any:
    """Return the pipeline, its weights in host memory or wherever they were quantized."""
    import diffusers

    cls = getattr(diffusers, source.pipeline)
    given = {one.name: loaded(source, one, options, dtype) for one in overrides(source, options)}
    if whole_pipeline(source):
        pipe = cls.from_single_file(
            str(source.file), config=str(source.folder), dtype=dtype, local_files_only=True, **given
        )
    else:
        pipe = cls.from_pretrained(
            str(source.folder), dtype=dtype, use_safetensors=True, variant=options.variant,
            quantization_config=pipeline_configuration(source, kinds(source, options), dtype),
            **given,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if options.scheduler:
        pipe.scheduler = with_scheduler(pipe.scheduler, options.scheduler)
    if options.compile == "blocks":
        compile_blocks(pipe)
    return pipe


def compile_blocks(pipe: Any) -> None:
    """Compile the repeated blocks of each denoiser by diffusers' own way."""
    from accel.core.structure import denoisers

    found: dict[str, Any] = {**denoisers(pipe)}
    for denoiser in found.values():
        denoiser.compile_repeated_blocks()
