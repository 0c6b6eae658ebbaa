"""What the compiler makes of the GPU kernels for every supported card, and predicted times.

    python tests/bench/gpu_report.py [--cards 80 90] [--dims 128] [--options plain] [--json FILE]

Attention, and what surrounds the products of 8-bit linear layers, which are torch's own. Exits
with 1 if a kernel spills more than 64 bytes a thread or misses a tensor-core instruction. Needs no
card. Times are predictions of ``gpu_model.py``, whose error is printed with them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

from rows import SIMULATED, append, flat

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_model
from gpu_compile import (
    CARDS,
    DIMS,
    OPTIONS,
    Compiled,
    candidates,
    compile_attention,
    compile_linear,
    compile_prepare,
    variants,
)

MAX_SPILL = 64


def missing(kernel: Compiled) -> list[str]:
    """Products of the attention kernel that are no tensor-core instruction."""
    if kernel.kernel != "attend":
        return []
    names = " ".join(kernel.tensor_cores)
    if kernel.precision == "int4":
        both = sum(n for name, n in kernel.tensor_cores.items() if "mxf4nvf4" in name)
        return [] if both >= 2 and "i8" not in names else ["FP4"]
    integer = "kind::i8" if kernel.cc == 100 else ".s8.s8"
    values = {80: ".f16.f16", 86: ".f16.f16", 100: "kind::f8f6f4"}.get(kernel.cc, ".e4m3.e4m3")
    return [name for name in (integer, values) if name not in names]


def problems(kernels: list[Compiled]) -> list[str]:
    """One line for each kernel that breaks a rule."""
    found = []
    for k in kernels:
        what = f"{k.kernel} cc {k.cc} {k.precision} head size {k.dim} {k.options} {k.tile}"
        if k.spilled > MAX_SPILL:
            found.append(f"{what}: spills {k.spilled} bytes a thread, at most {MAX_SPILL}")
        if k.blocks == 0:
            found.append(f"{what}: {k.shared} bytes of shared memory do not fit on the card")
        found += [f"{what}: no {name} instruction" for name in missing(k)]
    return found


def intensity(kernel: Compiled) -> float:
    """Floating-point operations per byte that a block loads of K and V."""
    tile = kernel.tile
    assert tile is not None
    each = 2 * (0.5 + 1 / 16) if kernel.precision == "int4" else 3 if kernel.cc < 89 else 2
    bytes_ = kernel.dim * each + 4
    return 4.0 * tile.rows * kernel.dim / bytes_


UNITS = {"registers": "a thread", "/spilled": "B a thread", "shared": "B a block", "": "count"}
HEADER = (
    f"{'kernel':13} {'cc':>3} {'bits':4} {'head':>4} {'tile':>12} {'options':18} {'regs':>4} "
    f"{'spill':>5} {'shared':>7} {'occup.':>6} {'FLOP/B':>6}  tensor-core instructions"
)


def line(k: Compiled) -> str:
    """One kernel in the columns of ``HEADER``."""
    t = k.tile
    cut = f"{t.rows}x{t.keys} w{t.warps} s{t.stages}" if t else f"w{k.warps}"
    flops = f"{intensity(k):6.0f}" if t else "     -"
    cores = ", ".join(f"{n} {name}" for name, n in k.tensor_cores.items()) or "none"
    return (
        f"{k.kernel:13} {k.cc:3} {k.precision:4} {k.dim:4} {cut:>12} {k.options:18} "
        f"{k.registers:4} {k.spilled:5} {k.shared:7} {k.occupancy:6.0%} {flops}  {cores}"
    )


def predictions() -> list[str]:
    """The model's error and what it says of our kernels, labeled as predictions."""
    errors = gpu_model.errors()
    sizes = [abs(e) for e in errors.values()]
    overhead, exposed = gpu_model.fit_to(gpu_model.PUBLISHED)
    each = "; ".join(f"{' '.join(key)} {error:+.0%}" for key, error in errors.items())
    lines = [
        f"\nmodel: overhead {overhead:.2f}, exposed {exposed:.2f}; error on published kernels, "
        f"each card left out of the fit: median {statistics.median(sizes):.0%}, "
        f"worst {max(sizes):.0%} ({each})",
        "\nPREDICTED, not measured: ms for bf16 (1, 12, 32760, 128), Wan 1.3B at 480p x 81",
        f"{'card':10} {'kernel':>8} {'packing':>8} {'flash':>8} {'speed-up':>9}",
    ]
    for name, card in gpu_model.CARDS.items():
        keys = candidates("fp16" if math.isnan(card.fp8) else "e4m3", 128)[0].keys
        lines.append(timing(name, gpu_model.ours(card, (1, 12, 32760, 128), keys)))
    lines += ["\nMEASURED, the same"]
    return lines + [timing(name, t) for name, t in gpu_model.MEASURED.items()]


def timing(card: str, ms: dict[str, float]) -> str:
    """One card's milliseconds in columns."""
    gain = ms["flash"] / (ms["kernel"] + ms["packing"])
    return f"{card:10} {ms['kernel']:8.1f} {ms['packing']:8.2f} {ms['flash']:8.1f} {gain:8.2f}x"


def figures(kernels: list[Compiled]) -> dict[str, dict[str, object]]:
    """What each kernel takes on its card."""
    return {
        f"sm_{k.cc} {k.kernel} D{k.dim} {k.precision} {k.options} {k.tile or ''}".strip(): {
            "registers": k.registers, "spilled": k.spilled, "shared": k.shared,
            "warps": k.warps, "occupancy": k.occupancy, "tensor cores": k.tensor_cores,
        }
        for k in kernels
    }  # fmt: skip


def main() -> int:
    """Compile, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cards", type=int, nargs="+", default=CARDS, choices=CARDS)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, choices=DIMS)
    parser.add_argument("--options", nargs="+", default=tuple(OPTIONS), choices=tuple(OPTIONS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(HEADER)
    kernels: list[Compiled] = []

    def add(kernel: Compiled) -> None:
        print(line(kernel), flush=True)
        kernels.append(kernel)

    chosen = [
        v for v in variants() if v[0] in args.cards and v[1] in args.dims and v[3] in args.options
    ]
    for cc, dim, tile, options, precision in chosen:
        add(compile_attention(cc, dim, tile, options, precision))
    for cc, precision, dim in sorted({(cc, precision, dim) for cc, dim, _, _, precision in chosen}):
        for kernel in compile_prepare(cc, dim, precision):
            add(kernel)
    for kernel in (kernel for cc in args.cards for kernel in compile_linear(cc)):
        add(kernel)
    found = problems(kernels)
    print("\n".join(predictions()))
    if args.json:
        compiled = {**SIMULATED, "processor": "compiled, not run"}
        append(args.json, flat(figures(kernels), "gpu-report", UNITS), weights=None, on=compiled)
    print("\n" + ("\n".join(found) or f"{len(kernels)} kernels, no problem"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
