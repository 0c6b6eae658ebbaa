"""The ``arguments:`` of a job: checked against the pipeline's call before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.core.plain_values import shown
from accel.core.validate import did_you_mean
from accel.pipelines.inputs.taken import OWN, Parameter, Takes
from accel.pipelines.job import Job

_SAYS = {"picture": "image", "frames": "video"}
_FORMS = ("image", "video")  # keys of a mapping that names a file


def check_arguments(taken: Takes, job: Job) -> None:
    """Raise ValueError for an argument that the call lacks, or that the job says elsewhere."""
    known = taken.arguments
    for name, value in job.arguments.items():
        if why := _why_elsewhere(taken, name):
            raise ValueError(f"arguments: {name} {why}")
        if name not in known:
            hint = did_you_mean(name, list(known))
            raise ValueError(
                f"{taken.pipeline} takes no argument {name!r}{hint}; it takes "
                f"{', '.join(known) or 'none'}"
            )
        _check_value(known[name], value)


def _why_elsewhere(taken: Takes, name: str) -> str:
    """Return why a job does not say this in its arguments, or ""."""
    for key, target in taken.binds.items():
        if name == target:
            return f"is the job's own {key!r}; write {key}: ... beside prompt"
    if name in OWN:
        key = OWN[name]
        return f"is said by {key!r} of the job" if key else "is set by accel itself"
    parameter = taken.parameters.get(name)
    if parameter is not None and parameter.tensor:
        return "takes a tensor, which a job cannot hold"
    return ""


def file_of(parameter: Parameter, value: Any) -> tuple[str, str] | None:
    """Return "picture" or "frames" and the path, of a value that names a file; else None."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((form, path),) = value.items()
        if form in _FORMS and isinstance(path, str):
            return ("picture" if form == "image" else "frames"), path
    if parameter.media and isinstance(value, str):
        return parameter.media, value
    return None


def _check_value(parameter: Parameter, value: Any) -> None:
    name, kinds = parameter.name, parameter.kinds
    if parameter.media:
        if value is not None and file_of(parameter, value) is None:
            form = _SAYS[parameter.media]
            raise ValueError(
                f"arguments: {name} must name a file, such as {{{form}: FILE}}, got {shown(value)}"
            )
        return
    if parameter.choices and value not in parameter.choices:
        hint = did_you_mean(str(value), list(parameter.choices))
        raise ValueError(
            f"arguments: {name} must be one of {list(parameter.choices)}, got {shown(value)}{hint}"
        )
    if not kinds:
        return
    inner = value if parameter.many and isinstance(value, list) else [value]
    if not all(_is(one, kinds) for one in inner):
        raise ValueError(f"arguments: {name} must be {parameter.described()}, got {shown(value)}")


def _is(value: Any, kinds: tuple[str, ...]) -> bool:
    if isinstance(value, bool):
        return "flag" in kinds
    if isinstance(value, int):
        return "whole" in kinds or "number" in kinds
    if isinstance(value, float):
        return "number" in kinds or ("whole" in kinds and value.is_integer())
    return (isinstance(value, str) and "text" in kinds) or (value is None and "none" in kinds)
