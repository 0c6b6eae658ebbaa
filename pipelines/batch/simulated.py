"""Peak memory of jobs that have not run, simulated from their model's configurations.

The simulation needs diffusers, which is larger than a dry run may be. So what was simulated before
is looked up: in this process, then in ``peaks.json`` (the embedded model at its own size). Only for
what is left a helper process is started; it ends with the dry run.

    python -m accel.pipelines.batch.simulated      writes peaks.json again
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from accel.config import LinearConfig, RehashConfig, SlicingConfig
from accel.memory.placement import Room
from accel.pipelines.batch.helper_process import Aside
from accel.pipelines.batch.identity import digest
from accel.pipelines.batch.placements import Placed, Question, answered
from accel.pipelines.job import Job
from accel.pipelines.load import TINY, defaults, local_folder, tiny_folder, usual_device
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading.source import INDEX, read_mapping, single_file
from accel.pipelines.room import free_room
from accel.pipelines.safetensors_header import numbers, weight_files
from accel.plans import Plan

KNOWN = Path(__file__).with_name("peaks.json")
NOT_LOCAL = "config not local"
DTYPES = ("float32", "bfloat16")  # what ``load`` takes on a CPU and on a GPU


@dataclass(frozen=True)
class Request:
    """What decides a peak: a folder of configurations, pixels, frames, dtype and plan."""

    folder: str
    width: int
    height: int
    frames: int
    dtype: str
    slicing: SlicingConfig | None
    rehash: RehashConfig | None
    linear: LinearConfig | None = None


@dataclass(frozen=True)
class Answer:
    """Peak bytes; ``why_not`` says why they are unknown, ``at_least`` that some weights are.

    ``way``: how weights are placed, "" where all lie on the device. ``table``: all ways.
    ``no_way``: why none fits; the peak is then that of all weights on the device.
    """

    peak: int = 0
    why_not: str = ""
    at_least: bool = False
    way: str = ""
    table: str = ""
    no_way: str = ""


class Simulator:
    """Answers for jobs, each distinct request once.

    ``aside``: where work that needs diffusers is done; ``close`` ends it.
    """

    def __init__(self, aside: Aside | None = None) -> None:
        self._answers: dict[Request, Answer] = {}
        self._known = json.loads(KNOWN.read_text()) if KNOWN.is_file() else {}
        self._aside = aside or Aside()
        self._placements: dict[Question, Placed | str] = {}
        self._room: Room | None = None

    def __call__(self, job: Job) -> Answer:
        """Return peak of a resolved job, with all weights loaded as ``load`` does it."""
        if not job.width or not job.height or not job.frames:
            return Answer(why_not="the job leaves its size to the pipeline")
        folder = config_folder(job.model)
        if folder is None:
            return Answer(why_not=NOT_LOCAL)
        plan = job.accel_plan() or Plan("none", attention=None)
        size = (job.width, job.height, job.frames)
        techniques = (plan.slicing, plan.rehash, plan.linear)
        request = Request(str(folder), *size, usual_dtype(), *techniques)
        if request not in self._answers:
            self._answers[request] = self._find(request)
        return self._placed(request, self._answers[request], job.load_options)

    def _placed(self, request: Request, whole: Answer, options: LoadOptions) -> Answer:
        """Return the answer for the way in which the weights would be placed here."""
        room = self._room = self._room or free_room(torch.device(usual_device()))
        fits = whole.why_not or whole.peak <= room.device
        offload, allow = options.offload, tuple(options.allow)
        if offload == "none" or (offload == "auto" and fits):
            return whole
        slices = 1 if request.slicing is None else request.slicing.slices
        size = (request.width, request.height, request.frames)
        question = Question(
            request.folder,
            *size,
            request.dtype,
            slices,
            request.rehash,
            offload,
            room,
            allow,
            request.linear,
        )
        if question not in self._placements:
            self._placements[question] = self._asked(answered, question)
        found = self._placements[question]
        if isinstance(found, str):
            return replace(whole, no_way=found)
        return replace(whole, peak=found.peak, way=found.way, table=found.table)

    def _find(self, request: Request) -> Answer:
        try:
            peak = self._known.get(key_of(request))
            others, whole = other_weights(request.folder, request.dtype)
        except (OSError, ValueError, KeyError) as error:
            return Answer(why_not=f"its configuration cannot be read: {error}")
        if peak is None:
            peak = self._simulated(request)
        if isinstance(peak, str):
            return Answer(why_not=peak)
        return Answer(peak + others, at_least=not whole)

    def _simulated(self, request: Request) -> int | str:
        found: int | str = self._asked(simulated, request)
        return found

    def _asked(self, work: Callable[[Any], Any], question: Any) -> Any:
        return self._aside.ask(work, question)

    def close(self) -> None:
        """End the helper process, if there is one."""
        self._aside.close()


def simulated(request: Request) -> int | str:
    """Return peak bytes of denoiser and VAE and what runs in them, or why that cannot be said."""
    from accel.memory.fit import peak_of_plan
    from accel.memory.meta_models import Video, find, in_dtype

    dtype = getattr(torch, request.dtype)
    try:
        model = in_dtype(find(request.folder), dtype)
        video = Video(request.width, request.height, request.frames)
        return peak_of_plan(model, video, request.slicing, request.rehash, request.linear)
    except Exception as error:  # a prediction must never cost the dry run
        return f"cannot be simulated: {error}"


@lru_cache(maxsize=1)
def usual_dtype() -> str:
    """Return what ``load`` takes here."""
    return DTYPES[torch.cuda.is_available()]


# ------------------------------------------------------------------------------------------ folder


@lru_cache(maxsize=256)
def config_folder(model: str) -> Path | None:
    """Return the folder with the model's configurations.

    None for a hub id that is not in the local cache. Raises FileNotFoundError for what is no model.
    """
    folder = local_folder(model)
    if folder is None and single_file(model) is None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, INDEX)
        folder = Path(found).parent if isinstance(found, str) else None
    return folder


def key_of(request: Request) -> str:
    """Return hash of all that decides the peak of denoiser and VAE, wherever the folder lies."""
    configs = [config_of(request.folder, name) for name in (denoiser_of(request.folder), "vae")]
    rest = {k: v for k, v in asdict(request).items() if k != "folder"}
    plan = Plan("", None, rehash=request.rehash, linear=request.linear).to_dict()
    rest |= {"rehash": plan["rehash"], "linear": plan.get("linear")}  # as it always was
    if request.linear is None:
        del rest["linear"]
    return digest([configs, rest])


@lru_cache(maxsize=256)
def config_of(folder: str, name: str) -> Any:
    """Return configuration of a component."""
    data = read_mapping(Path(folder) / name / "config.json")
    return {k: v for k, v in data.items() if k not in ("_diffusers_version", "_name_or_path")}


@lru_cache(maxsize=256)
def index(folder: str) -> dict[str, Any]:
    """Return a pipeline's components and their classes."""
    return read_mapping(Path(folder) / INDEX)


def denoiser_of(folder: str) -> str:
    """Name of the component that denoises."""
    return "unet" if "unet" in index(folder) else "transformer"


@lru_cache(maxsize=256)
def other_weights(folder: str, dtype: str) -> tuple[int, bool]:
    """Return the bytes of the components beside denoiser and VAE, such as text encoders.

    Read from the headers of their files; False if there is one without files.
    """
    size, total, whole = 4 if dtype == "float32" else 2, 0, True
    for name, value in index(folder).items():
        path = Path(folder) / name
        if name in ("vae", denoiser_of(folder)) or not isinstance(value, list):
            continue
        if not (path / "config.json").is_file():
            continue  # a tokenizer or a scheduler
        files = weight_files(path)
        whole = whole and bool(files)
        total += size * sum(map(numbers, files))
    return total, whole


def embedded_requests() -> list[Request]:
    """Return the embedded model at its own size, without a preset and by those for its steps."""
    size = defaults(TINY)
    assert size.width and size.height and size.frames
    plans = [Plan("none", attention=None), *map(Plan.preset, ("lossless", "balanced", "fast"))]
    pixels = (size.width, size.height, size.frames)
    asked = {
        Request(str(tiny_folder()), *pixels, dtype, p.slicing, p.rehash, p.linear)
        for dtype in DTYPES
        for p in plans
    }
    return sorted(asked, key=str)


if __name__ == "__main__":
    found = {key_of(request): simulated(request) for request in embedded_requests()}
    KNOWN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{KNOWN}: {len(found)} peaks")
