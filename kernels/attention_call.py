"""One attention call as a value: what is attended to, and how.

``AttentionCall`` is handed from the public op to the decision (``kernels/dispatch.py``) and on to
the launcher that runs it, so that no function in between repeats its fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from accel.kernels.masks import unexpanded

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what kernels read, in csrc's order


@dataclass(frozen=True, slots=True)
class Options:
    """How a call is quantized (see ``kernels/reference.py``).

    Also whether the natural log-sum-exp of the logits is asked for. ``kept_share``: share of the
    softmax that the computed key blocks hold by estimate (see ``kernels/sparse.py``); None or 1
    computes all of them.
    """

    smooth_q: bool = False
    smooth_v: bool = False
    hadamard: bool = False
    return_lse: bool = False
    kept_share: float | None = None


PLAIN = Options()


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Tensors and options of one call that ``check`` has passed.

    q ``[B, H, Tq, D]``, k ``[B, Hk, Tk, D]``, v ``[B, Hk, Tk, Dv]``: one float dtype and one
    device, any strides; H is a multiple of Hk. ``attn_mask``: boolean (True keeps) or additive,
    broadcastable to ``[B, H, Tq, Tk]``; kept with size 1 where it repeats. ``key_lengths``:
    integers ``[B]``. ``scale``: factor of the logits, D^-1/2 if None. ``block_mask``: contiguous
    uint8 ``[B, H, query blocks, key blocks]`` of the kernel's sizes, 0 for blocks that are left
    out; None computes all that other masks leave.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    attn_mask: Tensor | None = None
    key_lengths: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None
    options: Options = PLAIN
    block_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.attn_mask is not None:
            object.__setattr__(self, "attn_mask", unexpanded(self.attn_mask))

    @property
    def softmax_scale(self) -> float:
        """Factor of the logits before the softmax."""
        return max(self.q.shape[-1], 1) ** -0.5 if self.scale is None else float(self.scale)

    @property
    def masked(self) -> bool:
        """Whether a tensor says which keys are seen."""
        return self.attn_mask is not None or self.key_lengths is not None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Size of the logits, (B, H, Tq, Tk)."""
        return (*self.q.shape[:3], self.k.shape[2])


def why_not_plain(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> str:
    """Return why no kernel may read the memory of an attention call's tensors, or ""."""
    return why_not_read((q, k, v), () if attn_mask is None else (attn_mask,))


def why_not_read(tensors: tuple[Tensor, ...], others: tuple[Tensor, ...] = ()) -> str:
    """Return why no kernel may read these tensors' memory, or ""; ``others`` of any dtype, device.

    A native or Triton kernel gets pointers, so it sees nothing of what torch's dispatcher adds:
    subclasses, transforms of torch.func, tracing, tangents, views that are negated when they are
    read. It knows dense tensors of one known dtype and device, with at least one element.
    """
    first = tensors[0]
    if any(x.dtype is not first.dtype for x in tensors):
        return f"dtypes {_names(*tensors)}"
    if first.dtype not in DTYPES:
        return f"dtype {_names(first)}"
    for x in (*tensors, *others):
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return f"a tensor of class {type(x).__name__}"
        if x.layout is not torch.strided or x.is_nested:
            return "a tensor that is not dense"
        if x.is_neg() or x._is_zerotensor():
            return "a tensor whose memory does not hold its values"
        if not x.numel():
            return "a tensor without elements"
    if any(x.device != first.device for x in tensors):
        return f"devices {', '.join(str(x.device) for x in tensors)}"
    return why_not_eager(first)


_looking_on = 0  # dispatch modes that are active and only count what others do


@contextmanager
def looking_on() -> Iterator[None]:
    """Let a dispatch mode inside count tensors without making calls go to torch."""
    global _looking_on
    _looking_on += 1
    try:
        yield
    finally:
        _looking_on -= 1


def why_not_eager(x: Tensor) -> str:
    """Return why the values of a tensor cannot be read here and now, or ""."""
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"a tensor of class {type(x).__name__}"
    if x.is_meta:
        return "a tensor without values"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if torch._C._len_torch_dispatch_stack() > _looking_on:
        return "inside a dispatch mode of torch, such as make_fx"
    return "inside torch.jit.trace" if torch._C._get_tracing_state() is not None else ""


def _names(*tensors: Tensor) -> str:
    return ", ".join(str(x.dtype).removeprefix("torch.") for x in tensors)


def new_result(q: Tensor, value_dim: int) -> Tensor:
    """Return an unwritten result [B, H, Tq, Dv], its dimensions in memory ordered as q's.

    As torch's attention does it; the last dimension is dense.
    """
    shape = (*q.shape[:3], value_dim)
    if q.is_contiguous():
        return q.new_empty(shape)
    strides = q.stride()
    order = sorted(range(3), key=lambda i: -strides[i])
    return torch.empty_permuted(shape, (*order, 3), dtype=q.dtype, device=q.device)


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    enable_gqa: bool,
) -> None:
    """Raise ValueError, naming what does not fit, for tensors that make no ``AttentionCall``."""
    # Short calls take microseconds, so what plainly fits goes by the shortest way: no mask, and all
    # heads of one number and size.
    a, b = q.shape, k.shape
    if (
        attn_mask is None
        and key_lengths is None
        and b == v.shape
        and len(a) == len(b) == 4
        and a[0] == b[0]
        and a[1] == b[1]
        and a[3] == b[3]
        and q.dtype is k.dtype is v.dtype
        and q.is_floating_point()
        and ((q.is_cpu and k.is_cpu and v.is_cpu) or q.device == k.device == v.device)
    ):
        return
    _check_tensors(q, k, v, enable_gqa)
    _check_masks((*a[:3], b[2]), attn_mask, key_lengths)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k and v must be [B, H, T, D], got {shapes}")
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[0] != k.shape[0]:
        raise ValueError(f"q, k and v do not fit together: {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k, v need one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v need one device, got {q.device}, {k.device}, {v.device}")
    if q.shape[1] != k.shape[1] and (not enable_gqa or k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise ValueError(
            f"query heads {q.shape[1]} against key heads {k.shape[1]}: equal, or a multiple with "
            "enable_gqa=True"
        )


def _check_masks(
    full: tuple[int, ...], attn_mask: Tensor | None, key_lengths: Tensor | None
) -> None:
    """``full``: size of the logits, (B, H, Tq, Tk)."""
    if attn_mask is not None:
        shape = attn_mask.shape
        ends = zip(reversed(shape), reversed(full), strict=False)
        if len(shape) > 4 or any(m not in (1, f) for m, f in ends):
            raise ValueError(f"attn_mask {tuple(shape)} does not broadcast to {full}")
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ValueError(f"attn_mask must be boolean or float, got {attn_mask.dtype}")
    if key_lengths is not None and (
        key_lengths.shape != full[:1] or key_lengths.is_floating_point()
    ):
        raise ValueError(
            f"key_lengths must be integers [{full[0]}], got {key_lengths.dtype} "
            f"{tuple(key_lengths.shape)}"
        )
