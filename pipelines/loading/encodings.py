"""Prompts encoded once: what a pipeline's ``encode_prompt`` returned, kept on disk.

The key is everything that decides the bits: arguments and settings of the pipeline, content of the
model and how it is loaded, LoRAs of its text encoders, and the machine. The whole model counts, not
its encoders alone, since pipelines take parts of other components too. What the tokenizers were
given is kept beside the result and given to them again, so that what they cut off a prompt is
reported as in the run that computed it.
"""

from __future__ import annotations

import functools
import inspect
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from accel.core.diffusers_bridge import execution_device
from accel.pipelines.batch.identity import digest, load_content, model_fingerprint
from accel.pipelines.inputs.hashes import file_hash
from accel.pipelines.job import Job
from accel.pipelines.loading.encoding_store import NotPlain, Store
from accel.pipelines.loading.lora_files import Lora, parse
from accel.pipelines.prompt_tokens import tokenizers, watching

VERSION = 1
_TEXT_LORA = ("text_encoder", "lora_te")  # in the names of tensors that are for a text encoder


@dataclass
class Encodings:
    """What became of the prompts of one run.

    ``found`` and ``computed`` count calls of ``encode_prompt``; ``why_not``: why those that were
    computed are not kept.
    """

    found: int = 0
    computed: int = 0
    why_not: str = ""

    def __str__(self) -> str:
        if not self.found and not self.computed:
            return ""
        if not self.computed:
            return "prompt encoding: from cache"
        kept = f"not kept, since {self.why_not}" if self.why_not else "kept"
        some = f", {self.found} from cache" if self.found else ""
        return f"prompt encoding: {self.computed} computed and {kept}{some}"


def folder(out: Path) -> Path:
    """Return where the encodings of an output folder lie."""
    return out / ".accel" / "encodings"


@contextmanager
def cached(pipe: Any, store: Store, job: Job) -> Iterator[Encodings]:
    """Take prompts from ``store`` while the block runs, and keep those that are not there.

    A pipeline without ``encode_prompt`` is left alone.
    """
    seen = Encodings()
    own = getattr(pipe, "encode_prompt", None)
    if not callable(own):
        yield seen
        return
    device = str(execution_device(pipe) or pipe.device)  # weights may lie elsewhere
    base = [VERSION, _versions(), _machine(device), type(pipe).__qualname__,
            model_key(job), lora_key(job), _settings(pipe)]  # fmt: skip

    @functools.wraps(own)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        return _encoded(pipe, own, args, kwargs, base, store, seen)

    before = vars(pipe).get("encode_prompt")
    pipe.encode_prompt = encode_prompt
    try:
        yield seen
    finally:
        if before is None:
            del pipe.encode_prompt
        else:
            pipe.encode_prompt = before


def model_key(job: Job) -> str:
    """Return what stands for the content of a job's model and the way it is loaded."""
    options = load_content(job)
    options.pop("scheduler", None)
    model = model_fingerprint(job.model)
    if model.endswith("@unknown"):  # it was downloaded since that was asked for
        model = model_fingerprint.__wrapped__(job.model)
    return digest([model, options])


def lora_key(job: Job) -> list[Any]:
    """Return what stands for the LoRAs that change a text encoder."""
    return [[one.adapter, one.weight] for one in parse(job.loras) if _for_text(one)]


def _for_text(lora: Lora) -> bool:
    if lora.path is None:
        return True  # of the hub: what it holds is not known here
    return _names_text(str(lora.path), file_hash(lora.path))


@lru_cache(maxsize=1024)
def _names_text(path: str, content: str) -> bool:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return any(word in name for name in file.keys() for word in _TEXT_LORA)  # noqa: SIM118


def _versions() -> list[str]:
    import diffusers
    import transformers

    return [torch.__version__, diffusers.__version__, transformers.__version__]


def _machine(device: str) -> list[Any]:
    """Return what of a machine decides the last bits."""
    precise = torch.get_float32_matmul_precision()
    if device.startswith("cuda"):
        return [torch.cuda.get_device_name(), torch.version.cuda, precise]
    kind = torch.backends.cpu.get_cpu_capability()
    return [device, platform.machine(), kind, torch.get_num_threads(), precise]


def _settings(pipe: Any) -> dict[str, Any]:
    """Return the public settings of a pipeline, such as templates, and the dtypes of its models."""
    found: dict[str, Any] = {}
    for name, value in vars(pipe).items():
        if not name.startswith("_") and name not in pipe.components:
            try:
                found[name] = _plain(value, name)
            except NotPlain:
                continue
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            found[f"dtype of {name}"] = str(getattr(part, "dtype", ""))
    return found


def _encoded(
    pipe: Any, own: Callable[..., Any], args: Any, kwargs: Any, base: list[Any], store: Store,
    seen: Encodings,
) -> Any:  # fmt: skip
    try:
        bound = inspect.signature(own).bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: _plain(value, name) for name, value in bound.arguments.items()}
    except NotPlain as error:
        seen.computed, seen.why_not = seen.computed + 1, str(error)
        return own(*args, **kwargs)
    key = digest([*base, given, _guided(pipe)])
    if (found := store.get(key)) is not None:
        value, calls = found
        known = tokenizers(pipe)
        for name, text, how in calls:
            if name in known:
                known[name](text, **how)
        seen.found += 1
        return value
    seen.computed += 1
    random = _random()
    with _noting(pipe) as calls:
        value = own(*args, **kwargs)
    try:
        if not all(torch.equal(a, b) for a, b in zip(random, _random(), strict=True)):
            raise NotPlain("the encoder draws random numbers")
        store.put(key, value, calls)
    except (NotPlain, OSError) as error:
        seen.why_not = str(error)
    return value


def _guided(pipe: Any) -> str:
    """Return whether a run has guidance, which some pipelines look up instead of being told."""
    try:
        return str(pipe.do_classifier_free_guidance)
    except AttributeError:  # it has none, or not before its call
        return ""


def _random() -> list[torch.Tensor]:
    states = [torch.random.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def _plain(value: Any, name: str) -> Any:
    """Return an argument as JSON.

    Raises NotPlain for pictures, tensors and other objects.
    """
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one, name) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one, name) for key, one in value.items()}
    raise NotPlain(f"{name} is a {type(value).__name__}, not text")


@contextmanager
def _noting(pipe: Any) -> Iterator[list[Any]]:
    """Note what the tokenizers are given, as far as it can be given to them again."""
    calls: list[Any] = []

    def note(name: str, tokenizer: Any, call: Callable, text: Any, how: Mapping[str, Any]) -> None:
        with suppress(NotPlain):
            calls.append([name, _plain(text, name), _plain(how, name)])

    with ExitStack() as undo:
        for name, tokenizer in tokenizers(pipe).items():
            undo.enter_context(watching(name, tokenizer, note))
        yield calls
