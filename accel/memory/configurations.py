"""The classes and configurations of a pipeline, from a folder, the hub, or a loaded pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.families.components import Encoder, Part
from accel.families.family import Model

DENOISERS = ("transformer", "unet")
MOST_TOKENS = 10**6  # tokenizers without a limit name a larger number


def stored(model: str) -> Model:
    """Return the model of a folder or hub id; only configurations are read.

    Raises ValueError for one without a denoiser or a VAE that diffusers has.
    """
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(model)
    found = _Found()
    for name, value in index.items():
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[1] is not None:
            try:
                _read(found, model, name, str(value[0]), str(value[1]))
            except (AttributeError, ImportError, OSError, TypeError, ValueError):
                found.unknown.append(name)
    settings = {k: v for k, v in index.items() if not isinstance(v, (list, tuple))}
    return found.model(repr(model), str(index.get("_class_name", "")), settings)


def of_pipeline(pipe: Any) -> Model:
    """Return the classes and configurations of a loaded pipeline.

    Raises ValueError for one without a denoiser or a VAE that diffusers has.
    """
    found = _Found()
    components = getattr(pipe, "components", None) or vars(pipe)
    for name, part in components.items():
        if part is not None:
            _take(found, name, part)
    return found.model(type(pipe).__name__, _known(type(pipe)), dict(getattr(pipe, "config", {})))


class _Found:
    """Components of a pipeline by what they are."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.encoders: dict[str, Encoder] = {}
        self.schedulers: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.limits: dict[str, int] = {}
        self.unknown: list[str] = []

    def model(self, whose: str, pipeline: str, settings: Mapping[str, Any]) -> Model:
        """Return the model; raise ValueError, naming ``whose``, if it has no denoiser or VAE."""
        parts = dict(self.parts)
        denoiser = next((parts.pop(name) for name in DENOISERS if name in parts), None)
        vae = parts.pop("vae", None)
        if denoiser is None or vae is None:
            has = sorted([*self.parts, *self.encoders, *self.schedulers, *self.unknown])
            raise ValueError(
                f"cannot simulate {whose}: it needs a denoiser ({' or '.join(DENOISERS)}) and a "
                f"VAE whose classes diffusers has; it has {has}"
            )
        second = parts.pop("transformer_2", None)
        return Model(
            denoiser, vae, 1, self.encoders, tuple(self.unknown), pipeline, second, parts,
            self.schedulers, _taken(pipeline, settings), limits=self.limits,
        )  # fmt: skip


def _taken(pipeline: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain settings that a pipeline's class takes besides its components."""
    import diffusers

    takes = inspect.signature(getattr(diffusers, pipeline, object).__init__).parameters
    plain = (bool, int, float, str)
    return {k: v for k, v in settings.items() if k in takes and isinstance(v, plain)}


def _known(cls: type) -> str:
    """Return the name of a pipeline's class, or of the first of its bases, that diffusers has."""
    import diffusers

    found = (c.__name__ for c in cls.__mro__ if getattr(diffusers, c.__name__, None) is c)
    return next(found, "")


def _read(found: _Found, model: str, name: str, library: str, cls: str) -> None:
    """Read the configuration of one component of a stored model.

    Raises AttributeError, ImportError, OSError, TypeError or ValueError for one that cannot be
    read.
    """
    if library == "transformers":
        _read_reader(found, model, name, cls)
        return
    from diffusers import ModelMixin
    from diffusers.configuration_utils import ConfigMixin

    dtype = torch.float32 if name == "vae" else torch.bfloat16
    kind = Part(cls, {}, dtype, library).kind()
    if not issubclass(kind, ConfigMixin):
        found.unknown.append(name)
        return
    config = dict(kind.load_config(model, subfolder=name))
    if issubclass(kind, ModelMixin):
        found.parts[name] = Part(cls, config, dtype, library)
    else:
        found.schedulers[name] = (cls, config)


def _read_reader(found: _Found, model: str, name: str, cls: str) -> None:
    """Read the configuration of an encoder, or the limit of a tokenizer."""
    import transformers
    from transformers.utils.hub import cached_file

    if name.startswith("tokenizer"):
        path = cached_file(model, "tokenizer_config.json", subfolder=name)
        limit = json.loads(Path(str(path)).read_text("utf-8")).get("model_max_length", MOST_TOKENS)
        if limit < MOST_TOKENS:
            found.limits[name] = int(limit)
        return
    kind = getattr(transformers, cls)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return  # it reads pictures, and has no weights
    config, _ = transformers.PretrainedConfig.get_config_dict(model, subfolder=name)
    own: Any = kind
    if config.get("model_type") not in (None, own.config_class.model_type):
        raise ValueError(f"the configuration of {name} is not one of {cls}")
    found.encoders[name] = Encoder(cls, config)


def _take(found: _Found, name: str, part: Any) -> None:
    """Note the configuration of one component of a loaded pipeline."""
    import diffusers
    import transformers
    from diffusers.configuration_utils import ConfigMixin

    cls, is_module = type(part).__name__, isinstance(part, nn.Module)
    if is_module:
        if hasattr(transformers, cls) and hasattr(part.config, "to_dict"):
            found.encoders[name] = Encoder(cls, part.config.to_dict(), dtype=part.dtype)
        elif hasattr(part, "config") and isinstance(part, diffusers.ModelMixin):
            model: Any = part
            library = type(part).__module__.removeprefix("diffusers.pipelines.").split(".")[0]
            library = "diffusers" if hasattr(diffusers, cls) else library
            found.parts[name] = Part(cls, dict(model.config), model.dtype, library)
        else:
            found.unknown.append(name)
    elif isinstance(part, ConfigMixin) and hasattr(diffusers, cls):
        found.schedulers[name] = (cls, dict(part.config))
    elif getattr(part, "model_max_length", MOST_TOKENS) < MOST_TOKENS:
        found.limits[name] = int(part.model_max_length)
