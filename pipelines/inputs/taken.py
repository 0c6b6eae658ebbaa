"""What the call of a pipeline's class takes, read from its signature.

The names of arguments say nearly everything: ``image`` is a picture, ``control_video`` are frames
that a control network follows. What they do not say stands in the class's family
(``accel/families``). The result is plain data, so that a dry run can have it made by a helper
process, since only that process has to load diffusers.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from accel import families
from accel.core.validate import did_you_mean
from accel.families.family import Pipeline

# Keys of a job, and the arguments that they may go to, the first that there is.
PLAIN = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "steps": "num_inference_steps",
    "guidance": "guidance_scale", "width": "width", "height": "height", "frames": "num_frames",
}  # fmt: skip
FILES = {
    "image": ("image", "cond_image"),
    "last_image": ("last_image",),
    "video": ("video",),
    "mask": ("mask_image", "mask", "mask_video"),
    "references": ("reference_images", "image_reference", "images", "input_images", "ref_image"),
    "control": ("control_image", "control_video", "conditioning_frames"),
}
# Arguments that a run gives itself, and how a job says them where it can.
OWN = {
    "generator": "seed", "latents": "motion", "num_images_per_prompt": "count",
    "num_videos_per_prompt": "count", "output_type": "", "return_dict": "",
    "callback_on_step_end": "", "callback_on_step_end_tensor_inputs": "", "callback": "",
    "callback_steps": "",
}  # fmt: skip
_FRAMES = ("video", "frames")  # how names of arguments end that take several pictures in order
_LOOSE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Parameter:
    """One argument of a pipeline's call.

    ``kinds``: what it may be, of "text", "number", "whole", "flag", "none", or () where that cannot
    be said. ``media``: "picture" or "frames" if it takes them. ``many``: a list of ``kinds`` will
    do. ``choices``: the texts that it may be, if they are limited.
    """

    name: str
    required: bool
    default: Any = None
    kinds: tuple[str, ...] = ()
    media: str = ""
    many: bool = False
    tensor: bool = False
    choices: tuple[str, ...] = ()

    def described(self) -> str:
        """Return in words what it takes."""
        words = {"text": "text", "number": "number", "whole": "whole number", "flag": "true/false"}
        if self.media:
            return {"picture": "picture file", "frames": "video file"}[self.media]
        if self.choices:
            return " | ".join(self.choices)
        found = [words[kind] for kind in self.kinds if kind in words]
        if "whole" in self.kinds and "number" in self.kinds:
            found.remove("whole number")
        text = " or ".join(found) or "any value"
        return f"{text}, or a list" if self.many and found else text


@dataclass(frozen=True)
class Takes:
    """What a job for a pipeline's class may say.

    ``binds``: argument by key of a job. ``needs``: keys of a job, or "arguments.NAME", that it
    cannot do without. ``conditions``: the class in whose family it stands how pictures and video
    become one argument of that name, or "".
    """

    pipeline: str
    parameters: Mapping[str, Parameter]
    binds: Mapping[str, str]
    needs: tuple[str, ...] = ()
    conditions: str = ""

    @property
    def arguments(self) -> dict[str, Parameter]:
        """Return what ``arguments:`` may hold."""
        bound = set(self.binds.values())
        return {
            name: p
            for name, p in self.parameters.items()
            if name not in bound and name not in OWN and not p.tensor and not name.startswith("_")
        }

    def is_frames(self, key: str) -> bool:
        """Tell whether a key of a job goes to an argument of several pictures in order."""
        target = self.binds[key]
        if target == "conditions":
            return key == "video"
        return target.endswith(_FRAMES) or (target == "mask" and "video" in self.parameters)

    def control_keys(self) -> tuple[str, ...]:
        """Return the keys of a job that an animation and its mask go to.

        Raises ValueError for a call that takes no video to follow.
        """
        if "control" in self.binds and self.is_frames("control"):
            return ("control",)
        if {"video", "mask"} <= set(self.binds) and "strength" not in self.parameters:
            return ("video", "mask")
        raise ValueError(f"{self.pipeline} takes no video to follow; use follow: dual-clock")

    def size(self, name: str) -> int | None:
        """Return the call's own width, height or num_frames, if it is a number."""
        default = self.parameters[name].default if name in self.parameters else None
        return default if isinstance(default, int) and not isinstance(default, bool) else None


@lru_cache(maxsize=512)
def takes(cls: Any) -> Takes:
    """Return what a job for a pipeline of this class may say."""
    names = [c.__name__ for c in cls.__mro__]
    listed = next((n for n in names if n in families.pipelines()), "")
    known = families.pipelines().get(listed, Pipeline())
    found = {
        name: _parameter(name, p)
        for name, p in inspect.signature(cls.__call__).parameters.items()
        if name != "self" and p.kind not in _LOOSE
    }
    if known.conditions is not None:  # which stand instead of these
        found = {n: p for n, p in found.items() if n not in _INSTEAD}
    binds = {key: name for key, name in PLAIN.items() if name in found}
    parts = inspect.signature(cls.__init__).parameters
    for key, choices in FILES.items():
        target = known.inputs.get(key) or next((c for c in choices if c in found), None)
        if target is not None:
            binds[key] = target
    if known.conditions is not None:
        binds |= dict.fromkeys(("image", "last_image", "video"), "conditions")
    elif "control" not in binds and "image" in found and {"controlnet", "adapter"} & set(parts):
        binds["control"] = binds.pop("image")
    return Takes(
        cls.__name__, found, binds, _needs(known, found, binds, parts),
        "" if known.conditions is None else listed,
    )  # fmt: skip


_INSTEAD = ("image", "video", "frame_index", "strength")  # of the argument conditions


def _needs(
    known: Pipeline, found: Mapping[str, Parameter], binds: Mapping[str, str], parts: Any
) -> tuple[str, ...]:
    """Return what a call cannot do without, even if its signature has a default for it."""
    keys = {target: key for key, target in reversed(list(binds.items())) if key in FILES}
    needs = dict.fromkeys(known.needs)
    for name, parameter in found.items():
        if parameter.required and name not in OWN and name not in PLAIN.values():
            needs[keys.get(name, f"arguments.{name}")] = None
    if "strength" in found:  # how far it changes what it is given
        needs |= dict.fromkeys([key for key in ("image", "video") if key in binds][:1])
    if "mask_image" in found:
        needs |= {"image": None, "mask": None}
    if {"controlnet", "adapter"} & set(parts) and "control" in binds:
        needs["control"] = None
    return tuple(key for key in needs if key in binds or key.startswith("arguments."))


def _parameter(name: str, parameter: inspect.Parameter) -> Parameter:
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    members = list(_members(parameter.annotation))
    simple = {str: "text", int: "whole", float: "number", bool: "flag", type(None): "none"}
    kinds = tuple(dict.fromkeys(simple[m] for m, _ in members if m in simple))
    choices = tuple(
        str(choice.value)
        for m, _ in members
        if isinstance(m, type) and issubclass(m, enum.Enum)
        for choice in m
    )
    written = str(parameter.annotation)
    media = ""
    if "PIL" in written or "Image.Image" in written:
        media = "frames" if name.endswith(_FRAMES) else "picture"
    tensors = [m for m, _ in members if "Tensor" in str(m)]
    tensor = bool(tensors) and not media and not set(kinds) - {"none"}
    if choices or any(m not in simple and m not in tensors for m, _ in members):
        kinds = ()
    many = any(inside for _, inside in members)
    if not isinstance(default, (bool, int, float, str, list, tuple, dict, type(None))):
        default = getattr(default, "value", None)
    return Parameter(name, required, default, kinds, media, many, tensor, choices)


def _members(annotation: Any, inside: bool = False) -> typing.Iterator[tuple[Any, bool]]:
    """Yield the types that an annotation allows, and whether each stands in a list."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member, inside)
    elif origin in (list, tuple):
        for member in typing.get_args(annotation):
            if member is not Ellipsis:
                yield from _members(member, True)
    else:
        yield annotation, inside


def pipeline_class(name: str) -> Any:
    """Return a pipeline's class of diffusers by its name.

    Raises ValueError for another name, with the nearest one.
    """
    import diffusers

    known = [n for n in dir(diffusers) if n.endswith("Pipeline")]
    if name not in known:
        raise ValueError(f"diffusers has no pipeline {name!r}{did_you_mean(name, known)}")
    return getattr(diffusers, name)


def takes_of(name: str) -> Takes | str:
    """Return what a job for a class may say, or in words why that is not known."""
    try:
        return takes(pipeline_class(name))
    except (ValueError, ImportError, RuntimeError) as error:
        return str(error)
