"""Which linear layers of a denoiser are sites, and why others are left alone."""

from __future__ import annotations

from torch import Tensor, nn

from accel.core.diffusers_bridge import adapted, moves_weights
from accel.core.structure import blocks
from accel.core.watchers import foreign_forward

BASE = ".base_layer"  # what PEFT calls the layer that an adapter stands on


def linear_layers(
    name: str, denoiser: nn.Module, *, several: bool
) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """Return the layers of a denoiser's blocks by site name, and why others are left alone.

    A site's name is its path, such as ``blocks.3.attn1.to_q``, also where an adapter stands on the
    layer. With ``several`` denoisers in a pipeline the component's name comes first. Adapters
    themselves are none of either.
    """
    prefix = f"{name}." if several else ""
    moved = _moved(denoiser)
    found: dict[str, nn.Linear] = {}
    left: dict[str, str] = {}
    for path, layer in in_blocks(denoiser).items():
        site = prefix + path.removeprefix("_orig_mod.").removesuffix(BASE)
        if why := _why_not(layer, path, moved):
            left[site] = why
        else:
            found[site] = layer
    return found, left


def in_blocks(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers of the blocks that are no adapter's, by path in the denoiser."""
    found: dict[str, nn.Linear] = {}
    known: set[int] = set()
    for path, block in blocks(denoiser).items():
        inside = _adapters(block)
        for name, part in block.named_modules():
            own = path or "." in name  # a layer of the denoiser itself is an input's or an output's
            if isinstance(part, nn.Linear) and own and id(part) not in known | inside:
                found[f"{path}.{name}".strip(".")] = part
                known.add(id(part))
    return found


def _adapters(block: nn.Module) -> set[int]:
    """Return the ids of the modules that belong to an adapter and not to the model."""
    found = set()
    for part in block.modules():
        base = adapted(part)
        if base is not None:
            model = {id(x) for x in base.modules()}
            found |= {id(x) for x in part.modules() if id(x) not in model}
    return found


def _moved(denoiser: nn.Module) -> list[str]:
    """Return the paths of the parts whose weights are moved for each of their calls."""
    return [path for path, part in denoiser.named_modules() if moves_weights(part)]


def _why_not(layer: nn.Linear, path: str, moved: list[str]) -> str:
    weight = layer._parameters.get("weight")
    if type(layer).forward is not nn.Linear.forward:
        return f"a {type(layer).__name__}, which computes in its own way"
    if weight is None:
        return "its weight is computed anew for each call"
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, quantized already"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, quantized already"
    if foreign_forward(layer):
        return "somebody replaced its forward"
    if weight.is_meta or any(f"{path}.".startswith(f"{part}.") or not part for part in moved):
        return "its weight is offloaded between calls; a packed one would stay"
    return ""
