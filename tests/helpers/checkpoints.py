"""Checkpoints of the embedded model in other forms: GGUF, half a model, pickled weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from accel.pipelines.load import tiny_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def copied(folder: Path) -> Path:
    """A copy of the embedded model that a test may change."""
    return Path(shutil.copytree(tiny_folder(), folder / "model"))


def index(folder: Path, **changes: Any) -> None:
    """Change ``model_index.json`` of a copy."""
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_gguf(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Q8_0 where rows are whole blocks of 32, F32 elsewhere; names as diffusers has them."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "wan")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_tensors(component: str = "transformer") -> dict[str, torch.Tensor]:
    return load_file(tiny_folder() / component / WEIGHTS)


def pickled(folder: Path) -> None:
    """Leave the weights of a component as a pickle alone."""
    file = folder / WEIGHTS
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def as_variant(folder: Path, variant: str) -> None:
    """Rename the weights of a component to those of a variant."""
    (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".", f".{variant}.", 1))


def half(path: Path) -> Path:
    """A safetensors file with every second tensor of the denoiser."""
    tensors = tiny_tensors()
    save_file({name: tensors[name] for name in list(tensors)[::2]}, path)
    return path


def two_transformers(folder: Path, boundary: float = 0.6) -> Path:
    """The embedded model with a second transformer for less noise, as Wan 2.2 has it."""
    model, g = copied(folder), torch.Generator().manual_seed(3)
    second = Path(shutil.copytree(model / "transformer", model / "transformer_2"))
    tensors = {
        name: t * (1 + 0.01 * torch.randn(t.shape, generator=g)).to(t.dtype)
        for name, t in load_file(second / WEIGHTS).items()
    }
    save_file(tensors, second / WEIGHTS)
    own = json.loads((model / "model_index.json").read_text())["transformer"]
    index(model, transformer_2=own, boundary_ratio=boundary)
    return model
