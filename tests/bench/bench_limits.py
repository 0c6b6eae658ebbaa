"""How far the native attention is from what the machine could do at best.

    python tests/bench/bench_limits.py [--shape 1,8,4096,128]

Measures, in one run and with torch's number of threads, the rate of the 8-bit multiply units and of
reading memory (``peak.cpp``, built with the C++ compiler of the machine), then the kernel, and
prints operations over the first and bytes over the second beside the measured time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from bench_attention import measure

from accel.kernels.cpu.native import library

FLAGS = {
    "avx512vnni": ["-mavx2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    "avxvnni": ["-mavx2"],
    "avx2": ["-mavx2"],
}


def rates(isa: str) -> dict[str, float]:
    """Multiply-adds and bytes per second of all threads together."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.cpp")
        flags = ["-O3", "-std=c++17", "-pthread", *FLAGS[isa]]
        subprocess.run(["c++", *flags, str(source), "-o", str(program)], check=True)
        run = [str(program), str(torch.get_num_threads())]
        return json.loads(subprocess.run(run, check=True, capture_output=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="1,8,4096,128", help="B,H,T,D")
    batch, heads, tokens, dim = (int(n) for n in parser.parse_args().shape.split(","))
    isa = library().isa
    peak = rates(isa)
    row = measure((batch, heads, tokens, dim), 5)
    products = 2.0 * batch * heads * tokens**2 * dim
    # fp32 Q, K, V read and the result written once; packed K and V read again by every query block.
    traffic = batch * heads * tokens * dim * (4 * 4 + 2 * tokens / 96)
    print(f"{isa}, {torch.get_num_threads()} threads, shape {(batch, heads, tokens, dim)}")
    print(f"  8-bit products {products:.3g} at {peak['multiply_adds_per_second']:.3g}/s:", end=" ")
    print(f"{products / peak['multiply_adds_per_second'] * 1e3:.1f} ms at best")
    print(f"  bytes {traffic:.3g} at {peak['bytes_per_second']:.3g}/s (from memory):", end=" ")
    print(f"{traffic / peak['bytes_per_second'] * 1e3:.1f} ms, less where the cache holds K and V")
    for name, seconds in row["seconds"].items():
        print(f"  {name}: {seconds * 1e3:.1f} ms, {row['speedup'][name]:.2f}x torch")


if __name__ == "__main__":
    main()
