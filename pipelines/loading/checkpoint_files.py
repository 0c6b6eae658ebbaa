"""What a file of weights holds, from its header: safetensors and GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from accel.core.diffusers_loading import from_one_file
from accel.core.extras import how_to_install

Shapes = dict[str, tuple[int, ...]]
_BESIDE = ("num_batches_tracked", "inv_freq")  # buffers that checkpoints may leave out


def shapes(file: Path) -> Shapes:
    """Return the shape of every tensor in a file; no weight is read.

    Raises ValueError for a file that is broken or of another format.
    """
    try:
        return _gguf(file) if file.suffix.lower() == ".gguf" else _safetensors(file)
    except ImportError:
        raise ValueError(
            f"{file} needs the package gguf, which is missing: {how_to_install('gguf')}"
        ) from None
    except OSError:
        raise
    except Exception as error:  # readers of either format raise whatever they stumble over
        raise ValueError(f"{file} is no {file.suffix} file or is broken: {error}") from None


def _safetensors(file: Path) -> Shapes:
    from safetensors import safe_open

    with safe_open(str(file), "pt") as content:
        return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118


def _gguf(file: Path) -> Shapes:
    from gguf import GGUFReader

    return {
        tensor.name: tuple(int(n) for n in reversed(tensor.shape))
        for tensor in GGUFReader(str(file)).tensors
    }


def why_not(cls: Any, config: Any, found: Shapes, file: Path) -> str:
    """Return why a file does not hold the weights of a model of diffusers, "" if it does.

    ``config``: the model's configuration; ``found``: the shapes in the file.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = cls.from_config(config)
    given = {
        name: torch.empty(shape, dtype=torch.float32, device="meta")
        for name, shape in found.items()
    }
    try:
        renamed = from_one_file(cls, config, model, given)
    except Exception as error:  # its code expects another model's names
        return f"{file} is not of a {cls.__name__}: {type(error).__name__} {error}"[:300]
    if renamed is None:
        return f"diffusers does not read a {cls.__name__} from a single file"
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    missing = [n for n in wanted if n not in renamed and not n.endswith(_BESIDE)]
    other = [n for n in wanted if n in renamed and tuple(renamed[n].shape) != wanted[n]]
    if missing:
        return (
            f"{file} is not of this {cls.__name__}: it lacks {len(missing)} of {len(wanted)} "
            f"tensors, such as {missing[0]}"
        )
    if other:
        name = other[0]
        return (
            f"{file} is not of this {cls.__name__}: {len(other)} of {len(wanted)} tensors have "
            f"another shape, such as {name}: {list(renamed[name].shape)} instead of "
            f"{list(wanted[name])}"
        )
    return ""
