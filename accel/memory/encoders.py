"""Encoders of prompts and images in stored and loaded models, and the memory of one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel import families
from accel.families.components import Encoder
from accel.families.encoders import KINDS, encoder
from accel.memory.tracker import activation_peak

NAMES = ("text_encoder", "image_encoder")  # how names of components begin


def peak(encoder: Encoder) -> int:
    """Return the bytes of activations in one call.

    What grows with the number of layers, such as requested hidden states, is counted for all of
    them.
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
    """Return the known encoders of a stored model by component, and the names of the others.

    Args:
        model: A folder or hub id.
        index: Its ``model_index.json``.
        denoiser: The class name of its denoiser.
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
    """Return the tokens a pipeline pads a prompt to, by denoiser; CLIP's own limit comes first."""
    known = families.denoisers().get(denoiser)
    return 512 if known is None else known.text_tokens


def _encoders(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found = {k: v for k, v in index.items() if k.startswith(NAMES)}
    return {k: (v[0], v[1]) for k, v in found.items() if v[0] is not None}


def loaded(pipe: Any, denoiser: str) -> tuple[dict[str, Encoder], tuple[str, ...]]:
    """Return the known encoders of a loaded pipeline by component, and the names of the others."""
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
