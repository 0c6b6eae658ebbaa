"""Loads a pipeline with its weights where a placement says, within its peak while loading too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core.run_log import logger
from accel.memory.placement import Placement
from accel.memory.ways import Way
from accel.pipelines.loading.class_names import LIBRARIES
from accel.pipelines.loading.offload import kind_of, offload
from accel.pipelines.stored_tensors import NotStreamable, stored
from accel.pipelines.streamed import Turns, skeleton


def place(
    source: Path,
    placement: Placement,
    *,
    device: torch.device,
    dtype: torch.dtype,
    pipeline: str | None = None,
    variant: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Return a pipeline whose weights lie where ``placement`` says.

    Args:
        source: Folder of a stored pipeline.
        placement: What was decided.
        device: Where it computes.
        dtype: Of its weights and activations.
        pipeline: Name of diffusers' pipeline class, if not that of the folder.
        variant: Of the files, such as "fp16".
        given: Components that are loaded already.

    Raises:
        NotStreamable: A component must be read piece by piece and cannot be.
    """
    import diffusers

    cls = diffusers.DiffusionPipeline if pipeline is None else getattr(diffusers, pipeline)
    index = diffusers.DiffusionPipeline.load_config(str(source))
    parts = dict(given or {})
    options = {"dtype": dtype, **({"variant": variant} if variant else {})}
    turns = None
    if placement.way in READ:
        turns = Turns(device)
        parts |= _read_in_turn(source, index, placement, turns, dtype, variant, parts)
    pipe = assembled(cls, source, index, parts, options)
    pipe.set_progress_bar_config(disable=True)
    if turns is None:
        offload(pipe, placement.way, device, pinned=placement.pinned)
    else:
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and not turns.has(name):
                part.to(device)
    return pipe


def assembled(
    cls: Any,
    source: Path,
    index: Mapping[str, Any],
    parts: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Return a stored pipeline with ``parts`` in place of its own components, which are not read.

    diffusers 0.42 reads and takes the stored component although another is passed, where the
    pipeline's class could do without (Wan's transformer). So it is shown an index without them.
    """
    if not parts:
        return cls.from_pretrained(str(source), **options)
    with tempfile.TemporaryDirectory() as folder:
        others = {name: [None, None] if name in parts else index[name] for name in index}
        Path(folder, "model_index.json").write_text(json.dumps(others))
        for path in source.iterdir():
            if path.name not in ("model_index.json", *parts):
                Path(folder, path.name).symlink_to(path.resolve())
        pipe = cls.from_pretrained(folder, **options, **parts)
    pipe.register_to_config(_name_or_path=str(source))
    return pipe


# ----------------------------------------------------------------------------------- read in turn

# Which components stay together, by kind: the same word for those that do.
READ = {
    Way.ENCODER_FIRST: {"encoder": "encoders", "denoiser": "rest", "other": "rest"},
    Way.TURNS: {"encoder": "", "denoiser": "", "other": ""},
    Way.DISK: {"encoder": "", "denoiser": "", "other": ""},
}


def _read_in_turn(
    source: Path,
    index: Mapping[str, Any],
    placement: Placement,
    turns: Turns,
    dtype: torch.dtype,
    variant: str | None,
    given: Mapping[str, Any],
) -> dict[str, nn.Module]:
    """Return the components that are read when they run, without their weights."""
    found: dict[str, nn.Module] = {}
    for name, entry in index.items():
        if name in given or not isinstance(entry, (list, tuple)) or entry[0] not in LIBRARIES:
            continue
        folder, cls = source / name, getattr(import_module(entry[0]), entry[1], None)
        if not isinstance(cls, type) or not issubclass(cls, nn.Module):
            continue  # a scheduler or a tokenizer
        kind = kind_of(name)
        blocks = placement.way is Way.DISK and kind != "other"
        try:
            entries = stored(folder, variant)
            module = skeleton(cls, folder, dtype)
            staying = placement.blocks if kind == "denoiser" else 0
            group = READ[placement.way][kind] or name
            turns.add(name, module, entries, group, blocks=blocks, staying=staying)
        except NotStreamable as error:
            if kind != "other":
                raise
            logger.warning("%s is loaded whole: %s", name, error)
            continue
        found[name] = module
    return found
