"""What a pipeline hands to its denoiser, VAE and encoders: its own call is run once and recorded.

Nothing is computed with weights and no large tensor is allocated: the pipeline's classes are built
from configurations on the meta device, encoders and tokenizers are stand-ins, and the call runs
under ``SmallValues`` at the full size of the job until the VAE is to decode. So sizes that depend
on each other (tokens, padded text, conditioning channels) are those that the pipeline computes.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from accel import families
from accel.core.diffusers_bridge import running_on
from accel.core.structure import DENOISERS
from accel.core.tree import tree_map
from accel.families.components import Part
from accel.families.family import Model
from accel.memory import stand_ins
from accel.memory.small_values import MOST, SmallValues
from accel.memory.tracker import Tracker, all_true, fused

STEPS = 2
MEDIA = ("image", "video", "mask_image", "mask", "control_image", "control_video", "pose_video",
         "face_video", "conditioning_frames", "controls")  # fmt: skip
VIDEOS = ("video", "mask", "control_video", "pose_video", "face_video", "conditioning_frames")
# Parts of names of pipelines that make something of a picture or video, even where their signature
# lets it be left out.
FROM_MEDIA = ("ImageToVideo", "VideoToVideo", "Img2Img", "Image2Image", "Edit", "Kontext",
              "Inpaint", "Fill", "Control", "VACE", "I2V", "I2I", "Upscale")  # fmt: skip


class Call(NamedTuple):
    """One call: the component, its method, and the arguments by name.

    Large tensors among them are on the meta device.
    """

    component: str
    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """The calls of one run of a pipeline, in order."""

    calls: tuple[Call, ...] = ()

    def first(self, component: str, method: str = "forward") -> Mapping[str, Any] | None:
        """Return the arguments of the first call of a component, None if it was not called."""
        found = (c for c in self.calls if (c.component, c.method) == (component, method))
        return next((c.arguments for c in found), None)

    @property
    def denoisers(self) -> dict[str, Mapping[str, Any]]:
        """Arguments of the first call of each denoiser."""
        found = {name: self.first(name) for name in DENOISERS}
        return {name: given for name, given in found.items() if given is not None}

    @property
    def step(self) -> list[Call]:
        """Denoiser calls of the first step, such as one for each branch of guidance."""
        found: list[Call] = []
        for call in self.calls:
            if call.method == "step" and found:
                break
            found += [call] if call.component in DENOISERS else []
        return found

    @property
    def branches(self) -> int:
        """Denoiser calls in one step."""
        return max(1, len(self.step))


class CannotRecord(ValueError):
    """A pipeline's call cannot be run without its weights."""


class _Done(BaseException):
    """Everything has been recorded."""


def record(model: Model, size: tuple[int, int, int], *, most: int = MOST, **given: Any) -> Recorded:
    """Run a pipeline's call once for ``size`` (width, height, frames) and return what it called.

    ``given`` are further arguments of the call. Raises CannotRecord, with the reason in one line.
    """
    import diffusers

    cls = getattr(diffusers, model.pipeline, None)
    if cls is None:
        raise CannotRecord(f"diffusers has no pipeline {model.pipeline!r}")
    media = any(word in model.pipeline for word in FROM_MEDIA)
    reason: Exception | None = None
    for attempt in (media, not media):
        calls: list[Call] = []
        try:
            with _quiet(), torch.no_grad(), fused(), all_true(), Tracker(), SmallValues(most):
                pipe = _build(cls, model, calls)
                pipe(**{**call_arguments(cls, size, attempt), **given})
        except _Done:
            pass
        except Exception as error:  # whatever diffusers' code raises: it is told
            reason = reason or error
            continue
        return Recorded(tuple(calls))
    text = " ".join(str(reason).split())[:200]
    raise CannotRecord(f"{model.pipeline} cannot be run without weights: {text}") from reason


def call_arguments(
    cls: Any, size: tuple[int, int, int], media: bool | None = None
) -> dict[str, Any]:
    """Return arguments of one call for ``size``, with what the pipeline cannot do without.

    ``media``: also pictures and videos that its signature lets out; None decides by its name.
    """
    from PIL import Image

    if media is None:
        media = any(word in cls.__name__ for word in FROM_MEDIA)
    width, height, frames = size
    takes = inspect.signature(cls.__call__).parameters
    values: dict[str, Any] = {
        "prompt": "prompt", "width": width, "height": height, "num_frames": frames,
        "num_inference_steps": STEPS, "video_length": frames,
    }  # fmt: skip
    picture = Image.new("RGB", (width, height))
    for name in MEDIA:
        if name in takes and (media or takes[name].default is inspect.Parameter.empty):
            values[name] = [picture] * frames if name in VIDEOS else picture
    return {name: value for name, value in values.items() if name in takes}


def _build(cls: Any, model: Model, calls: list[Call]) -> Any:
    """Return the pipeline with parts on the meta device and stand-ins that record."""
    import diffusers

    cls = running_on(cls, torch.device("cpu"))
    names = inspect.signature(cls.__init__).parameters
    made: dict[str, Any] = {}
    for name, (kind, config) in model.schedulers.items():
        made[name] = _stepping(getattr(diffusers, kind), calls).from_config(dict(config))
    for name, part in parts(model).items():
        made[name] = _recording(name, part, calls)
    for name, encoder in model.encoders.items():
        made[name] = stand_ins.Encoder(encoder.cls, encoder.settings(), encoder.dtype)
        made[name].register_forward_pre_hook(_noting(name, calls), with_kwargs=True)
    for name in model.unknown:
        if name.startswith("text_encoder"):  # nothing but its results counts here
            made[name] = stand_ins.unknown_encoder(model.denoiser)
    for name in names:
        if name not in made and (reader := _reader(name, model, made)) is not None:
            made[name] = reader
    given = {**model.settings, **made}
    empty = inspect.Parameter.empty
    missing = {n: None for n, p in names.items() if n not in given and p.default is empty}
    missing.pop("self", None)
    pipe = cls(**{n: v for n, v in {**missing, **given}.items() if n in names})
    _prepare(pipe)
    return pipe


def _stepping(kind: Any, calls: list[Call]) -> Any:
    """Return a subclass of a scheduler that notes its steps; pipelines may copy its instances."""
    if not hasattr(kind, "step"):
        return kind

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(Call("scheduler", "step", {}))
        return kind.step(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"step": step})


def _reader(name: str, model: Model, made: Mapping[str, Any]) -> Any:
    """Return a stand-in for a component that reads prompts or pictures, None for others."""
    if name.startswith(("tokenizer", "processor", "text_processor")):
        number = name.removeprefix("tokenizer") if name.startswith("tokenizer") else ""
        encoder = made.get(f"text_encoder{number}")
        limit = 512 if encoder is None else stand_ins.limit_of(encoder.config)
        return stand_ins.Tokenizer(model.tokens, model.limits.get(name, limit))
    if name.startswith(("image_processor", "feature_extract")):
        encoder = made.get("image_encoder")
        return stand_ins.ImageProcessor(
            224 if encoder is None else stand_ins.side_of(encoder.config)
        )
    return None


def _noting(name: str, calls: list[Call]) -> Callable[..., None]:
    def note(module: Any, args: Any, kwargs: Any) -> None:
        first = "pixel_values" if args and args[0].ndim == 4 else "input_ids"
        named = dict(zip((first, "attention_mask"), args, strict=False))
        calls.append(Call(name, "forward", {**named, **kwargs}))

    return note


def _key(arguments: Mapping[str, Any]) -> str:
    """Return a text that is equal for arguments of equal sizes."""

    def leaf(x: Any) -> Any:
        return (x.shape, x.dtype) if isinstance(x, torch.Tensor) else x

    return repr(tree_map(leaf, dict(arguments)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers from warning about the prompt and the settings, which are no one's."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def parts(model: Model) -> dict[str, Part]:
    """Return the parts that are diffusers' models, by component name."""
    name = "unet" if "UNet" in model.denoiser.cls else "transformer"
    second = {} if model.second is None else {"transformer_2": model.second}
    return {name: model.denoiser, **second, "vae": model.vae, **model.others}


def _recording(name: str, part: Part, calls: list[Call]) -> Any:
    """Return a module whose calls are recorded; they run on the meta device."""
    module = part.few_layers()
    if known := families.denoisers().get(part.cls):
        known.prepare(module)
    methods = ("encode", "decode") if hasattr(module, "decode") else ("forward",)
    for method in methods:
        if hasattr(module, method):
            setattr(module, method, _recorded(name, module, method, calls))
    return module


def _recorded(name: str, module: Any, method: str, calls: list[Call]) -> Any:
    real = getattr(module, method)
    signature = inspect.signature(real)
    results: dict[str, Any] = {}

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        given = {k: v for k, v in bound.items() if signature.parameters[k].kind is not _KEYWORDS}
        for extra in (v for k, v in bound.items() if k not in given):
            given.update(extra)
        calls.append(Call(name, method, given))
        if (name, method) == ("vae", "decode"):
            raise _Done
        key = _key(given)
        if key not in results:
            results[key] = real(*args, **kwargs)
        return results[key]

    return call


_KEYWORDS = inspect.Parameter.VAR_KEYWORD


def _prepare(pipe: Any) -> None:
    """Read one frame of a video for all equal ones."""
    pipe.set_progress_bar_config(disable=True)
    processor: Any = getattr(pipe, "video_processor", None)
    if hasattr(processor, "preprocess_video"):
        read = processor.preprocess_video

        @functools.wraps(read)
        def one_for_all(video: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(video, list) or any(frame is not video[0] for frame in video):
                return read(video, *args, **kwargs)
            first = read(video[:1], *args, **kwargs)
            return first.repeat(1, 1, len(video), 1, 1)

        processor.preprocess_video = one_for_all
