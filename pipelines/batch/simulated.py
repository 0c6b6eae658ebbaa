"""Peak memory of jobs that have not run, simulated from their model's configurations.

The simulation needs diffusers, which is larger than a dry run may be. So what was simulated before
is looked up: in this process, then in ``peaks.json`` (the embedded model at its own size). Only for
what is left a helper process is started; it ends with the dry run.

    python -m accel.pipelines.batch.simulated      writes peaks.json again
"""

from __future__ import annotations

import json
import math
import multiprocessing
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from accel.config import RehashConfig, SlicingConfig
from accel.pipelines.batch.identity import digest
from accel.pipelines.job import Job
from accel.pipelines.load import TINY, defaults, local_folder, tiny_folder
from accel.pipelines.loading.source import single_file
from accel.plans import PRESETS, Plan

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


@dataclass(frozen=True)
class Answer:
    """Peak bytes; ``why_not`` says why they are unknown, ``at_least`` that some weights are."""

    peak: int = 0
    why_not: str = ""
    at_least: bool = False


class Simulator:
    """Answers for jobs, each distinct request once.

    ``close`` ends the helper.
    """

    def __init__(self) -> None:
        self._answers: dict[Request, Answer] = {}
        self._known = json.loads(KNOWN.read_text()) if KNOWN.is_file() else {}
        self._helper: Helper | None = None

    def __call__(self, job: Job) -> Answer:
        """Return peak of a resolved job, with all weights loaded as ``load`` does it."""
        if not job.width or not job.height or not job.frames:
            return Answer(why_not="the job leaves its size to the pipeline")
        folder = config_folder(job.model)
        if folder is None:
            return Answer(why_not=NOT_LOCAL)
        plan = job.accel_plan() or Plan("none", attention=None)
        size = (job.width, job.height, job.frames)
        request = Request(str(folder), *size, usual_dtype(), plan.slicing, plan.rehash)
        if request not in self._answers:
            self._answers[request] = self._find(request)
        return self._answers[request]

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
        if "diffusers" in sys.modules:  # the memory is spent already
            return simulated(request)
        self._helper = self._helper or Helper(simulated)
        return self._helper.ask(request)

    def close(self) -> None:
        """End the helper process, if there is one."""
        if self._helper is not None:
            self._helper.close()


def simulated(request: Request) -> int | str:
    """Return peak bytes of denoiser and VAE and what runs in them, or why that cannot be said."""
    import torch

    from accel.memory.fit import peak_of_plan
    from accel.memory.meta_models import Video, find, in_dtype

    dtype = getattr(torch, request.dtype)
    try:
        model = in_dtype(find(request.folder), dtype)
        video = Video(request.width, request.height, request.frames)
        return peak_of_plan(model, video, request.slicing, request.rehash)
    except Exception as error:  # a prediction must never cost the dry run
        return f"cannot be simulated: {error}"


@lru_cache(maxsize=1)
def usual_dtype() -> str:
    """Return what ``load`` takes here."""
    import torch

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

        found = try_to_load_from_cache(model, "model_index.json")
        folder = Path(found).parent if isinstance(found, str) else None
    return folder


def key_of(request: Request) -> str:
    """Return hash of all that decides the peak of denoiser and VAE, wherever the folder lies."""
    configs = [config_of(request.folder, name) for name in (denoiser_of(request.folder), "vae")]
    rest = {k: v for k, v in asdict(request).items() if k != "folder"}
    return digest([configs, rest])


@lru_cache(maxsize=256)
def config_of(folder: str, name: str) -> Any:
    """Return configuration of a component."""
    data = json.loads((Path(folder) / name / "config.json").read_text())
    return {k: v for k, v in data.items() if k not in ("_diffusers_version", "_name_or_path")}


@lru_cache(maxsize=256)
def index(folder: str) -> dict[str, Any]:
    """Return a pipeline's components and their classes."""
    return dict(json.loads((Path(folder) / "model_index.json").read_text()))


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
        files = [f for f in path.glob("*.safetensors") if not f.stem.endswith((".fp16", ".bf16"))]
        whole = whole and bool(files)
        total += size * sum(map(_elements, files))
    return total, whole


def _elements(file: Path) -> int:
    """Return numbers in a safetensors file: its header is JSON behind a 64-bit length."""
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
    header.pop("__metadata__", None)
    return sum(math.prod(entry["shape"]) for entry in header.values())


# ------------------------------------------------------------------------------------------ helper


class Helper:
    """A process that has diffusers loaded and answers requests.

    ``work`` answers one; it is a function of a module.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: Any) -> Any:
        """Return what ``work(request)`` gives in the process, or a text that it ended."""
        try:
            self._connection.send(request)
            return self._connection.recv()
        except (EOFError, OSError):
            return "the process that simulates it ended"

    def close(self) -> None:
        """End the process, whatever it works on."""
        self._process.kill()
        self._process.join(10)
        self._connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Run the helper process: requests in, answers out, until the other side is gone."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            connection.send(work(connection.recv()))


def embedded_requests() -> list[Request]:
    """Return the embedded model at its own size, by every preset and without one."""
    size = defaults(TINY)
    assert size.width and size.height and size.frames
    plans = [Plan("none", attention=None), *map(Plan.preset, PRESETS)]
    asked = {
        Request(
            str(tiny_folder()), size.width, size.height, size.frames, dtype, p.slicing, p.rehash
        )
        for dtype in DTYPES
        for p in plans
    }
    return sorted(asked, key=str)


if __name__ == "__main__":
    found = {key_of(request): simulated(request) for request in embedded_requests()}
    KNOWN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{KNOWN}: {len(found)} peaks")
