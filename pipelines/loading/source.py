"""Where a model lies: its folder, its index and its pipeline class, before a weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accel.core.validate import did_you_mean
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.paths import user_path

TINY = "tiny"
INDEX = "model_index.json"
SINGLE = (".safetensors", ".gguf")  # files that hold a model in one piece
OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A model whose index is read.

    Args:
        model: As the job names it.
        folder: The folder of the pipeline; of a hub model its snapshot.
        file: A single-file checkpoint, whose other components come from ``folder``.
        index: What ``model_index.json`` holds.
        pipeline: Name of diffusers' pipeline class.
    """

    model: str
    folder: Path
    file: Path | None
    index: Mapping[str, Any]
    pipeline: str

    @cached_property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of each component that the index names."""
        lists = {k: v for k, v in self.index.items() if not k.startswith("_")}
        entries = {k: v for k, v in lists.items() if isinstance(v, list) and len(v) == 2}
        return {k: (str(v[0]), str(v[1])) for k, v in entries.items() if v[0] is not None}

    def models(self) -> dict[str, tuple[str, str]]:
        """Return library and class of the components that have weights."""
        return {k: v for k, v in self.components.items() if _has_weights(self.folder / k, v[1])}


def _has_weights(folder: Path, class_name: str) -> bool:
    kinds, name = ("tokenizer", "processor", "featureextractor", "scheduler"), class_name.lower()
    return not any(kind in name for kind in kinds) and (folder / "config.json").is_file()


def tiny_folder() -> Path:
    """Return folder of the embedded model, in a checkout or inside the installed package."""
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1] / "samples" / "tiny-wan", here.parent / "tiny-wan"):
        if (folder / INDEX).is_file():
            return folder
    raise FileNotFoundError(
        "the embedded model samples/tiny-wan is missing; reinstall accel-diffusion or run "
        "python samples/train_tiny.py all"
    )


def local_folder(model: str) -> Path | None:
    """Return folder of ``model``, None for a hub id or a single file.

    Raises FileNotFoundError for anything else.
    """
    if model == TINY:
        return tiny_folder()
    folder = user_path(model)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(
                f"{model} is a folder without {INDEX}, so not a diffusers pipeline; give "
                "the folder that save_pretrained wrote"
            )
        return folder
    if folder.is_file():
        single_file(model)
        return None
    if folder.is_absolute() or model.startswith((".", "~")) or not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(
            f"no model {model!r}: not 'tiny', not an existing folder, not a hub id like owner/name"
        )
    return None


def single_file(model: str) -> Path | None:
    """Return the file that ``model`` is, None if it is none.

    Raises FileNotFoundError for a file of another kind.
    """
    file = user_path(model)
    if not file.is_file():
        return None
    if file.suffix.lower() not in SINGLE:
        raise FileNotFoundError(
            f"{model} is no model that accel reads: a file must end in {' or '.join(SINGLE)}"
        )
    return file


def is_local(model: str, options: LoadOptions) -> bool:
    """Tell whether what a model needs to be looked at is here, or is known to be missing."""
    where = options.config if single_file(model) else model
    return where is None or local_folder(where) is not None


def resolve(model: str, options: LoadOptions) -> Source:
    """Return where a model lies; one of the hub is downloaded if it is not here.

    Raises:
        FileNotFoundError: There is no such model.
        OSError: The hub cannot be reached or has no such model.
        ValueError: Its index is broken, or names code that is not diffusers' own.
    """
    file = single_file(model)
    if file is None:
        folder = local_folder(model)
        if options.config is not None:
            raise ValueError(
                f"load config is for a model that is a single file; {model} is "
                f"{'a folder' if folder else 'a hub id'} and has its own, so leave config out"
            )
    elif options.config is None:
        raise ValueError(
            f"{model} holds weights alone: name the folder with its configurations and other "
            "components, load: {config: FOLDER}"
        )
    else:
        folder = local_folder(options.config)
    where = model if file is None else options.config or ""
    index = _index(where, folder, options)
    name = pipeline_name(where, index, options)
    if folder is None:
        folder = _downloaded(where, options)
    return Source(model, folder, file, index, name)


def _index(where: str, folder: Path | None, options: LoadOptions) -> Mapping[str, Any]:
    if folder is not None and options.revision is not None:
        raise ValueError(f"load revision is for hub models; {where} is a folder, so leave it out")
    if folder is not None:
        return read_mapping(folder / INDEX)
    try:
        from diffusers import DiffusionPipeline

        index = DiffusionPipeline.load_config(where, revision=options.revision)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{INDEX} of {where} is broken: {error}") from None
    if not isinstance(index, Mapping):
        raise ValueError(f"{INDEX} of {where} is broken: it holds no mapping")
    return index


def read_mapping(file: Path) -> dict[str, Any]:
    """Return what a ``model_index.json`` or a ``config.json`` holds.

    Raises ValueError for one that is broken or missing.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no mapping")
    return found


def pipeline_name(where: str, index: Mapping[str, Any], options: LoadOptions) -> str:
    """Return the name of the pipeline class, without importing it.

    Raises ValueError for one that diffusers does not have, or code that comes with the model.
    """
    own = index.get("_class_name")
    if isinstance(own, list):  # diffusers would run it, whatever class is asked for
        raise ValueError(
            f"{where} brings pipeline code of its own, {own!r:.80}, which accel does not run; give "
            f"a folder whose {INDEX} names a pipeline of diffusers"
        )
    if options.pipeline is None and not isinstance(own, str):
        raise ValueError(f"{INDEX} of {where} names no pipeline class")
    import diffusers

    name, known = options.pipeline or str(own), dir(diffusers)
    if name not in known:
        pipelines = [one for one in known if one.endswith("Pipeline")]
        raise ValueError(
            f"diffusers {diffusers.__version__} has no pipeline {name!r}"
            f"{did_you_mean(name, pipelines)}"
            + ("" if options.pipeline else f", which {where} asks for")
        )
    return name


def _downloaded(where: str, options: LoadOptions) -> Path:
    """Return the snapshot of a hub model."""
    from diffusers import DiffusionPipeline

    return Path(
        DiffusionPipeline.download(
            where, revision=options.revision, variant=options.variant, use_safetensors=True,
            trust_remote_code=False,
        )
    )  # fmt: skip
