"""Components that a job takes from elsewhere: a folder, a single file, or a hub id."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from accel.core.diffusers_loading import cast
from accel.core.validate import did_you_mean
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.class_names import class_in
from accel.pipelines.loading.source import INDEX, SINGLE, Source, read_mapping
from accel.pipelines.loading.weights import gguf_files
from accel.pipelines.paths import user_path


@dataclass(frozen=True)
class Override:
    """One component and where it comes from.

    Args:
        name: Of the component.
        place: A folder with a ``config.json``, a file, or a hub id.
        subfolder: Of a hub model.
        file: Whether ``place`` is a single file.
    """

    name: str
    place: str
    subfolder: str = ""
    file: bool = False


def overrides(source: Source, options: LoadOptions) -> list[Override]:
    """Return what is taken from elsewhere, with the denoiser of a model that is a single file.

    Raises ValueError for a component that the pipeline does not have, or a place that holds none.
    """
    found = [_override(source, name, place) for name, place in options.components.items()]
    for name, file in gguf_files(options).items():
        _known(source, name, "weights")
        found.append(_file(name, file))
    if source.file is not None and not whole_pipeline(source):
        found.append(Override(main_denoiser(source), str(source.file), file=True))
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"load gives {sorted(twice)[0]} twice: by components and by a file")
    return found


def _known(source: Source, name: str, what: str) -> None:
    known = list(component_types(source.pipeline))
    if name not in known:
        raise ValueError(
            f"load {what} names {name!r}, which {source.pipeline} does not have"
            f"{did_you_mean(name, known)}; it has {known}"
        )


def _override(source: Source, name: str, place: str) -> Override:
    _known(source, name, "components")
    path = user_path(place)
    if path.is_dir():
        folder = path / name if (path / INDEX).is_file() else path
        if not (folder / "config.json").is_file():
            raise ValueError(f"load components {name}: {folder} holds no config.json")
        return Override(name, str(folder))
    if path.suffix.lower() in SINGLE or path.is_file():
        return _file(name, place)
    owner, _, rest = place.partition("/")
    repository, _, subfolder = rest.partition("/")
    if not owner or not repository or path.is_absolute() or place.startswith((".", "~")):
        raise ValueError(
            f"load components {name}: {place} is no folder, no file and no hub id like owner/name "
            "or owner/name/subfolder"
        )
    return Override(name, f"{owner}/{repository}", subfolder)


def _file(name: str, place: str) -> Override:
    path = user_path(place)
    if not path.is_file():
        raise ValueError(f"load {name}: there is no file {place}")
    if path.suffix.lower() not in SINGLE:
        raise ValueError(
            f"load {name}: {place} is not read; a file must end in {' or '.join(SINGLE)}, since "
            "other formats can run code"
        )
    return Override(name, str(path), file=True)


def main_denoiser(source: Source) -> str:
    """Return the component that a single file without the others holds."""
    from accel.core.structure import DENOISERS

    for name in DENOISERS:
        if name in source.components:
            return name
    raise ValueError(f"{source.pipeline} has no denoiser that accel knows, of {list(DENOISERS)}")


def whole_pipeline(source: Source) -> bool:
    """Tell whether a single file holds all components, as those of Stable Diffusion do."""
    import diffusers

    from accel.pipelines.loading.checkpoint_files import shapes

    cls = getattr(diffusers, source.pipeline)
    if source.file is None or not hasattr(cls, "from_single_file"):
        return False
    others = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
    return any(name.startswith(others) for name in shapes(source.file))


@lru_cache(maxsize=64)
def component_types(pipeline: str) -> dict[str, tuple[type, ...]]:
    """Return the components that a pipeline's class takes, each with the types it is written for.

    No type: anything.
    """
    import diffusers

    init = getattr(diffusers, pipeline).__init__
    try:
        hints = typing.get_type_hints(init)
    except (NameError, TypeError):  # a name that only type checkers see
        hints = {}
    return {
        name: _classes(hints.get(name))
        for name, parameter in inspect.signature(init).parameters.items()
        if name != "self" and _is_component(parameter, hints.get(name))
    }


def _classes(hint: Any) -> tuple[type, ...]:
    parts = typing.get_args(hint) or (hint,)
    return tuple(one for one in parts if isinstance(one, type) and one is not type(None))


def _is_component(parameter: inspect.Parameter, hint: Any) -> bool:
    """Tell components from settings such as ``boundary_ratio: float``."""
    plain = (bool, int, float, str, list, dict, tuple)
    return not any(one in plain or typing.get_origin(one) for one in _classes(hint)) and (
        parameter.default is parameter.empty or not isinstance(parameter.default, plain)
    )


def class_of(source: Source, one: Override) -> tuple[Any, str]:
    """Return class and library of what an override loads.

    Raises ValueError for one that the pipeline is not made for.
    """
    own = source.components.get(one.name)
    if one.file or one.subfolder or "/" not in one.place or not Path(one.place).is_dir():
        if own is None:
            raise ValueError(
                f"load {one.name}: {source.model} has no {one.name} of its own, whose "
                "configuration would say what the file is; give a folder"
            )
        library, name = own
    else:
        config = read_mapping(Path(one.place) / "config.json")
        if "_class_name" in config:
            library, name = "diffusers", str(config["_class_name"])
        else:
            library, name = "transformers", str((config.get("architectures") or ["none"])[0])
    found = class_in(library, name, f"load {one.name}: {one.place}")
    allowed = component_types(source.pipeline)[one.name]
    if (own is None or name != own[1]) and allowed and not issubclass(found, allowed):
        raise ValueError(
            f"load {one.name}: {one.place} is a {name}, and {source.pipeline} takes "
            f"{' or '.join(sorted({cls.__name__ for cls in allowed}))}"
        )
    return found, library


def loaded(source: Source, one: Override, options: LoadOptions, dtype: torch.dtype) -> Any:
    """Load one component from elsewhere."""
    import diffusers

    from accel.pipelines.loading.weights import configuration

    cls, library = class_of(source, one)
    kind = options.weights.get(one.name, "bf16").partition(" ")[0]
    if one.file:
        place = {"config": str(source.folder / one.name), "local_files_only": True}
        if one.place.lower().endswith(".gguf"):
            quantized = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
            return cls.from_single_file(
                one.place, dtype=dtype, quantization_config=quantized, **place
            )
        model = cls.from_single_file(one.place, **place)
        cast(model, dtype)
        return model
    more: dict[str, Any] = {"subfolder": one.subfolder} if one.subfolder else {}
    if kind not in ("bf16", "gguf"):
        more["quantization_config"] = configuration(library, kind, dtype)
    return cls.from_pretrained(one.place, dtype=dtype, use_safetensors=True, **more)
