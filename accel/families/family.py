"""What accel knows about a model family: one record, filled in by one file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

from accel.families.components import Encoder, Part
from accel.families.sizes import SizeRule

Layout = Literal["BCFHW", "BFCHW", "tokens", "BCHW"]
Inputs = Callable[[Any, tuple[int, int, int, int, int]], dict[str, Any]]
Conditions = Callable[[Mapping[str, Any], int | None], list[Any]]
Scheduler = tuple[str, Mapping[str, Any]]  # class and configuration
BlockKind = Literal["resnet", "cached resnet", "upsampler", "blender", "causal middle"]


@dataclass(frozen=True)
class Model:
    """The classes and configurations of a pipeline.

    ``encoders`` of prompts and images, and ``others`` (such as a ControlNet or connectors) go by
    component name. ``batch`` is 2 where both guidance branches run in one call. ``unknown`` names
    components that cannot be simulated. ``pipeline``: its class in diffusers, whose call is
    recorded. ``second``: another denoiser, that takes over in late steps. ``schedulers``: classes
    and configurations of the scheduler, and of a guider. ``settings``: further arguments of the
    pipeline's class. ``tokens``: the length of a prompt where the pipeline does not pad it.
    ``limits``: the most tokens of a prompt, by tokenizer.
    """

    denoiser: Part
    vae: Part
    batch: int = 1
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    pipeline: str = ""
    second: Part | None = None
    others: Mapping[str, Part] = field(default_factory=dict)
    schedulers: Mapping[str, Scheduler] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 512
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Denoiser:
    """A denoiser's class.

    ``inputs(denoiser, latent)``, for denoisers of pipelines that diffusers does not have, gives the
    arguments of one call on the meta device for a latent of shape [batch, channels, frames, height,
    width]; elsewhere they are recorded. ``positions(config)`` gives the most latent frames, and
    latent pixels of a side, that it has positions for; None is any number. ``prepare(denoiser)``
    makes one without weights run on the meta device. ``reads_values``: the sizes of its activations
    depend on values, such as those of masks.
    """

    inputs: Inputs | None = None
    positions: Callable[[Mapping[str, Any]], tuple[int | None, int | None]] | None = None
    prepare: Callable[[Any], None] = lambda denoiser: None
    reads_values: bool = False


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's class, as far as its call does not say it by the names of its arguments.

    ``grid``: its own checks want width and height to be multiples of so many pixels. ``images``: it
    makes single images. ``needs``: keys of a job that it cannot do without, or
    "arguments.NAME". ``inputs``: the argument that a key of a job goes to. ``clean_first``: the
    first frame of its latents is the given picture without noise. ``conditions(given, frames)``
    makes its argument ``conditions`` of the job's ``image``, ``last_image`` and
    ``video``.
    """

    grid: int = 8
    images: bool = False
    needs: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    clean_first: bool = False
    conditions: Conditions | None = None


@dataclass(frozen=True)
class Vae:
    """A VAE's class.

    ``scales(config)`` gives pixels and frames per latent cell. ``framewise``: frames are samples of
    a batch. ``mixes_frames``: its decoder still looks at several frames at once.
    """

    scales: Callable[[Mapping[str, Any]], tuple[int, int]]
    framewise: bool = False
    mixes_frames: bool = False


@dataclass(frozen=True)
class Chunks:
    """Class names of a decoder's parts that look at several frames, none of them later ones.

    ``convolution`` pads the start with the first frame. ``upsampler`` makes one frame of the first
    and two of each other one, if its attribute ``temporal`` is true. In ``attention`` a frame sees
    itself and earlier ones.
    """

    convolution: str
    upsampler: str = ""
    temporal: str = ""
    attention: str = ""


@dataclass(frozen=True)
class Decoder:
    """The decoder of a VAE.

    ``head`` names its last norm and activation, if its norms look at one pixel. ``grouped``: it has
    GroupNorm, whose statistics run over the whole picture; ``caches``: so do its blocks, which take
    and return caches. ``pieces`` is set where the VAE calls it
    for a few latent frames at a time: "joined" if the VAE joins the results after every piece,
    "apart" if it keeps them separate until the end. ``chunks`` is set where the VAE calls it for
    all frames at once, but they could be decoded one after the other.
    """

    head: tuple[str, str] | None = None
    grouped: bool = False
    caches: bool = False
    pieces: Literal["", "joined", "apart"] = ""
    chunks: Chunks | None = None


@dataclass(frozen=True)
class Strip:
    """A block of a VAE decoder whose norms look at one pixel.

    ``halo``: rows that its convolutions see beyond a strip. ``scale``: rows of the result per row.
    ``cached``: it takes caches. ``beside``: its result is added to that of all other parts of the
    block around it.
    """

    halo: int
    scale: int = 1
    cached: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Geometry:
    """The latent grid of a pipeline.

    ``channels`` counts the channels that are noise, ``spatial`` is pixels per latent pixel, and
    ``temporal`` is frames per latent frame. "Causal" VAEs (frames = temporal n + 1) keep frames 0,
    temporal, 2 temporal, and so on. ``layout`` is that of the latents the pipeline takes: "tokens"
    are patches of one latent pixel in a sequence, "BCHW" is one image per call. Pipelines multiply
    latents by their scheduler's first sigma themselves. ``casts``: the pipeline brings latents to
    the dtype that it wants; others are given them in the dtype of their prompt. ``clocks``: how
    long a crude animation leads a run, as fractions of its steps: everywhere, and where it is
    followed closely (Time-to-Move's choices).
    """

    channels: int
    spatial: int
    temporal: int
    layout: Layout = "BCFHW"
    casts: bool = True
    clocks: tuple[float, float] = (0.06, 0.14)

    @property
    def supersample(self) -> int:
        """Noise samples per pixel and side: a latent pixel is made of 16 x 16 or more.

        Noise moves by whole samples, so a block of n samples a side keeps about 1 - 1 / (2 n).
        """
        return -(-16 // self.spatial)

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a clip.

        Raises ValueError for a number of frames that the model cannot make.
        """
        SizeRule(1, self.temporal).check(None, None, frames)
        return (frames - 1) // self.temporal + 1


class Tracing(Protocol):
    """How to record a block whose path depends on values, when only sizes are known."""

    def settled(self, block: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the values that a program of ``block`` depends on besides sizes.

        They are () for other blocks. Raises ValueError with the reason for values that cannot be
        followed.
        """

    def prepare(self, twin: nn.Module, values: tuple[int, ...]) -> None:
        """Make a copy without weights run with the settled ``values``."""


@dataclass(frozen=True)
class Family:
    """Everything that is known about one model family, by the names of diffusers' classes.

    ``pipelines``: those that generate from a prompt, and what they take. ``latents``: geometry by
    the start of a pipeline's class name; a rule reads only the ``config`` of components, since it
    is also asked before a model is loaded. ``return_frames``: pipelines that only make frames for
    the caller from what they decode. ``models``: configurations of released models by short name.
    ``unet_parts``: parts of a UNet that are sliced one by one; each is called with frames, images
    or pixels as samples of a batch, or with tokens. ``grouped_blocks``: kinds of decoder blocks
    with GroupNorm.
    """

    name: str
    denoisers: Mapping[str, Denoiser] = field(default_factory=dict)
    vaes: Mapping[str, Vae] = field(default_factory=dict)
    decoders: Mapping[str, Decoder] = field(default_factory=dict)
    strips: Mapping[str, Strip] = field(default_factory=dict)
    grouped_blocks: Mapping[str, BlockKind] = field(default_factory=dict)
    unet_parts: tuple[str, ...] = ()
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    latents: Mapping[str, Callable[[Any], Geometry]] = field(default_factory=dict)
    return_frames: tuple[str, ...] = ()
    models: Mapping[str, Model] = field(default_factory=dict)
    tracing: Tracing | None = None
