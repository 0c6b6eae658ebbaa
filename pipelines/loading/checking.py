"""Everything that can be wrong with a model and its load options, found before a weight is read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from accel.core.diffusers_loading import repeated_blocks
from accel.core.validate import did_you_mean
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.checkpoint_files import shapes, why_not
from accel.pipelines.loading.class_names import LIBRARIES, class_in
from accel.pipelines.loading.offload import usual_device
from accel.pipelines.loading.overrides import (
    Override,
    class_of,
    component_types,
    main_denoiser,
    overrides,
    whole_pipeline,
)
from accel.pipelines.loading.scheduler import check_scheduler
from accel.pipelines.loading.source import OTHER_WEIGHTS, Source, is_local, read_mapping, resolve
from accel.pipelines.loading.weights import check_packages, kinds, packages_needed


def problem(model: str, options: LoadOptions) -> str:
    """Return why a model cannot be loaded like this, as far as it is on this machine; else ""."""
    try:
        if is_local(model, options):
            check(resolve(model, options), options, usual_device())
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def check(source: Source, options: LoadOptions, device: str) -> None:
    """Raise ValueError, one line with the way out, for what could not be loaded."""
    check_packages(packages_needed(options), device)
    _check_pipeline(source)
    found = overrides(source, options)
    _check_classes(source)
    _check_components(source, [one.name for one in found])
    kinds(source, options)
    for one in found:
        _check_override(source, one)
    if options.scheduler:
        if "scheduler" not in source.components:
            raise ValueError(f"{source.pipeline} has no scheduler; leave load scheduler out")
        check_scheduler(source.components["scheduler"][1], options.scheduler)
    if whole_pipeline(source):
        _check_override(source, Override(main_denoiser(source), str(source.file), file=True))
    else:
        _check_files(source, options, {one.name for one in found})
    if options.compile == "blocks":
        _check_compile(source)


def _check_pipeline(source: Source) -> None:
    import diffusers

    cls = getattr(diffusers, source.pipeline)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise ValueError(f"load pipeline {source.pipeline!r} is no pipeline of diffusers")
    if not callable(getattr(cls, "from_pretrained", None)) or cls is diffusers.DiffusionPipeline:
        raise ValueError(f"load pipeline {source.pipeline!r} is no pipeline that can be run")


def _check_components(source: Source, given: list[str]) -> None:
    """Raise ValueError for a pipeline whose components the model does not have."""
    import diffusers

    cls: Any = getattr(diffusers, source.pipeline)
    parameters = inspect.signature(cls.__init__).parameters
    named = {k for k, v in source.index.items() if isinstance(v, list)} | set(given)
    lacking = [
        name
        for name in component_types(source.pipeline)
        if name not in named and parameters[name].default is inspect.Parameter.empty
    ]
    if lacking:
        raise ValueError(
            f"{source.model} has no {', '.join(lacking)}, which {source.pipeline} needs; name "
            "another pipeline, or give it: load: {components: {" + lacking[0] + ": FOLDER}}"
        )


def _check_classes(source: Source) -> None:
    """Raise ValueError for a component of a class that is not diffusers' or transformers' own.

    Also for a class that needs a package which is missing.
    """
    from diffusers import pipelines

    for name, (library, class_name) in source.components.items():
        if library in LIBRARIES:
            class_in(library, class_name, f"{name} of {source.model}")
        elif not hasattr(pipelines, library):
            raise ValueError(
                f"{name} of {source.model} is code that comes with the model ({library}."
                f"{class_name}), which accel does not run; give a folder whose index "
                "names classes of diffusers and transformers alone"
            )


def _check_override(source: Source, one: Override) -> None:
    cls, library = class_of(source, one)
    if not one.file:
        if Path(one.place).is_dir():
            _check_weights(Path(one.place), f"load {one.name}: {one.place}", "")
        return
    if library != "diffusers" or not hasattr(cls, "from_single_file"):
        raise ValueError(
            f"load {one.name}: diffusers does not read a {cls.__name__} from a single file; give "
            "a folder"
        )
    config, place = read_mapping(source.folder / one.name / "config.json"), Path(one.place)
    if why := why_not(cls, config, shapes(place), place):
        raise ValueError(f"load {one.name}: {why}")


def _check_files(source: Source, options: LoadOptions, given: set[str]) -> None:
    models = [name for name in source.models() if name not in given]
    for name in models:
        _check_weights(source.folder / name, f"{name} of {source.model}", options.variant or "")
    for name, (_, class_name) in source.components.items():
        if name not in given and not (source.folder / name).is_dir():
            raise ValueError(f"{source.model} has no folder {name}, where its {class_name} lies")
    if options.variant is not None:
        files = [file.name for name in models for file in _weights(source.folder / name)]
        if not any(_variant(file) == options.variant for file in files):
            there = sorted({v for file in files if (v := _variant(file))})
            raise ValueError(
                f"{source.model} has no weights of the variant {options.variant!r}"
                f"{did_you_mean(options.variant, there)}; it has "
                f"{there or 'none, so leave load variant out'}"
            )


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _variant(file: str) -> str:
    """Return ``fp16`` of ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``.

    "" if the file is of no variant.
    """
    middle = file.removesuffix(".safetensors").partition(".")[2]
    return middle.partition("-")[0]


def _check_weights(folder: Path, what: str, variant: str) -> None:
    """Raise ValueError for a component without safetensors."""
    files = _weights(folder)
    if [file for file in files if _variant(file.name) in ("", variant)]:
        return
    if files:
        there = sorted({_variant(file.name) for file in files})
        raise ValueError(f"{what} has only weights of the variant {there[0]}; name it: load: "
                         f"{{variant: {there[0]}}}")  # fmt: skip
    other = [f for f in sorted(folder.iterdir()) if f.suffix in OTHER_WEIGHTS]
    if other:
        raise ValueError(
            f"{what} has its weights in {other[0].name} alone, a format that can run code; make a "
            "folder of safetensors where you trust the file: "
            "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    raise ValueError(f"{what} has no weights: {folder} holds no .safetensors file")


def _check_compile(source: Source) -> None:
    import diffusers

    from accel.core.structure import DENOISERS

    for name in DENOISERS:
        library, class_name = source.components.get(name, ("", ""))
        if library == "diffusers" and not repeated_blocks(getattr(diffusers, class_name)):
            raise ValueError(
                f"load compile: blocks needs a denoiser whose repeated blocks diffusers knows; "
                f"{class_name} names none, so leave it off"
            )
