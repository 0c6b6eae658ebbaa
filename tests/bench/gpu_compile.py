"""Compile the GPU kernels for cards that are not here, and read what the compiler made of them.

Triton brings NVIDIA's assembler and disassembler, so registers, spilled bytes and the tensor-core
instructions are the real ones; only the time is not known without the card.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from accel.kernels.gpu import attention, linear, pack, warp
from accel.kernels.gpu.layout import Tile, candidates, with_mask
from accel.kernels.gpu.support import value_format, why_not_precision

CARDS = (80, 86, 89, 90, 100, 120)
DIMS = (64, 128, 256)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal, lse": {"CAUSAL": True, "LSE": True},
    "key mask": {"MASK": "bool"},
    "additive mask": {"MASK": "add", "MASK_ROWS": True},
    "smooth q, lengths": {"SMOOTH_Q": True, "HAS_LENGTHS": True},
}
# Registers and shared memory of one multiprocessor: (KiB shared, threads); CUDA C guide, table 24.
LIMITS = {80: (164, 2048), 86: (100, 1536), 89: (100, 1536), 90: (228, 2048), 100: (228, 2048),
          120: (100, 1536)}  # fmt: skip
REGISTERS = 65536
_CODES = {"codes_ptr", "q_codes_ptr", "k_codes_ptr"}
_TYPES = {"lengths_ptr": "*i64", "valid_ptr": "*u8", "out_ptr": "*bf16", "q_ptr": "*bf16",
          "k_ptr": "*bf16", "v_ptr": "*bf16"}  # fmt: skip
_FLOATS = {"scale", "norm", "qmax"}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one card. ``spilled``: bytes per thread; ``shared``: bytes per block."""

    kernel: str
    cc: int
    dim: int
    options: str
    precision: str
    tile: Tile | None
    tensor_cores: dict[str, int]
    registers: int
    spilled: int
    shared: int
    warps: int

    @property
    def blocks(self) -> int:
        """Blocks that fit on one multiprocessor at a time."""
        shared, threads = LIMITS[self.cc]
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * self.warps * 32)
        by_shared = shared * 1024 // (self.shared + 1024)
        return min(by_registers, by_shared, threads // (self.warps * 32))

    @property
    def occupancy(self) -> float:
        """Share of the multiprocessor's threads that are resident."""
        return self.blocks * self.warps * 32 / LIMITS[self.cc][1]


def compile_attention(
    cc: int, dim: int, tile: Tile, options: str = "plain", precision: str = "int8"
) -> Compiled:
    """The attention kernel with bf16 in and out for head size ``dim``."""
    values = value_format(divmod(cc, 10), precision)
    constants = {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.keys, "DIM": dim, "VALUE_DIM": dim, "VALUES": values,
        "CAUSAL": False, "MASK": "none", "MASK_ROWS": False, "HAS_LENGTHS": False,
        "SMOOTH_Q": False, "LSE": False, "NATIVE": True, "mask_sk": 1, **OPTIONS[options],
    }  # fmt: skip
    types = {"mask_ptr": "*u8" if constants["MASK"] == "bool" else "*bf16"}
    return _compile(attention.attend, cc, dim, options, tile, constants, types, precision)


def compile_prepare(cc: int, dim: int, precision: str = "int8") -> list[Compiled]:
    """The packing kernels with every option on."""
    values = value_format(divmod(cc, 10), precision)
    shape = {"DIM": dim, "VALUE_DIM": dim, "HAS_VALID": True}
    stats = {**shape, "ROWS": 2048 // dim}
    fold = {**shape, "CHUNKS": pack.MAX_CHUNKS, "VALUES": values, "SMOOTH_V": True}
    packed = {**shape, "ROWS": 128 if dim <= 128 else 64, "GRANULARITY": "thread", "VALUES": values,
            "NATIVE": True}  # fmt: skip
    queries = {"DIM": dim, "ROWS": 128, "GRANULARITY": "thread", "SMOOTH": True, "SHIFT": True,
               "FP4": values == "e2m1", "NATIVE": True}  # fmt: skip
    unit = {"k_sd": 1, "v_sd": 1}
    return [
        _compile(pack._statistics, cc, dim, "all", None, {**stats, **unit}, {}, precision, 4),
        _compile(pack._fold, cc, dim, "all", None, fold, {}, precision),
        _compile(pack._pack, cc, dim, "all", None, {**packed, **unit}, {}, precision),
        _compile(pack._pack_queries, cc, dim, "all", None, {**queries, "q_sd": 1}, {}, precision),
    ]


def compile_linear(cc: int) -> list[Compiled]:
    """The kernels of linear layers, bf16 in and out: rows to INT8 and E4M3, and two epilogues."""
    block = {"BLOCK": linear.BLOCK}
    rows = {**block, "HAS_FACTOR": True, "x_sc": 1}
    end = {**block, "HAS_BIAS": True, "bias_s": 1}
    out = {"out_ptr": "*bf16", "bias_ptr": "*bf16", "sums_ptr": "*i32"}
    stored = {"x_ptr": "*bf16", "codes_ptr": "*i8"}
    found = [
        _compile(linear._quantize, cc, 0, "int8", None, {**rows, "E4M3": False}, stored, "int8", 4)
    ]
    if cc >= 89:
        e4m3 = {**stored, "codes_ptr": "*fp8e4nv"}
        found.append(
            _compile(linear._quantize, cc, 0, "e4m3", None, {**rows, "E4M3": True}, e4m3, "int8", 4)
        )
    for name, constants in (
        ("gelu", {"HAS_OUTLIERS": False, "ACTIVATION": "gelu"}),
        ("outliers, silu", {"HAS_OUTLIERS": True, "ACTIVATION": "silu"}),
    ):
        found.append(
            _compile(linear._finish, cc, 0, name, None, {**end, **constants}, out, "int8", 4)
        )
    return found


def variants() -> list[tuple[int, int, Tile, str, str]]:
    """Every (cc, head size, tile, options, precision) the launcher can ask for."""
    found = [
        (cc, dim, with_mask(tile, "MASK_ROWS" in OPTIONS[options]), options, precision)
        for cc in CARDS
        for precision in ("int8", "int4")
        for dim in DIMS
        if not why_not_precision(precision, divmod(cc, 10), dim)
        for tile in candidates(value_format(divmod(cc, 10), precision), dim)
        for options in OPTIONS
    ]
    return list(dict.fromkeys(found))


def _compile(
    kernel: Any,
    cc: int,
    dim: int,
    options: str,
    tile: Tile | None,
    constants: dict[str, Any],
    types: dict[str, str],
    precision: str,
    warps: int = 8,
) -> Compiled:
    values = value_format(divmod(cc, 10), precision)
    codes = dict.fromkeys(_CODES, "*u8" if values == "e2m1" else "*i8")
    if values == "e2m1":
        codes |= {name: "*fp8e4nv" for name in kernel.arg_names if name.endswith("groups_ptr")}
    stored = {"e4m3": "*fp8e4nv", "fp16": "*fp16", "e2m1": "*u8"}[values]
    types = {**_TYPES, **codes, "v_codes_ptr": stored, **types}
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants
        else types.get(name, "*fp32") if name.endswith("_ptr")
        else "fp32" if name in _FLOATS else "i32"
        for name in names
    }  # fmt: skip
    # Pointers, head sizes and strides of whole tokens are multiples of 16, as with real tensors.
    sizes = {"dim", "value_dim", "padded", "padded_queries"}
    aligned = [n for n in names if n.endswith("_ptr") or n in sizes or re.search("_s[bht]$", n)]
    source = ASTSource(
        kernel, signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in constants},
    )  # fmt: skip
    warps = tile.warps if tile else warps
    built = triton.compile(
        source,
        target=GPUTarget("cuda", cc, 32),
        options={"num_warps": warps, "num_stages": tile.stages if tile else 3,
                 "enable_fp_fusion": True},
    )  # fmt: skip
    found = re.findall(r"\b((?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*)", built.asm["ptx"])
    registers, spilled = _resources(built.asm["cubin"])
    return Compiled(
        kernel.__name__, cc, dim, options, precision, tile, dict(Counter(found)), registers,
        spilled, built.metadata.shared, warps,
    )  # fmt: skip


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, from the machine code's own table."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    finally:
        os.unlink(file.name)
    numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def warp_code(cc: int) -> dict[str, str]:
    """PTX of the noise warp's kernels by name."""
    code = {}
    for kernel in (warp._fresh, warp._totals, warp._merge):
        floats = {"out_ptr", "density_out_ptr", "q_ptr", "rho_ptr", "total_ptr"}
        signature = {
            name: "constexpr" if name == "BLOCK"
            else "i32" if not name.endswith("_ptr") else "*fp32" if name in floats else "*i32"
            for name in kernel.arg_names
        }  # fmt: skip
        source = ASTSource(kernel, signature, {(kernel.arg_names.index("BLOCK"),): warp.BLOCK})
        target = GPUTarget("cuda", cc, 32)
        code[kernel.__name__] = triton.compile(source, target=target, options=warp.EXACT).asm["ptx"]
    return code
