"""One transformer block of a real model at its real width, with random weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn


class Block(NamedTuple):
    """A module and the arguments of a call."""

    module: nn.Module
    inputs: tuple[Any, ...]

    def to(self, dtype: torch.dtype) -> Block:
        """The same in another dtype; positions and Wan's modulation stay in fp32, as in models."""

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and not hasattr(x, "stays") else x

        return Block(self.module.to(dtype), tuple(map(cast, self.inputs)))

    def __call__(self) -> Tensor:
        """All results of a call, one after another."""
        with torch.no_grad():
            out = self.module(*self.inputs)
        parts = out if isinstance(out, tuple) else (out,)
        return torch.cat([part.flatten() for part in parts if part is not None])


def _fixed(x: Tensor) -> Tensor:
    x.stays = True  # type: ignore[attr-defined]
    return x


def wan(tokens: int) -> Block:
    """Wan 1.3B: 1536 wide, 12 heads of 128, 512 tokens of text."""
    block = WanTransformerBlock(1536, 8960, 12, "rms_norm_across_heads", True)
    angles = torch.randn(1, tokens, 1, 128)
    x, text, time = (torch.randn(1, n, 1536) for n in (tokens, 512, 6))
    return Block(block, (x, text, _fixed(time), (angles.cos(), angles.sin())))


def flux(tokens: int) -> Block:
    """Flux, a double block: 3072 wide, 24 heads of 128, 512 tokens of text."""
    return Block(FluxTransformerBlock(3072, 24, 128), _flux_inputs(tokens))


def flux_single(tokens: int) -> Block:
    """Flux, a single block."""
    return Block(FluxSingleTransformerBlock(3072, 24, 128), _flux_inputs(tokens))


def _flux_inputs(tokens: int) -> tuple[Any, ...]:
    angles = torch.randn(tokens + 512, 128)
    x, text, time = torch.randn(1, tokens, 3072), torch.randn(1, 512, 3072), torch.randn(1, 3072)
    return x, text, time, (angles.cos(), angles.sin())


def sd3_medium(tokens: int) -> Block:
    """Stable Diffusion 3.5 medium, a block with two attentions: 1536 wide, 333 tokens of text."""
    return _sd3(tokens, 24, dual=True)


def sd3_large(tokens: int) -> Block:
    """Stable Diffusion 3.5 large: 2432 wide, 333 tokens of text."""
    return _sd3(tokens, 38, dual=False)


def _sd3(tokens: int, heads: int, *, dual: bool) -> Block:
    width = 64 * heads
    block = JointTransformerBlock(
        width, heads, 64, qk_norm="rms_norm", use_dual_attention=dual, context_pre_only=False
    )
    x, text, time = (torch.randn(1, n, width) for n in (tokens, 333, 1))
    return Block(block, (x, text, time[:, 0]))


class UNetPart(nn.Module):
    """A part of a UNet where accel looks for it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([part])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Return the part's result."""
        out: Tensor = self.down_blocks[0](x, text, return_dict=False)[0]
        return out


def sdxl_1280(tokens: int) -> Block:
    """SDXL's UNet, the attention of its 1280 channels with one block: 77 tokens of text."""
    return _sdxl(tokens, 20)


def sdxl_640(tokens: int) -> Block:
    """SDXL's UNet, the attention of its 640 channels with one block."""
    return _sdxl(tokens, 10)


def _sdxl(tokens: int, heads: int) -> Block:
    part = Transformer2DModel(
        heads, 64, 64 * heads, num_layers=1, cross_attention_dim=2048, use_linear_projection=True
    )
    side = round(tokens**0.5)
    return Block(UNetPart(part), (torch.randn(1, 64 * heads, side, side), torch.randn(1, 77, 2048)))


# A factory, and the tokens of a usual picture or clip.
BLOCKS: dict[str, tuple[Callable[[int], Block], int]] = {
    "wan": (wan, 8190),
    "flux": (flux, 4096),
    "flux-single": (flux_single, 4096),
    "sd3-medium": (sd3_medium, 4096),
    "sd3-large": (sd3_large, 4096),
    "sdxl-1280": (sdxl_1280, 1024),
    "sdxl-640": (sdxl_640, 4096),
}


def real_block(name: str, tokens: int | None = None, dtype: torch.dtype = torch.float32) -> Block:
    """The block ``name`` in evaluation mode, with the same numbers each time."""
    torch.manual_seed(0)
    factory, usual = BLOCKS[name]
    block = factory(tokens or usual)
    return Block(block.module.eval().requires_grad_(False), block.inputs).to(dtype)
