"""What can be known of a model family: one record, filled in by one file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

from accel.families.components import Encoder, Part
from accel.families.sizes import SizeRule

Layout = Literal["BCFHW", "BFCHW", "tokens", "BCHW"]
Inputs = Callable[[Any, tuple[int, int, int, int, int]], dict[str, Any]]
BlockKind = Literal["resnet", "upsampler", "blender", "causal middle"]


@dataclass(frozen=True)
class Model:
    """A denoiser, its VAE and its encoders of prompts and images by component. ``batch``: 2 where
    both guidance branches run in one call. ``unknown``: encoders that cannot be simulated.
    """

    denoiser: Part
    vae: Part
    batch: int = 1
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Denoiser:
    """A denoiser's class. ``inputs(denoiser, latent)``: arguments of one call on the meta device,
    for a latent of [batch, channels, frames, height, width]; ``batched``: its pipelines run both
    guidance branches in one call; ``text_tokens``: what they pad a prompt to.
    """

    inputs: Inputs
    batched: bool = False
    text_tokens: int = 512


@dataclass(frozen=True)
class Vae:
    """A VAE's class. ``scales(config)``: pixels and frames per latent cell; ``framewise``: frames
    are samples of a batch; ``mixes_frames``: its decoder sees several frames at once all the same.
    """

    scales: Callable[[Mapping[str, Any]], tuple[int, int]]
    framewise: bool = False
    mixes_frames: bool = False


@dataclass(frozen=True)
class Decoder:
    """The decoder of a VAE.

    ``head``: names of its last norm and activation, where norms look at one pixel; ``grouped``: it
    has GroupNorm, whose statistics run over the picture. ``pieces``: "joined" or "apart" where the
    VAE calls it for a few latent frames at a time, "joined" if it joins what it has after every
    piece.
    """

    head: tuple[str, str] | None = None
    grouped: bool = False
    pieces: Literal["", "joined", "apart"] = ""


@dataclass(frozen=True)
class Strip:
    """A block of a VAE decoder whose norms look at one pixel. ``halo``: rows that its convolutions
    see beyond a strip; ``scale``: rows of the result per row; ``cached``: it takes caches.
    """

    halo: int
    scale: int = 1
    cached: bool = False


@dataclass(frozen=True)
class Geometry:
    """Latent grid of a pipeline.

    ``channels`` that are noise; ``spatial`` pixels per latent pixel; ``temporal`` frames per latent
    frame: "causal" VAEs (frames = temporal n + 1) keep frames 0, temporal, 2 temporal, ...;
    ``layout`` of the latents that the pipeline takes ("tokens": patches of one latent pixel in a
    sequence, "BCHW": one image per call). Pipelines scale by their scheduler's first sigma
    themselves.
    """

    channels: int
    spatial: int
    temporal: int
    layout: Layout = "BCFHW"

    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip. Raises ValueError for a wrong number of frames."""
        SizeRule(1, self.temporal).check(None, None, frames)
        return (frames - 1) // self.temporal + 1


class Tracing(Protocol):
    """How a block whose path depends on values is recorded, where only sizes are known."""

    def settled(self, block: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the values a program of ``block`` depends on beside sizes; () for other blocks.

        Raises ValueError with the reason for values that cannot be followed.
        """

    def prepare(self, twin: nn.Module, values: tuple[int, ...]) -> None:
        """Let a copy without weights run with the settled ``values``."""


@dataclass(frozen=True)
class Family:
    """Everything that is known of one model family, by the names of diffusers' classes.

    ``latents``: geometry of a pipeline, by how its class's name begins; ``return_frames``:
    pipelines that make frames for the caller of what they decode, and nothing else; ``models``:
    configurations of released models by a short name; ``unet_parts``: parts of a UNet that are
    sliced one by one, each called with frames, images or pixels as samples of a batch, or with
    tokens; ``grouped_blocks``: blocks of decoders with GroupNorm.
    """

    name: str
    denoisers: Mapping[str, Denoiser] = field(default_factory=dict)
    vaes: Mapping[str, Vae] = field(default_factory=dict)
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    strips: Mapping[str, Strip] = field(default_factory=dict)
    grouped_blocks: Mapping[str, BlockKind] = field(default_factory=dict)
    unet_parts: tuple[str, ...] = ()
    latents: Mapping[str, Callable[[Any], Geometry]] = field(default_factory=dict)
    return_frames: tuple[str, ...] = ()
    models: Mapping[str, Model] = field(default_factory=dict)
    tracing: Tracing | None = None
