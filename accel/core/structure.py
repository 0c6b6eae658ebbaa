"""Find and name what can be accelerated in a pipeline: denoisers and their attention modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from accel import families

DENOISERS = ("transformer", "transformer_2", "unet")


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Return the denoisers of a pipeline by component name.

    A module without a pipeline is its own denoiser, named "". Raises ValueError, listing the
    components, for a pipeline without a known denoiser.
    """
    if isinstance(pipe, nn.Module):
        return {"": pipe}
    found = {
        name: module
        for name in DENOISERS
        if isinstance(module := getattr(pipe, name, None), nn.Module)
    }
    if not found:
        parts = sorted(getattr(pipe, "components", {}))
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser that accel knows: looked for "
            f"{list(DENOISERS)}, its components are {parts}. Pass the denoiser itself: "
            "accel.patch(pipe.my_denoiser)"
        )
    return found


def attention_modules(name: str, denoiser: nn.Module, *, several: bool) -> dict[str, nn.Module]:
    """Return the attention modules of a denoiser by site name, such as ``blocks.3.attn1``.

    With ``several`` denoisers in a pipeline the component's name comes first:
    ``transformer_2.blocks.3.attn1``.
    """
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention, MochiAttention

    kinds = (Attention, MochiAttention, AttentionModuleMixin)
    prefix = f"{name}." if several else ""
    return {
        prefix + path.removeprefix("_orig_mod."): module
        for path, module in denoiser.named_modules()
        if isinstance(module, kinds) and isinstance(module, nn.Module)
    }


def gelu_form(module: nn.Module) -> str:
    """Return "none" or "tanh" where a module is a layer ``proj`` and torch's GELU of that form.

    "" for other modules.
    """
    from diffusers.models.activations import GELU

    if type(module) is not GELU or module.approximate not in ("none", "tanh"):
        return ""
    return str(module.approximate)


def blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a denoiser that slicing applies to, by path.

    In a UNet these are its residual and transformer blocks. In other denoisers they are the members
    of its own module lists that hold attention, or the denoiser itself, named "", if it has no such
    list.
    """
    if hasattr(denoiser, "down_blocks"):
        parts, known = denoiser.named_modules(), families.unet_parts()
        return {path: part for path, part in parts if type(part).__name__ in known}
    found = {
        f"{name}.{i}": block
        for name, parts in denoiser.named_children()
        if isinstance(parts, nn.ModuleList)
        for i, block in enumerate(parts)
        if attention_modules("", block, several=False)
    }
    return found or {"": denoiser}
