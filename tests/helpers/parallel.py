"""Two processes that share one model's tokens over gloo, and what each of them found.

``found(folder)`` starts them; each runs every function of ``CHECKS`` on its half of the tokens and
returns plain values, which the tests judge. The file ``store`` of the folder brings them together.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Checks = dict[str, Callable[[int], Any]]
RANKS = 2
LSE = {"return_lse": True}
DEGREES = {"ulysses": {"ulysses_degree": 2}, "ring": {"ring_degree": 2}}


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def counts() -> dict[str, Any]:
    """What the backend ran since the last call of this, as plain values."""
    from accel.attention.backend import record

    result = {
        "ran": {" by ".join(key): n for key, n in record.ran.items()},
        "kept": dict(record.kept),
        "recomputed": dict(record.recomputed),
    }
    record.clear()
    return result


def error(call: Callable[[], Any]) -> str:
    """Class and text of what ``call`` raises, "" if nothing."""
    try:
        call()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


# ------------------------------------------------------------------------------------------ models


def models() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Four families with 320 tokens, so that either half has enough keys to be quantized.

    LTX has padded text behind a mask of all heads, Qwen-Image in one sequence with its picture.
    """
    import diffusers

    from helpers.families import FAMILIES, rand

    more: dict[str, Callable[[], dict[str, Any]]] = {
        "wan": lambda: {"hidden_states": rand(1, 4, 5, 16, 16)},
        "flux": lambda: {
            "hidden_states": rand(1, 256, 4),
            "encoder_hidden_states": rand(1, 64, 32),
            "img_ids": torch.stack(
                [torch.zeros(256), torch.arange(256) // 16, torch.arange(256) % 16], 1
            ),
            "txt_ids": torch.zeros(64, 3),
        },
        "ltx": lambda: {"hidden_states": rand(1, 320, 8), "height": 8, "width": 8},
    }
    for name, change in more.items():
        torch.manual_seed(0)
        model, inputs = FAMILIES[name]()
        yield name, model.eval(), inputs | change()
    torch.manual_seed(0)
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    yield "qwen_image", model.eval(), {
        "hidden_states": rand(1, 256, 16), "encoder_hidden_states": rand(1, 64, 16),
        "encoder_hidden_states_mask": (torch.arange(64)[None] < 57).long(),
        "timestep": torch.tensor([0.5]), "img_shapes": [(1, 16, 16)],
    }  # fmt: skip


def split(model: nn.Module, backend: str, kind: str) -> Any:
    """A copy of a model with its tokens split over both processes."""
    import diffusers

    import accel

    model = copy.deepcopy(model)
    model.set_attention_backend(backend)
    accel.enable_parallelism(model, diffusers.ContextParallelConfig(**DEGREES[kind]))
    return model


def families(rank: int) -> dict[str, Any]:
    """Each family in one process and in two: errors between them, and what ran."""
    result = {}
    for name, model, inputs in models():
        alone = {}
        for backend in ("native", "accel", "accel_full"):
            model.set_attention_backend(backend)
            alone[backend] = model(**inputs, return_dict=False)[0]
        for kind in DEGREES:
            for backend in ("accel", "accel_full"):
                parallel = split(model, backend, kind)
                counts()
                out = parallel(**inputs, return_dict=False)[0]
                result[f"{name} {kind} {backend}"] = {
                    "to one process": relative(out, alone[backend]),
                    "to full precision": relative(out, alone["native"]),
                    "one process to full precision": relative(alone[backend], alone["native"]),
                    **counts(),
                }
    return result


def patched(rank: int) -> dict[str, Any]:
    """A patch beside split tokens."""
    import diffusers

    import accel

    plan = accel.Plan("t", accel.AttentionConfig("int8"))
    _, model, inputs = next(models())
    with accel.patched(model, plan=plan):
        alone = model(**inputs, return_dict=False)[0]
    result: dict[str, Any] = {}
    for order in ("patched last", "patched first"):
        parallel = copy.deepcopy(model)
        config = diffusers.ContextParallelConfig(ulysses_degree=2)
        if order == "patched last":
            accel.enable_parallelism(parallel, config)
        accel.patch(parallel, plan=plan)
        if order == "patched first":
            accel.enable_parallelism(parallel, config)
        out = parallel(**inputs, return_dict=False)[0]
        result[order] = relative(out, alone), str(accel.report(parallel))
    ring = split(model, "accel", "ring")
    accel.patch(ring, plan=plan)
    counts()
    out = ring(**inputs, return_dict=False)[0]
    result["ring"] = relative(out, alone), str(accel.report(ring)), counts()
    accel.unpatch(ring)
    accel.patch(model, plan=plan)
    config = diffusers.ContextParallelConfig(ring_degree=2)
    result["refused"] = error(lambda: accel.enable_parallelism(model, config))
    return result


# --------------------------------------------------------------------------------------- attention


def configs() -> dict[str, Any]:
    """The parallel configuration of a split model, by kind."""
    _, model, _ = next(models())
    return {
        kind: split(model, "accel", kind).blocks[0].attn1.processor._parallel_config
        for kind in DEGREES
    }


def attend(backend: str, *tensors: Tensor, **options: Any) -> Any:
    """diffusers' own dispatch to a backend."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    return dispatch_attention_fn(*tensors, backend=AttentionBackendName(backend), **options)


def parts(rank: int, *tensors: Tensor) -> list[Tensor]:
    """This rank's tokens of [B, T, H, D]."""
    return [x.chunk(RANKS, 1)[rank].contiguous() for x in tensors]


def together(part: Tensor) -> Tensor:
    """All ranks' tokens."""
    found = [torch.empty_like(part) for _ in range(RANKS)]
    dist.all_gather(found, part.contiguous())
    return torch.cat(found, 1)


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of [B, T, H, D] in fp64."""
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    wide = mask.double() if mask is not None and mask.is_floating_point() else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=wide).transpose(1, 2)


def qkv(*sizes: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(sizes or (1, 640, 4, 64)) for _ in range(3)]


def errors(rank: int, tokens: int = 640) -> dict[str, Any]:
    """Attention of N(0, 1), four heads of 64, in one process and in two."""
    result, inputs = {}, qkv(1, tokens, 4, 64)
    wanted = exact(*inputs)
    for kind, config in configs().items():
        for backend in ("accel", "accel_int6", "accel_int4", "accel_full"):
            alone = attend(backend, *inputs)
            counts()
            out = together(attend(backend, *parts(rank, *inputs), parallel_config=config))
            result[f"{kind} {backend}"] = {
                "one": relative(alone, wanted), "two": relative(out, wanted),
                "between": relative(out, alone), **counts(),
            }  # fmt: skip
    return result


def masks(rank: int) -> dict[str, Any]:
    """Masks of this rank's keys, for all heads or each, in both ways of sharing tokens."""
    result, (q, k, v), tokens = {}, qkv(), 640
    keys = torch.rand(1, 1, 1, tokens) > 0.3
    heads = torch.randn(1, 4, 1, tokens)
    for kind, config in configs().items():
        given = {"keys": (keys, keys.chunk(RANKS, -1)[rank])}
        given["heads"] = heads, heads.chunk(RANKS, -1)[rank]
        given["[B, Tk]"] = keys, keys[:, 0, 0].chunk(RANKS, -1)[rank]
        for name, (whole, part) in given.items():
            for backend in ("accel", "accel_full"):
                found = attend(
                    backend, *parts(rank, q, k, v), attn_mask=part, parallel_config=config
                )
                result[f"{kind} {name} {backend}"] = relative(
                    together(found), exact(q, k, v, whole)
                )
    return result


def refusals(rank: int) -> dict[str, str]:
    """What is refused rather than computed wrongly."""
    config = configs()
    mine = parts(rank, *qkv())
    trained = [x.clone().requires_grad_() for x in mine]

    def ring(*tensors: Tensor, **options: Any) -> str:
        return error(lambda: attend("accel", *tensors, parallel_config=config["ring"], **options))

    with torch.enable_grad():
        return {
            "causal": ring(*mine, is_causal=True),
            "gradients": ring(*trained),
            "dropout": ring(*mine, dropout_p=0.5),
            "mask of odd length": ring(*mine, attn_mask=torch.zeros(1, 1, 1, 77)),
            "mask of all keys": ring(*mine, attn_mask=torch.zeros(1, 1, 1, 640)),
            "mask by query": ring(*mine, attn_mask=torch.zeros(1, 1, 320, 320)),
            "one process": error(lambda: attend("accel", *trained, attention_kwargs=LSE)),
        }


def trained(rank: int) -> dict[str, Any]:
    """Gradients of split tokens, beside those of one process."""
    inputs = [x.requires_grad_() for x in qkv(1, 64, 2, 16)]
    mine = [x.detach().requires_grad_() for x in parts(rank, *inputs)]
    config = configs()["ulysses"]
    with torch.enable_grad():
        exact(*inputs).square().sum().backward()
        counts()
        attend("accel", *mine, parallel_config=config).square().sum().backward()
    wanted = [x.grad.chunk(RANKS, 1)[rank] for x in inputs]
    found = [relative(x.grad, w) for x, w in zip(mine, wanted, strict=True)]
    return {"error": max(found), **counts()}


def compiled(rank: int) -> dict[str, Any]:
    """A graph without a break around split attention."""
    result, mine = {}, parts(rank, *qkv())
    for kind, config in configs().items():

        def call(*tensors: Tensor, config: Any = config) -> Any:
            return attend("accel", *tensors, parallel_config=config) * 2

        eager = call(*mine)
        counts()
        out = torch.compile(call, fullgraph=True, backend="aot_eager")(*mine)
        result[kind] = {"equal": torch.equal(out, eager), **counts()}
    return result


CHECKS: Checks = {
    check.__name__: check
    for check in (families, patched, errors, masks, refusals, trained, compiled)
}


def work(rank: int, folder: str, checks: Checks) -> None:
    """One of the processes."""
    import accel

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    accel.register_backend()
    result = {}
    with torch.no_grad():
        for name, check in checks.items():
            result[name] = check(rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def found(folder: Path, checks: Checks = CHECKS) -> list[dict[str, Any]]:
    """Start both processes and return what each found. Raises what one of them raised."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(work, (str(folder), checks), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
