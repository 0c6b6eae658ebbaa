"""The widgets of the page by name, tab by tab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel.pipelines.ui.widgets import Limit, gr


@dataclass(frozen=True)
class Kept:
    """What the server keeps for a visitor.

    ``drawn``: the motion as a job takes it; ``sketch``: as the canvas sends it; ``planned``: the
    plan taken over from the tab Plan; ``given``: what the job starts from, see ``inputs.py``;
    ``shape``: the canvas's width, height and frames; ``seen``:
    versions of the queue and of the videos that are shown.
    """

    drawn: gr.State
    sketch: gr.State
    planned: gr.State
    given: gr.State
    shape: gr.State
    seen: gr.State


@dataclass(frozen=True)
class GenerateTab:
    """The tab Generate.

    ``form``: widgets of ``forms.FIELDS``; ``suited``: the model that the sizes are for;
    ``moved``: whether the drawn motion counts; ``inputs``: places for pictures and a video;
    ``given``: what of these a job starts from; ``forecast``: what the job will
    take; ``arguments``: what else the pipeline takes, in the part ``further`` that unfolds.
    """

    form: Mapping[str, Any]
    inputs: Mapping[str, Any]
    given: Any
    loras: gr.Dropdown
    lora_weight: gr.Slider
    further: gr.Accordion
    arguments: gr.Dataframe
    suited: gr.State
    moved: gr.Checkbox
    dice: gr.Button
    go: gr.Button
    both: gr.Button
    forecast: Any
    preset: gr.Dropdown
    save: gr.Button
    use: gr.Button
    drop: gr.Button
    make: gr.Button
    job_file: gr.File
    now: Any
    latest: Any


@dataclass(frozen=True)
class MotionTab:
    """The tab Motion.

    ``camera``: sliders of ``drawing.CAMERA``; ``video``: file, start, end and cuts of a driving
    video, and ``driving`` what is made of them.
    """

    canvas: Any
    behind: gr.Dropdown
    flow: Any
    strength: gr.Slider
    camera: Mapping[str, Any]
    video: Mapping[str, Any]
    driving: gr.State


@dataclass(frozen=True)
class CompareTab:
    """``first`` beside ``second``."""

    first: gr.Dropdown
    second: gr.Dropdown
    show: gr.Button
    players: Any
    report: Any


@dataclass(frozen=True)
class QueueTab:
    """``exports``: buttons for job files of "queue" and "gallery"; ``count``: cards at most."""

    list: Any
    exports: Mapping[str, Any]
    exported: gr.File
    dropped: gr.File
    count: gr.State
    gallery: Any


@dataclass(frozen=True)
class PlanTab:
    """The tab Plan.

    ``asked``: shape of the job and top of the memory slider so far; ``picked``: the plan that
    is shown.
    """

    memory: Limit
    quality: Limit
    predicted: Any
    use: gr.Button
    table: Any
    asked: gr.State
    picked: gr.State


@dataclass(frozen=True)
class Parts:
    """All widgets that handlers read and set.

    ``tabs``: the row of tabs; ``plan_tab``: the last.
    """

    tabs: gr.Tabs
    kept: Kept
    generate: GenerateTab
    motion: MotionTab
    compare: CompareTab
    queue: QueueTab
    plan_tab: gr.Tab
    plan: PlanTab
