"""Quantized weights by diffusers' own configurations: torchao, bitsandbytes, GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from accel.core.extras import how_to_install
from accel.core.validate import did_you_mean
from accel.pipelines.load_options import ALL, LoadOptions
from accel.pipelines.loading.source import Source

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes", "gguf": "gguf"}
BIG = 2**30  # bytes; smaller encoders are left as they are, since they are not what takes memory


def kinds(source: Source, options: LoadOptions) -> dict[str, str]:
    """Return the kind of weights by component, of those that are quantized while they are read.

    "" stands for the denoisers and the text encoders of at least ``BIG`` bytes. A component that
    is named has the word on itself, and "bf16" leaves it unquantized.

    Raises ValueError for a component that the model does not have, or that cannot be quantized.
    """
    models, found = source.models(), dict[str, str]()
    for component, kind in options.weights.items():
        if component == ALL:
            found |= {name: kind for name in models if _usually_quantized(source, name)}
    for component, kind in options.weights.items():
        if component == ALL:
            continue
        if component not in models:
            raise ValueError(
                f"load weights names {component!r}, which {source.model} does not have"
                f"{did_you_mean(component, list(models))}; it has {sorted(models)}"
            )
        if kind != "bf16" and is_autoencoder(source, component):
            raise ValueError(
                f"load weights of {component}: a VAE is not quantized, since its convolutions "
                "would not be smaller; leave it out"
            )
        found[component] = kind
    return {
        name: kind
        for name, kind in found.items()
        if kind != "bf16" and not kind.startswith("gguf") and name not in options.components
    }


def gguf_files(options: LoadOptions) -> dict[str, str]:
    """Return the GGUF file by component."""
    split = {name: kind.partition(" ") for name, kind in options.weights.items()}
    return {name: file.strip() for name, (kind, _, file) in split.items() if kind == "gguf"}


def packages_needed(options: LoadOptions) -> set[str]:
    """Return the optional packages that the options ask for."""
    kinds = {kind.partition(" ")[0] for kind in options.weights.values()} | {*options.allow}
    files = [*options.components.values()]
    return {PACKAGES[kind] for kind in kinds if kind in PACKAGES} | (
        {"gguf"} if any(file.endswith(".gguf") for file in files) else set()
    )


def check_packages(packages: set[str], device: str) -> None:
    """Raise ValueError, with the way out, for a package that is missing or cannot work here."""
    for package in sorted(packages):
        if find_spec(package) is None:
            raise ValueError(
                f"load weights need the package {package}, which is missing: "
                f"{how_to_install(package)}"
            )
    if "bitsandbytes" in packages and device.startswith("cpu"):
        raise ValueError(
            "load weights nf4 need a GPU, and this pipeline goes to the CPU; take int8 there"
        )


def is_autoencoder(source: Source, component: str) -> bool:
    """Tell whether a component decodes latents."""
    library, class_name = source.components[component]
    import diffusers

    return library == "diffusers" and hasattr(getattr(diffusers, class_name, None), "decode")


def _usually_quantized(source: Source, component: str) -> bool:
    library, _ = source.components[component]
    if library == "diffusers":
        return not is_autoencoder(source, component)
    return library == "transformers" and weight_bytes(source.folder / component) >= BIG


def weight_bytes(folder: Path) -> int:
    """Return the bytes of the safetensors files of a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def configuration(library: str, kind: str, dtype: torch.dtype) -> Any:
    """Return the quantization configuration of diffusers or transformers for one component."""
    import diffusers
    import transformers

    package: Any = transformers if library == "transformers" else diffusers
    if kind == "nf4":
        return package.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return package.TorchAoConfig(
        Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    )


def pipeline_configuration(source: Source, wanted: Mapping[str, str], dtype: torch.dtype) -> Any:
    """Return diffusers' configuration for a whole pipeline, None if nothing is quantized."""
    import diffusers

    if not wanted:
        return None
    package: Any = diffusers
    return package.PipelineQuantizationConfig(
        quant_mapping={
            name: configuration(source.components[name][0], kind, dtype)
            for name, kind in wanted.items()
        }
    )
