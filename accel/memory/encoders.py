"""Encoders of prompts and images: those of stored and of loaded models, and what one call takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel import families
from accel.families.components import Encoder
from accel.families.encoders import KINDS, encoder
from accel.memory.tracker import activation_peak

NAMES = ("text_encoder", "image_encoder")  # of components begin like this


def peak(encoder: Encoder) -> int:
    """Return the bytes of activations in one call. What grows with the layers, such as hidden
    states that are asked for, is counted for all of them.
    """
    layers = encoder.layers
    if layers <= 3:
        return _peak(encoder, layers)
    two, three = _peak(encoder, 2), _peak(encoder, 3)
    return three + (layers - 3) * (three - two)


def _peak(encoder: Encoder, layers: int) -> int:
    module = encoder.build(layers)
    inputs = encoder.inputs(module.config)
    weights = [*module.parameters(), *module.buffers()]
    return activation_peak(
        lambda: module(**inputs, output_hidden_states=encoder.states), inputs, weights
    )[0]


def stored(
    model: str, index: Mapping[str, Any], denoiser: str
) -> tuple[dict[str, Encoder], tuple[str, ...]]:
    """Return the encoders of a folder or hub id with the ``model_index.json`` ``index``, and the
    names of those that cannot be simulated. ``denoiser``: its class.
    """
    from transformers import PretrainedConfig

    known, unknown = {}, []
    for name, (library, cls) in _encoders(index).items():
        try:
            if library != "transformers" or cls not in KINDS:
                raise OSError("not a class known here")
            config, _ = PretrainedConfig.get_config_dict(model, subfolder=name)
            known[name] = encoder(cls, config, _tokens(denoiser))
        except OSError:
            unknown.append(name)
    return known, tuple(unknown)


def _tokens(denoiser: str) -> int:
    """Tokens a pipeline pads a prompt to, by denoiser; CLIP's own limit comes first."""
    known = families.denoisers().get(denoiser)
    return 512 if known is None else known.text_tokens


def _encoders(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found = {k: v for k, v in index.items() if k.startswith(NAMES)}
    return {k: (v[0], v[1]) for k, v in found.items() if v[0] is not None}


def loaded(pipe: Any, denoiser: str) -> tuple[dict[str, Encoder], tuple[str, ...]]:
    """Return the same of a loaded pipeline."""
    known, unknown = {}, []
    for name, part in getattr(pipe, "components", {}).items():
        if part is None or not name.startswith(NAMES):
            continue
        cls = type(part).__name__
        if cls in KINDS:
            known[name] = encoder(cls, part.config.to_dict(), _tokens(denoiser), part.dtype)
        else:
            unknown.append(name)
    return known, tuple(unknown)
