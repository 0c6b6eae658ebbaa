"""The private names of diffusers that a backend of its attention needs: registry, parallel parts.

diffusers 0.42 keeps its backends in a registry and their names in an enum, and has no public way
to add one. Both are extended here, and can be restored. Its context parallel attention is used as
it is: Ulysses (arXiv 2309.14509) exchanges tokens for heads, so each rank has all keys of some
heads; a ring (arXiv 2310.01889) attends to the keys of one rank after the other and merges the
parts by their log-sum-exp. ``tests/accel/test_backend.py`` names what is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Backend = Callable[..., Any]


def add_backend(name: str, backend: Backend) -> None:
    """Let diffusers' models take ``backend`` by ``set_attention_backend(name)``.

    It is called with the arguments of diffusers' other backends that its signature names.

    Raises:
        ValueError: diffusers has a backend of that name already.
    """
    from diffusers.models import attention_dispatch as dispatch

    names: Any = dispatch.AttentionBackendName
    if name in names._value2member_map_:
        raise ValueError(f"diffusers has an attention backend {name!r} already")
    member = str.__new__(names, name)
    member._name_, member._value_ = name.upper(), name
    setattr(names, member._name_, member)
    names._member_map_[member._name_] = names._value2member_map_[name] = member
    names._member_names_.append(member._name_)
    dispatch._AttentionBackendRegistry.register(
        member,
        constraints=[dispatch._check_device, dispatch._check_shape],
        supports_context_parallel=True,
    )(backend)


def remove_backend(name: str) -> None:
    """Undo ``add_backend``; a backend that is active for all models gives way to the native one."""
    from diffusers.models import attention_dispatch as dispatch

    names: Any = dispatch.AttentionBackendName
    registry = dispatch._AttentionBackendRegistry
    member = names._value2member_map_.pop(name)
    del names._member_map_[member._name_]
    names._member_names_.remove(member._name_)
    delattr(names, member._name_)
    for table in (registry._backends, registry._constraints, registry._supported_arg_names):
        del table[member]
    registry._supports_context_parallel.discard(name)
    if registry._active_backend is member:
        registry.set_active_backend(names.NATIVE)


def native(*tensors: Tensor, **options: Any) -> Tensor:
    """Return what diffusers' native backend makes of a call, context parallel or not."""
    from diffusers.models import attention_dispatch as dispatch

    names = dispatch.AttentionBackendName
    return dispatch._AttentionBackendRegistry._backends[names.NATIVE](*tensors, **options)


# ------------------------------------------------------------------------------- context parallel


def rings(parallel: Any) -> bool:
    """Return whether a model's parallel configuration, or None, has attention go round a ring."""
    config = getattr(parallel, "context_parallel_config", parallel)
    return getattr(config, "ring_degree", 1) > 1


def context_parallel(
    attend: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool,
    return_lse: bool, parallel: Any,
) -> Any:  # fmt: skip
    """Run diffusers' context parallel attention on this rank's tokens, with ``attend`` inside.

    Tensors are [B, T, H, D]; ``attn_mask`` broadcasts to [B, H, Tq, Tk] of this rank's tokens, in a
    ring to [B, H, 1, Tk]. ``attend`` is called with the arguments from ``query`` to ``return_lse``
    and returns the output, or (output, log-sum-exp [B, T, H]); so does this.

    Raises:
        ValueError: A mask that cannot be brought to where its keys are; causal attention and
            grouped heads, which diffusers refuses.
    """
    from diffusers.models import attention_dispatch as dispatch

    config, heads, masks = parallel.context_parallel_config, query.shape[2], None
    if attn_mask is not None and rings(config) and not config.ring_anything:
        masks, attn_mask = _ring_masks(attn_mask, key.shape[1], config), None

    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool, return_lse: bool,
        **ignored: Any,
    ) -> Any:  # fmt: skip
        mask = mask if masks is None else next(masks)
        mask = None if mask is None else _own_heads(mask, heads, query.shape[2], config)
        # What a collective is still fetching is a subclass of tensors, which no kernel reads.
        query, key, value = (dispatch._wait_tensor(x) for x in (query, key, value))
        return attend(query, key, value, mask, is_causal, scale, enable_gqa, return_lse)

    return dispatch._templated_context_parallel_attention(
        query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa, return_lse,
        forward_op=forward, backward_op=_no_backward, _parallel_config=parallel,
    )  # fmt: skip


def _no_backward(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("context parallel attention of accel has no gradient")


def _ring_masks(mask: Tensor, keys: int, config: Any) -> Iterator[Tensor]:
    """Give a ring's masks in the order in which its keys come by, this rank's own first.

    diffusers 0.42 hands this rank's mask to all of them. ``keys``: how many each rank has.
    """
    count, last = config.ring_degree, mask.shape[-1]
    rows = mask.shape[-2] if mask.dim() > 1 else 1
    if config.ulysses_degree > 1:
        raise ValueError("a mask beside ring and Ulysses together; use one of them")
    if last == keys and rows == 1:
        parts = _gathered(mask, config._ring_mesh.get_group(), count)
    elif last == 1 and keys > 1:
        parts = [mask] * count
    else:
        # Other ranks know nothing of our queries, nor we in which order all keys would stand.
        raise ValueError(
            f"a mask {tuple(mask.shape)} in a ring of {count} ranks with {keys} keys each; it has "
            f"to be one of these {keys} keys, the same for all queries"
        )
    first = config._ring_local_rank
    return iter([parts[(first + i) % count] for i in range(count)])


def _gathered(mask: Tensor, group: Any, count: int) -> list[Tensor]:
    """Return the masks of all ranks of a group, each of this one's shape."""
    mask = mask.contiguous()
    parts = [torch.empty_like(mask) for _ in range(count)]
    torch.distributed.all_gather(parts, mask, group=group)
    return parts


def _own_heads(mask: Tensor, heads: int, own: int, config: Any) -> Tensor:
    """Cut a mask of all ``heads`` to the ``own`` ones that Ulysses gives to this rank.

    diffusers 0.42 leaves it whole, which fits no call.
    """
    if own == heads or mask.dim() < 3 or mask.shape[-3] != heads:
        return mask
    each = -(-heads // config.ulysses_degree)
    return mask.narrow(-3, config._ulysses_local_rank * each, own)


def enable_parallelism(model: nn.Module, config: Any, plan: Any = None) -> None:
    """Call a model's ``enable_parallelism``, also where torch sees no accelerator.

    There diffusers 0.42 divides by the number of accelerators, so the mesh is made here, of CPUs.
    """
    start: Any = model.enable_parallelism
    if torch.accelerator.device_count():
        start(config=config, cp_plan=plan)
        return
    vars(model)["_resolve_parallel_config"] = partial(_resolve_on_cpu, model)
    try:
        start(config=config, cp_plan=plan)
    finally:
        del vars(model)["_resolve_parallel_config"]


def _resolve_on_cpu(model: Any, config: Any) -> Any:
    """Give a configuration its mesh of CPUs and note it on the model, as diffusers does it."""
    from diffusers import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    if isinstance(config, ContextParallelConfig):
        config = ParallelConfig(context_parallel_config=config)
    context = config.context_parallel_config
    if context is None:
        raise ValueError("on CPUs only context parallelism runs")
    mesh = context.mesh or init_device_mesh(
        "cpu", mesh_shape=context.mesh_shape, mesh_dim_names=context.mesh_dim_names
    )
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config.setup(rank, size, torch.device("cpu"), mesh=mesh)
    model._parallel_config = config
    return config
