"""LoRAs of a job on a loaded pipeline, switched between jobs without a reload.

Every file becomes one adapter of PEFT, named after its content, and stays. A job activates those it
names and its weights; afterwards all are off, so that a job without LoRAs runs the model as it is.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from torch import nn

from accel.core.diffusers_bridge import lora_components
from accel.core.extras import how_to_install
from accel.core.run_log import logger
from accel.pipelines.loading.lora_files import Lora, check_file, parse

MOST = 8  # adapters that stay; then the one that was not used for longest leaves
_LAYER = re.compile(r"\.(?:lora|alpha|lokr|dora|diff)(?:[._]|$)")
_Loaded = dict[str, Lora]  # by adapter, the one used last at the end
_loaded: weakref.WeakKeyDictionary[Any, _Loaded] = weakref.WeakKeyDictionary()
_fitting: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


@contextmanager
def switched(
    pipe: Any,
    loras: Sequence[Mapping[str, Any]],
    tell: Callable[[str], None] = logger.warning,
) -> Iterator[None]:
    """Run with these LoRAs and no others; those that are not loaded yet are loaded first.

    ``tell`` hears of parts of a LoRA that have no effect. Raises ValueError, one line that names
    the LoRA and the model, for one that does not fit; the pipeline is left without it.
    """
    wanted = parse(loras)
    if not wanted:
        yield
        return
    for note in fit(pipe, wanted):
        tell(note)
    known = _loaded.setdefault(pipe, {})
    for one in wanted:
        if one.adapter not in known:
            _load(pipe, one)
        known[one.adapter] = known.pop(one.adapter, one)
    _let_go(pipe, known, keep=len(wanted))
    try:
        pipe.enable_lora()
        pipe.set_adapters([one.adapter for one in wanted], [one.weight for one in wanted])
        yield
    finally:
        pipe.disable_lora()


def fit(pipe: Any, loras: Sequence[Lora]) -> list[str]:
    """Return what of the LoRAs has no effect on a pipeline, from their tensors' names and shapes.

    Raises ValueError for one that does not fit; nothing is loaded into the pipeline.
    """
    if loras and not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRAs; leave loras out")
    if loras and find_spec("peft") is None:
        raise ValueError(f"loras need the package peft, which is missing: {how_to_install('peft')}")
    own = {name for names in pipe.get_list_adapters().values() for name in names} if loras else ()
    if other := set(own) - set(_loaded.get(pipe, {})):
        raise ValueError(
            f"the pipeline has LoRAs of its own, {sorted(other)}; unload them, or leave loras out"
        )
    notes = []
    for one in loras:
        check_file(one)
        known = _fitting.setdefault(pipe, {})
        if one.adapter not in known:
            known[one.adapter] = _fit(pipe, one)
        if known[one.adapter]:
            notes.append(known[one.adapter])
    return notes


def components(pipe: Any, lora: Lora) -> list[str]:
    """Return the transformers that a LoRA is loaded into, [] where its file says it.

    Raises ValueError for one that the pipeline does not have.
    """
    both: list[str] = [
        name for name in ("transformer", "transformer_2")
        if name in lora_components(pipe) and getattr(pipe, name, None) is not None
    ]  # fmt: skip
    if lora.component is not None and lora.component not in both:
        raise ValueError(
            f"LoRA {lora.label} is for {lora.component}, which {type(pipe).__name__} does not "
            f"have or takes no LoRA for; it has {both or 'one denoiser'}"
        )
    if "transformer_2" not in both:
        return []
    return both if lora.component is None else [lora.component]


def _fit(pipe: Any, lora: Lora) -> str:
    """Return what of a LoRA has no place in the model, "" if all has one."""
    targets = components(pipe, lora)
    tensors = _tensors(pipe, lora)
    absent, other, found, layers = [], dict[str, str](), 0, set[str]()
    for name, tensor in tensors.items():
        component, _, rest = name.partition(".")
        for place in targets if component == "transformer" and targets else [component]:
            path = _LAYER.split(rest)[0]
            layer = _layer(getattr(pipe, place, None), path)
            if layer is None:
                absent.append(f"{place}.{rest}")
                continue
            found += 1
            layers.add(f"{place}.{path}")
            if why := _other_shape(layer, rest, tuple(tensor.shape)):
                other.setdefault(f"{place}.{path}", f"{place}.{rest}: {why}")
    modern = any(".lora_A." in name for name in tensors)
    model = type(pipe).__name__
    if not found and (modern or not tensors):
        raise ValueError(
            f"LoRA {lora.label} does not fit {model}: none of its {len(tensors)} tensors belongs "
            f"to a layer of the model{f', such as {absent[0]}' if absent else ''}"
        )
    if 2 * len(other) > len(layers):
        first = next(iter(other.values()))
        raise ValueError(f"LoRA {lora.label} does not fit {model}, it is of another size: {first}")
    if absent and modern:
        return (
            f"LoRA {lora.label}: {len(absent)} of its {len(absent) + found} tensors have no place "
            f"in {model} and no effect, such as {absent[0]}"
        )
    return ""


def _tensors(pipe: Any, lora: Lora) -> Mapping[str, Any]:
    """Return a LoRA's tensors under diffusers' names."""
    try:
        found = type(pipe).lora_state_dict(**_place(lora))
    except Exception as error:  # its converters raise whatever they stumble over
        raise ValueError(_refused(pipe, lora, error)) from error
    return found[0] if isinstance(found, tuple) else found


def _place(lora: Lora) -> dict[str, Any]:
    """Return where a LoRA lies, as diffusers' loaders take it."""
    key = "pretrained_model_name_or_path_or_dict"
    if lora.path is None:
        more = {"weight_name": lora.file} if lora.file else {}
        return {key: lora.id, "use_safetensors": True, **more}
    return {
        key: str(lora.path.parent), "weight_name": lora.path.name, "use_safetensors": True,
        "local_files_only": True,
    }  # fmt: skip


def _layer(model: Any, path: str) -> Any:
    if not isinstance(model, nn.Module):
        return None
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        return None
    return getattr(layer, "base_layer", layer)


def _other_shape(layer: Any, name: str, shape: tuple[int, ...]) -> str:
    """Return how a tensor of a LoRA differs from the layer it is for, "" if it fits."""
    sides = (("lora_A.", 1, ("in_features", "in_channels")),
             ("lora_B.", 0, ("out_features", "out_channels")))  # fmt: skip
    for word, axis, names in sides:
        own = next((n for name in names if (n := getattr(layer, name, None))), None)
        if f".{word}weight" in name and own is not None and len(shape) > 1 and shape[axis] != own:
            return f"it is for {shape[axis]} features, the model has {own}"
    return ""


def _load(pipe: Any, lora: Lora) -> None:
    """Load a LoRA as an adapter; the pipeline is left without it if that fails."""
    targets = components(pipe, lora)
    try:
        for target in targets or [""]:
            more = {"load_into_transformer_2": True} if target == "transformer_2" else {}
            pipe.load_lora_weights(**_place(lora), adapter_name=lora.adapter, **more)
        if lora.adapter not in {n for names in pipe.get_list_adapters().values() for n in names}:
            raise ValueError("diffusers found nothing in it for this model")
    except Exception as error:  # PEFT and torch raise what they stumble over
        _remove(pipe, lora.adapter)
        raise ValueError(_refused(pipe, lora, error)) from error


def _refused(pipe: Any, lora: Lora, error: Exception) -> str:
    told = " ".join(str(error).split())
    return f"LoRA {lora.label} does not fit {type(pipe).__name__}: {told[:300]}"


def _remove(pipe: Any, adapter: str) -> None:
    if _loaded.get(pipe):
        pipe.delete_adapters(adapter)
        pipe.disable_lora()
    else:
        pipe.unload_lora_weights()


def _let_go(pipe: Any, known: _Loaded, keep: int) -> None:
    """Drop the adapters that were not used for longest."""
    for adapter in list(known)[: max(0, len(known) - max(MOST, keep))]:
        pipe.delete_adapters(adapter)
        del known[adapter]
