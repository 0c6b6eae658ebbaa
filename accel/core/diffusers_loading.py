"""Private names of diffusers that loading depends on: the other half of ``diffusers_bridge``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.diffusers_bridge import stays_in_fp32


def from_one_file(cls: Any, config: Any, model: nn.Module, shapes: dict[str, Tensor]) -> Any:
    """Return tensors of a single-file checkpoint under the names that diffusers' class has.

    Nothing is read: ``shapes`` and ``model`` may be on the meta device. None for a class that
    diffusers does not read from a single file. Whatever the conversion raises comes through: the
    file holds something else.
    """
    from diffusers.loaders import single_file_model as loader

    name = loader._get_single_file_loadable_mapping_class(cls)
    if name is None:
        return None
    if not loader._should_convert_state_dict_to_diffusers(model.state_dict(), shapes):
        return shapes
    known: Any = loader.SINGLE_FILE_LOADABLE_CLASSES
    return known[name]["checkpoint_mapping_fn"](config=config, checkpoint=dict(shapes))


def repeated_blocks(cls: Any) -> list[str]:
    """Return the classes of blocks that diffusers compiles one by one in a model of this class."""
    return list(getattr(cls, "_repeated_blocks", None) or [])


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model as ``from_pretrained`` does: what its class keeps in fp32 stays so.

    ``from_single_file`` casts everything.
    """
    high = stays_in_fp32(model, dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.to(torch.float32 if high & {*name.split(".")} else dtype)


def lora_components(pipe: Any) -> list[str]:
    """Return the components of a pipeline that diffusers loads LoRAs into."""
    return list(getattr(pipe, "_lora_loadable_modules", ()))


def packages_lacking(cls: Any) -> list[str]:
    """Return the packages that a class of diffusers or transformers needs and that are missing.

    Both libraries put a dummy in the place of a class that cannot be imported. A processor of
    several parts is no dummy itself where one of its parts is.
    """
    if type(cls).__name__ == "DummyObject":
        wanted = list(cls._backends)
        return [name for name in wanted if find_spec(name) is None] or wanted
    if "video_processor" in getattr(cls, "get_attributes", list)():
        import transformers

        return packages_lacking(transformers.AutoVideoProcessor)
    return []
