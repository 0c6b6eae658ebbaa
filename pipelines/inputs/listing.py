"""``accel render --list-arguments MODEL``: what a job for a model may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.pipelines.batch.simulated import config_folder, index
from accel.pipelines.inputs.binding import WHAT
from accel.pipelines.inputs.taken import FILES, PLAIN, Takes, pipeline_class, takes
from accel.pipelines.job import JobError
from accel.pipelines.load import TINY


def class_of(model: str) -> str:
    """Return the name of a model's pipeline class: its own, or that of its index.

    Raises JobError for a hub model that is not on this machine, FileNotFoundError for no model.
    """
    if model.isidentifier() and model != TINY and not Path(model).exists():
        return model
    folder = config_folder(model)
    if folder is None:
        raise JobError(
            f"{model} is not on this machine, so its class is not known; give the class, such as "
            "WanImageToVideoPipeline, or download it first"
        )
    return str(index(str(folder))["_class_name"])


def listed(model: str) -> Takes:
    """Return what a job for a model may say, from its folder, its hub id or its class's name.

    Raises ValueError for a class that diffusers does not have.
    """
    return takes(pipeline_class(class_of(model)))


def lines(taken: Takes) -> list[str]:
    """Return the listing for people."""
    keys = [(key, taken.binds[key]) for key in (*PLAIN, *FILES) if key in taken.binds]
    if {"image", "control"} & set(taken.binds):  # then a size is what pictures are brought to
        known = dict(keys)
        keys += [(key, "the picture's size") for key in ("width", "height") if key not in known]
    out = [f"{taken.pipeline}: keys of a job"]
    for key, target in keys:
        need = "  needed" if key in taken.needs else ""
        what = WHAT.get(key, "") + (
            " (a video, or a picture for every frame)"
            if key in FILES and taken.is_frames(key) and key != "video"
            else ""
        )
        out.append(f"  {key:<16}{'-> ' + target:<26}{what}{need}".rstrip())
    out.append("arguments: of a job")
    for name, parameter in taken.arguments.items():
        need = "needed" if f"arguments.{name}" in taken.needs else _shown(parameter.default)
        out.append(f"  {name:<34}{parameter.described():<28}{need}".rstrip())
    return out


def _shown(default: Any) -> str:
    text = "" if default is None else f"default {default!r}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_json(taken: Takes) -> dict[str, Any]:
    """Return the listing as plain JSON values."""
    return {
        "pipeline": taken.pipeline,
        "keys": dict(taken.binds),
        "needs": list(taken.needs),
        "arguments": {
            name: {
                "takes": p.described(),
                "default": p.default if _plain(p.default) else repr(p.default),
                "required": f"arguments.{name}" in taken.needs,
            }
            for name, p in taken.arguments.items()
        },
    }


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
