# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Four-bit floating point for tensor cores of compute capability 10 and up (NVFP4).

Values are E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), two in a byte. Each 16 along the
contracted axis share an E4M3 scale. A token (or a channel of V) also has an fp32 scale, which maps
its peak to 448 * 6, so that the E4M3 scales use their whole range (SageAttention3, arXiv
2505.11594, section 3.2, does this to P only). Exact definition: ``reference_formats.nvfp4``.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(16)

# Convert four pairs of fp32 to four bytes; the conversion's first operand is the upper half.
_TO_E2M1 = tl.constexpr("""{
.reg .b8 a, b, c, d;
cvt.rn.satfinite.e2m1x2.f32 a, $5, $1;
cvt.rn.satfinite.e2m1x2.f32 b, $6, $2;
cvt.rn.satfinite.e2m1x2.f32 c, $7, $3;
cvt.rn.satfinite.e2m1x2.f32 d, $8, $4;
mov.b32 $0, {a, b, c, d};
}""")


@triton.jit
def _nearest(x):
    """Return the E2M1 code of x like the conversion instruction: ties to even, saturating."""
    a = tl.abs(x)
    code = (a > 0.25).to(tl.uint8) + (a >= 0.75).to(tl.uint8) + (a > 1.25).to(tl.uint8)
    code += (a >= 1.75).to(tl.uint8) + (a > 2.5).to(tl.uint8) + (a >= 3.5).to(tl.uint8)
    code += (a > 5.0).to(tl.uint8)
    return code + tl.where(x < 0.0, 8, 0).to(tl.uint8)


@triton.jit
def to_fp4(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr):
    """Convert x fp32 [ROWS, COLUMNS] to E2M1 codes and E4M3 scales.

    Codes are uint8 [ROWS, COLUMNS / 2], scales [ROWS, COLUMNS / 16]. NATIVE uses the conversion
    instruction; the interpreter and older GPUs get the same result by comparisons.
    """
    grouped = tl.reshape(x, [ROWS, COLUMNS // GROUP, GROUP])
    scale = (tl.max(tl.abs(grouped), 2) / 6.0).to(tl.float8e4nv)
    wide = scale.to(tl.float32)
    # A group below the least E4M3 number is zero for any codes.
    grouped = grouped / tl.where(wide == 0.0, 1.0, wide)[:, :, None]
    low, high = tl.split(tl.reshape(grouped, [ROWS, COLUMNS // 2, 2]))
    if NATIVE:
        codes = tl.inline_asm_elementwise(
            _TO_E2M1, "=r,r,r,r,r,r,r,r,r", [low, high], dtype=tl.uint8, is_pure=True, pack=4
        )
    else:
        codes = _nearest(low) | (_nearest(high) << 4)
    return codes, scale
