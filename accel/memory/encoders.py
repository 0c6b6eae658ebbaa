"""The memory of one call of an encoder of prompts or images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.families.components import Encoder, meta
from accel.memory.tracker import activation_peak


def peak(encoder: Encoder, given: Mapping[str, Any] | None = None) -> int:
    """Return the bytes of activations in one call.

    What grows with the number of layers, such as requested hidden states, is counted for all of
    them. ``given`` are recorded arguments of the call; without them, a prompt of the encoder's own
    length is encoded. Pictures that a language model sees count as so many tokens.
    """
    layers = encoder.layers
    if layers <= 3:
        return _peak(encoder, layers, given)
    two, three = _peak(encoder, 2, given), _peak(encoder, 3, given)
    return three + (layers - 3) * (three - two)


def _peak(encoder: Encoder, layers: int, given: Mapping[str, Any] | None) -> int:
    module = encoder.build(layers)
    given_, states = inputs(encoder, module.config, given)
    weights = [*module.parameters(), *module.buffers()]
    return activation_peak(lambda: module(**given_, output_hidden_states=states), given_, weights)[
        0
    ]


def inputs(
    encoder: Encoder, config: Any, given: Mapping[str, Any] | None
) -> tuple[dict[str, Any], bool]:
    """Return the arguments of a call, and whether all hidden states are asked for."""
    if given is None:
        return encoder.inputs(config), encoder.states
    states = bool(given.get("output_hidden_states", False))
    for name in ("input_ids", "pixel_values"):
        if (x := given.get(name)) is not None:
            dtype = encoder.dtype if x.is_floating_point() else x.dtype
            return {name: meta(*x.shape, dtype=dtype)}, states
    return encoder.inputs(config), states
