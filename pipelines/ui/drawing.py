"""From the drawing on the page to a job's motion and strength, and a preview of the flow.

The browser sends polygons with keyframes and painted cells; camera and driving video come from
widgets. Everything is checked by the classes that render it, after limits of size.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from accel.core.atomic_write import write_atomic
from accel.pipelines.inputs.media import read_picture
from accel.pipelines.inputs.resizing import fitted as fitted_to
from accel.pipelines.job import Job, JobError
from accel.pipelines.motion.camera import Camera
from accel.pipelines.motion.flow_pictures import arrows, color_wheel
from accel.pipelines.motion.flows import make_flow, read_layers
from accel.pipelines.ui.finished import Finished
from accel.pipelines.ui.settings import Limits
from accel.pipelines.ui.studio import Studio
from accel.pipelines.ui.uploads import first_frame


@dataclass(frozen=True)
class CameraSlider:
    """A slider's text, ends and step, and where the camera stands ``still``.

    Per frame.
    """

    label: str
    low: float
    high: float
    step: float
    still: float = 0.0


CAMERA = {
    "pan_x": CameraSlider("Pan right, pixels", -8.0, 8.0, 0.25),
    "pan_y": CameraSlider("Pan down, pixels", -8.0, 8.0, 0.25),
    "zoom": CameraSlider("Zoom, factor", 0.9, 1.1, 0.005, still=1.0),
    "roll": CameraSlider("Roll, degrees", -10.0, 10.0, 0.5),
    "orbit_x": CameraSlider("Orbit right, degrees", -5.0, 5.0, 0.25),
    "orbit_y": CameraSlider("Orbit up, degrees", -5.0, 5.0, 0.25),
    "dolly": CameraSlider("Dolly forward, of the median depth", -0.05, 0.05, 0.005),
}
STILL = {name: slider.still for name, slider in CAMERA.items()}
FIRST = (64, 64, 17)  # width, height, frames of the canvas before the form says other ones
NO_FLOW = '<div class="empty"><p class="quiet">The motion will appear here.</p></div>'
_CELLS = 64  # painted cells along a side, at most
_SHOWN = 160  # pixels of the flow preview along its longer side


def read_motion(
    studio: Studio,
    drawing: Mapping[str, Any] | None,
    camera: Mapping[str, float],
    driving: Mapping[str, Any] | None,
    strength: float,
    size: tuple[int, int, int],
) -> dict[str, Any] | None:
    """Return ``{"motion", "strength", "size"}`` of a job, None if nothing moves.

    Args:
        drawing: as the canvas sends it, ``camera`` values of ``CAMERA``.
        driving: as ``Studio.keep_driving`` made it.
        strength: where none is painted.
        size: width, height and frames of the job.

    Raises:
        JobError: the drawing cannot be.
    """
    try:
        layers = _layers(studio, drawing)
        moving = _camera(camera)
        motion: dict[str, Any] = {}
        if layers:
            motion["drag"] = layers
        if moving:
            motion["camera"] = moving
        if driving:
            motion["video"] = dict(driving)
        if not motion:
            return None
        painted = (drawing or {}).get("brush")
        gamma = _strength(studio, painted, strength, size)
        return {"motion": motion, "strength": gamma, "size": list(size)}
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise JobError("the drawing is not one that this page makes") from error
    except ValueError as error:
        raise JobError(str(error)) from error


def fitted(
    studio: Studio, drawn: Mapping[str, Any], size: tuple[int, int, int]
) -> Mapping[str, Any]:
    """Return what ``read_motion`` made, stretched with the picture to another size."""
    if list(size) == drawn["size"]:
        return drawn
    scale = (size[0] / drawn["size"][0], size[1] / drawn["size"][1])
    strength = drawn["strength"]
    if isinstance(strength, Mapping) and "map" in strength:
        gamma = Image.fromarray(np.load(strength["map"], allow_pickle=False)[0])
        wide = np.asarray(gamma.resize(size[:2], Image.Resampling.NEAREST))[None]
        strength = {"map": str(_keep(studio, "strength", ".npy", wide))}
    motion = _scaled(drawn["motion"], scale)
    motion = {key: value for key, value in motion.items() if value or key != "drag"}
    return {"motion": motion, "strength": strength, "size": list(size)}


def _layers(studio: Studio, drawing: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return layers as a job takes them, checked."""
    limits, drawn = studio.limits, list((drawing or {}).get("layers") or ())
    if len(drawn) > limits.polygons:
        raise JobError(f"{len(drawn)} polygons are drawn, at most {limits.polygons} here")
    layers = []
    for layer in drawn:
        if len(layer["polygon"]) > limits.corners or len(layer["keys"]) > limits.keys:
            raise JobError(
                f"a polygon has at most {limits.corners} corners and {limits.keys} keyframes here"
            )
        keys = sorted(layer["keys"], key=lambda key: key["at"])
        moved = [key for key in keys if key["at"] > 0]
        if moved:
            layers.append({"polygon": layer["polygon"], "keys": keys, "z": layer.get("z", 0)})
        else:
            layers.append({"polygon": layer["polygon"], "by": [0, 0], "z": layer.get("z", 0)})
    read_layers(layers)
    return layers


def _camera(values: Mapping[str, float]) -> dict[str, Any] | None:
    """Return the camera of a job, None if it stands still."""
    v = {name: float(values[name]) for name in CAMERA}
    if v == STILL:
        return None
    camera = Camera(
        pan=(v["pan_x"], v["pan_y"]), zoom=v["zoom"], roll=v["roll"],
        orbit=(v["orbit_x"], v["orbit_y"]), dolly=v["dolly"],
    )  # fmt: skip
    plain = asdict(Camera())
    data = {k: v for k, v in asdict(camera).items() if v != plain[k]}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _strength(
    studio: Studio, painted: Any, strength: float, size: tuple[int, int, int]
) -> float | dict[str, str]:
    """Return one number, or a map [1, H, W] kept beside the queue where cells are painted."""
    cells = [] if not painted else list(painted["cells"])
    if not any(value is not None for value in cells):
        return float(strength)
    columns, rows = int(painted["columns"]), int(painted["rows"])
    if not (0 < columns <= _CELLS and 0 < rows <= _CELLS and len(cells) == columns * rows):
        raise JobError("the painted strength is not one that this page makes")
    values = np.array([strength if v is None else v for v in cells], np.float32)
    if not np.isfinite(values).all():
        raise JobError("the painted strength holds values that are no numbers")
    grid = Image.fromarray(values.clip(0, 1).reshape(rows, columns))
    gamma = np.asarray(grid.resize(size[:2], Image.Resampling.NEAREST))[None]
    return {"map": str(_keep(studio, "strength", ".npy", gamma))}


def _keep(studio: Studio, kind: str, suffix: str, values: np.ndarray) -> Path:
    """Keep an array under its hash, since its job may run after this page is gone."""
    file = io.BytesIO()
    np.save(file, values)
    path = studio.state / kind / f"{hashlib.sha256(file.getvalue()).hexdigest()[:24]}{suffix}"
    write_atomic(path, file.getvalue())
    return path


# ------------------------------------------------------------------------------------------ shown


def flow_preview(motion: Mapping[str, Any], size: tuple[int, int, int], fps: float) -> str:
    """Return the flow of a job as an animated picture (color wheel and arrows), in HTML.

    Computed at a reduced size. Raises JobError for a motion that cannot be had.
    """
    width, height, frames = size
    scale = min(1.0, _SHOWN / max(width, height))
    small = {"width": max(8, round(width * scale)), "height": max(8, round(height * scale))}
    try:
        flow, _ = make_flow(_scaled(motion, (scale, scale)), frames=frames, **small)
    except ValueError as error:
        raise JobError(str(error)) from error
    wheel = color_wheel(flow)
    enlarge = max(1, 320 // max(small.values()))
    pictures = arrows(wheel, flow, spacing=20, enlarge=enlarge)
    about = f"the motion, frame by frame: {_in_words(motion)}"
    return f'<img class="flow" alt="{about}" src="{_webp(pictures, fps)}">'


def _in_words(motion: Mapping[str, Any]) -> str:
    """Return such as "2 polygons, 4 keyframes, camera"."""
    layers = motion.get("drag") or ()
    parts = []
    for count, what in (
        (len(layers), "polygon"), (sum(len(layer.get("keys", ())) for layer in layers), "keyframe"),
    ):  # fmt: skip
        parts += [f"{count} {what}{'s' * (count > 1)}"] if count else []
    return ", ".join([*parts, *(kind for kind in ("camera", "video") if motion.get(kind))])


def _scaled(motion: Mapping[str, Any], scale: tuple[float, float]) -> dict[str, Any]:
    """``motion`` with its pixels multiplied by ``scale``, across and down."""

    def points(values: Any) -> list[list[float]]:
        return [[float(x) * scale[0], float(y) * scale[1]] for x, y in values]

    scaled = dict(motion)
    if "camera" in motion:
        camera = scaled["camera"] = dict(motion["camera"])
        for pose in (camera, *(keys := [dict(key) for key in camera.get("keys", ())])):
            if "pan" in pose:
                pose["pan"] = points([pose["pan"]])[0]
        if keys:
            camera["keys"] = keys
    scaled["drag"] = []
    for layer in motion.get("drag", ()):
        layer = {**layer, "polygon": points(layer["polygon"])}
        if layer.get("by"):
            layer["by"] = points([layer["by"]])[0]
        keys = layer.get("keys", ())
        layer["keys"] = [{**k, "move": points([k.get("move", [0, 0])])[0]} for k in keys]
        scaled["drag"].append(layer)
    return scaled


def _webp(pictures: np.ndarray, fps: float) -> str:
    """Frames uint8 [F, H, W, 3] as the address of an animated picture that plays for ever."""
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def camera_of(job: Job) -> dict[str, float]:
    """Return the values of ``CAMERA`` for a job."""
    data = (job.motion or {}).get("camera") or {}
    camera = Camera(**{key: value for key, value in data.items() if key != "depth"})
    return {
        "pan_x": camera.pan[0], "pan_y": camera.pan[1], "zoom": camera.zoom, "roll": camera.roll,
        "orbit_x": camera.orbit[0], "orbit_y": camera.orbit[1], "dolly": camera.dolly,
    }  # fmt: skip


def sketch_of(job: Job) -> dict[str, Any]:
    """Return the drawing of a job, as the canvas sends it."""
    plain = {"move": [0, 0], "scale": 1, "rotate": 0, "easing": "linear"}
    layers = []
    for layer in (job.motion or {}).get("drag") or ():
        keys = layer.get("keys") or [{"at": 1, "move": layer["by"]}]
        layers.append({"polygon": layer["polygon"], "keys": [{**plain, **key} for key in keys]})
    return {"layers": layers, "brush": None}


def canvas_limits(limits: Limits) -> dict[str, int]:
    """Return what the canvas may draw: polygons, and painted cells along a side, at most."""
    return {"polygons": limits.polygons, "cells": _CELLS}


def canvas(
    size: tuple[int, int, int], behind: Finished | Path | None = None, layers: Any = None, *,
    fit: str = "stretch", keep: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return what the canvas shows: its size, the picture behind it, and layers.

    The picture is ``behind``, or the first frame of a video (``keep``: what is there), brought to
    the size as a job's ``fit`` says. None for the layers leaves those that are drawn, stretched to
    the size. Raises JobError for a file that cannot be read.
    """
    width, height, frames = size
    background = None if keep else ""
    if behind is not None:
        file = io.BytesIO()
        try:
            if isinstance(behind, Path):
                first = read_picture("image", str(behind))
            else:
                first = Image.fromarray(first_frame(behind.video))
        except ValueError as error:
            raise JobError(str(error)) from error
        fitted_to(first, (width, height), fit).save(file, "PNG")
        background = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    data = {"width": width, "height": height, "frames": frames, "background": background}
    return {**data, "layers": layers}
