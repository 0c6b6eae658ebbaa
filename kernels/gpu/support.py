"""What the GPU kernels can run on which compute capability, and why not the rest, without Triton.

Facts from NVIDIA's instruction set: INT8 tensor cores exist from 8.0 on, E4M3 from 8.9, FP4
block-scaled products from 10.0. Four-bit integers exist on 8.0 to 8.9 only. Neither Triton nor its
shipped tools can use them in a way that could be checked without such a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from functools import cache
from typing import Literal

import torch

MIN_CAPABILITY = (8, 0)
FP4_CAPABILITY = (10, 0)
FP4_TRITON = (3, 9)  # compiles FP4 for 10.x too; 3.7.1, which torch 2.13 brings, does not
INTERPRETED = (8, 9)  # capability that is assumed when Triton's interpreter runs the kernels


ValueFormat = Literal["e4m3", "e2m1", "fp16"]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def triton_version() -> tuple[int, int]:
    """Return the version of the installed Triton, (0, 0) without one."""
    if not _has_triton():
        return 0, 0
    major, minor = importlib.metadata.version("triton").split(".")[:2]
    return int(major), int(minor)


def interpreting() -> bool:
    """Return whether Triton was told to interpret kernels on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA device."""
    return INTERPRETED if device.type != "cuda" else torch.cuda.get_device_capability(device)


def why_not_gpu(device: torch.device) -> str:
    """Return why the Triton kernels cannot run on ``device``, or "" if they can."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return f"runs on cuda tensors only, got {device.type}"
    if not _has_triton():
        return "triton is not installed"
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return "AMD cards are untested: tiles and 8-bit formats differ"
    if capability(device) < MIN_CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability(device), MIN_CAPABILITY))
        return f"compute capability {have}, INT8 tensor cores as used here need {need}"
    return ""


def value_format(cc: tuple[int, int], precision: str = "int8") -> ValueFormat:
    """Return the format of P and V: "e4m3" where tensor cores have it, else "fp16".

    For "int4" on a GPU with FP4 it is "e2m1", which stands for NVFP4 throughout.
    """
    if precision == "int4" and cc >= FP4_CAPABILITY:
        return "e2m1"
    return "e4m3" if cc >= (8, 9) else "fp16"


def why_not_precision(precision: str, cc: tuple[int, int], dim: int = 128) -> str:
    """Return why "auto" uses INT8 instead of ``precision`` for heads of ``dim``, or ""."""
    if precision == "int6":
        return "six bits cost as much as eight on tensor cores"
    if precision != "int4":
        return ""
    if cc >= FP4_CAPABILITY:
        if cc[0] == 10 and triton_version() < FP4_TRITON:
            have, need = (".".join(map(str, v)) for v in (triton_version(), FP4_TRITON))
            return f"Triton {have} cannot compile FP4 for this card, {need} can"
        return "" if dim <= 128 else f"heads of {dim} leave FP4 too few registers"
    if cc >= (9, 0):
        return "this card has no four-bit tensor cores"
    return "Triton has no four-bit integer product, and FP4 needs compute capability 10.0"


def describe(cc: tuple[int, int]) -> str:
    """Return one line for the report: what attention can run on a GPU."""
    if cc < MIN_CAPABILITY:
        return f"no kernel for compute capability {cc[0]}.{cc[1]}"
    values = "E4M3" if value_format(cc) == "e4m3" else "FP16"
    parts = [f"int8: Q·K in INT8, P·V in {values}"]
    if cc >= FP4_CAPABILITY:
        parts.append("int4: NVFP4")
    reasons = ((p, why_not_precision(p, cc)) for p in ("int6", "int4"))
    return "; ".join(parts + [f"{p} runs as int8: {why}" for p, why in reasons if why])
