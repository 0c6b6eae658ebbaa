"""What the compiler makes of the GPU kernels for cards that are not here: ``make gpu-report``.

Here the likeliest tile of each card and head size; the report itself goes through all of them. It
runs as a program of its own, since Triton either interprets or compiles in one process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from accel.kernels.gpu.support import triton_version, why_not_precision

pytestmark = [pytest.mark.slow, pytest.mark.proof]

pytest.importorskip("triton", reason="triton is not installed")
FP4_CARDS = [cc for cc in (100, 120) if not why_not_precision("int4", divmod(cc, 10))]
BENCH = Path(__file__).resolve().parents[1] / "bench"
CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gpu_compile as g, gpu_report as r
wanted = {
    ("int8", 64, "causal, lse"), ("int8", 128, "plain"), ("int8", 128, "additive mask"),
    ("int8", 256, "smooth q, lengths"), ("int4", 128, "plain"),
}
likeliest = {}
for cc, dim, tile, options, precision in g.variants():
    if (precision, dim, options) in wanted:
        likeliest.setdefault((cc, dim, options, precision), tile)
kernels = [
    g.compile_attention(cc, dim, tile, options, precision)
    for (cc, dim, options, precision), tile in likeliest.items()
]
kernels += [k for cc, p in ((80, "int8"), (120, "int4")) for k in g.compile_prepare(cc, 128, p)]
rows = [{"kernel": k.kernel, "cc": k.cc, "spilled": k.spilled, "cores": list(k.tensor_cores),
         "bits": k.precision, "blocks": k.blocks, "registers": k.registers} for k in kernels]
numbers = [
    p.name for f in (g.warp._fresh, g.warp._totals, g.warp._merge) for p in f.params
    if not p.name.endswith("_ptr") and not p.is_constexpr and not p.do_not_specialize
]
warps = {cc: g.warp_code(cc) for cc in (80, 120)}
found = {"rows": rows, "problems": r.problems(kernels), "warps": warps, "numbers": numbers}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(BENCH)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


newer = pytest.mark.skipif(
    triton_version() < (3, 9),
    reason="Triton 3.9 is missing: older compilers spill more and use older instructions",
)


@newer
def test_no_kernel_spills_or_misses_its_tensor_cores(report):
    assert len(report["rows"]) == 32 + len(FP4_CARDS)
    assert not report["problems"]
    attention = [row for row in report["rows"] if row["kernel"] == "attend"]
    assert all(row["spilled"] <= 64 and row["blocks"] >= 1 for row in attention)


@newer
@pytest.mark.parametrize(("cc", "integer", "values"), [
    (80, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", "m16n8k16.row.col.f32.f16.f16.f32"),
    (86, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", "m16n8k16.row.col.f32.f16.f16.f32"),
    (89, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", "m16n8k32.row.col.f32.e4m3.e4m3.f32"),
    (90, "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8", "k32.f32.e4m3.e4m3"),
    (100, "tcgen05.mma.cta_group::1.kind::i8", "tcgen05.mma.cta_group::1.kind::f8f6f4"),
    (120, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", "m16n8k32.row.col.f32.e4m3.e4m3.f32"),
])  # fmt: skip
def test_products_are_tensor_core_instructions(report, cc, integer, values):
    rows = [
        row for row in report["rows"]
        if (row["cc"], row["kernel"], row["bits"]) == (cc, "attend", "int8")
    ]  # fmt: skip
    assert len(rows) == 4
    for row in rows:
        cores = " ".join(row["cores"])
        assert values in cores
        # On Hopper the shape of the integer product follows the tile.
        assert integer in cores or (cc == 90 and "s32.s8.s8" in cores and "wgmma" in cores)


def test_four_bits_are_block_scaled_fp4_products(report):
    rows = [row for row in report["rows"] if row["kernel"] == "attend" and row["bits"] == "int4"]
    assert [row["cc"] for row in rows] == FP4_CARDS
    assert all(all("kind::mxf4nvf4.block_scale" in name for name in row["cores"]) for row in rows)


@pytest.mark.parametrize("cc", ["80", "120"])
def test_the_warp_rounds_every_step_as_the_reference(report, cc):
    """No fused multiply-add, no approximate division or root: the bytes are the same everywhere."""
    code = report["warps"][cc]
    assert set(code) == {"_fresh", "_totals", "_merge"}
    for ptx in code.values():
        assert "mul.rn.f32" in ptx or "mul.f32" in ptx
        assert not re.findall(r"\b(fma|mad)\.[\w.]*f32|approx|\.ftz", ptx)
    assert "div.rn.f32" in code["_merge"] and "sqrt.rn.f32" in code["_merge"]


def test_no_number_of_the_warp_becomes_a_constant(report):
    """Triton would make a Python integer of a seed, frame or pixel count that is 1."""
    assert report["numbers"] == []
