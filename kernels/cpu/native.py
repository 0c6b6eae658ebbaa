"""Find and load the native library, and declare its C interface.

The library is found through the installed distribution's record, which is right for a wheel, an
editable install and a start from the checkout root alike. A checkout that was not installed has no
record and gets a reason instead. Nothing is loaded at import; ``library()`` loads once.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

ABI = 10
DISTRIBUTION = "accel-diffusion"


@dataclass(frozen=True)
class Native:
    """The loaded library, or the reason why there is none.

    ``isa`` is the instruction set in use, or "none".
    """

    lib: ctypes.CDLL | None
    isa: str
    reason: str


def _find() -> str:
    files = distribution(DISTRIBUTION).files or []
    for file in files:
        if file.stem == "accel_cpu" and file.suffix in {".so", ".dylib", ".dll"}:
            return str(file.locate())
    raise FileNotFoundError(
        "the installed package has no accel_cpu library (it was built without a C++ compiler); "
        "install a compiler and reinstall"
    )


def _declare(lib: ctypes.CDLL) -> None:
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    lib.accel_abi.restype = ctypes.c_int32
    lib.accel_isa.restype = ctypes.c_char_p
    lib.accel_isa_name.restype, lib.accel_isa_name.argtypes = ctypes.c_char_p, [ctypes.c_int32]
    lib.accel_choose_isa.restype = ctypes.c_int32
    lib.accel_choose_isa.argtypes = [ctypes.c_char_p]
    lib.accel_quantize_rows.restype = None
    lib.accel_quantize_rows.argtypes = [pointer, size, size, real, real, pointer, pointer]
    lib.accel_attention_call_size.restype = size
    lib.accel_attention.restype, lib.accel_attention.argtypes = ctypes.c_int32, [pointer]
    lib.accel_attention_scratch.restype = size
    lib.accel_attention_scratch.argtypes = [pointer, ctypes.c_int32]
    lib.accel_attention_pack.restype, lib.accel_attention_pack.argtypes = pointer, [pointer]
    lib.accel_attention_packed.restype = ctypes.c_int32
    lib.accel_attention_packed.argtypes = [pointer, pointer]
    lib.accel_attention_free.restype, lib.accel_attention_free.argtypes = None, [pointer]
    lib.accel_attention_alive.restype = size
    lib.accel_linear_call_size.restype = size
    lib.accel_linear_pack.restype, lib.accel_linear_pack.argtypes = ctypes.c_int32, [pointer]
    for name in ("accel_linear", "accel_linear_quantize", "accel_linear_multiply"):
        getattr(lib, name).restype, getattr(lib, name).argtypes = ctypes.c_int32, [pointer]
    lib.accel_linear_quantized_bytes.restype = size
    lib.accel_linear_quantized_bytes.argtypes = [pointer]
    lib.accel_warp_call_size.restype = size
    lib.accel_warp_step.restype, lib.accel_warp_step.argtypes = ctypes.c_int32, [pointer]
    lib.accel_warp_fresh.restype = ctypes.c_int32
    lib.accel_warp_fresh.argtypes = [
        pointer, size, size, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int32,
    ]  # fmt: skip
    lib.accel_set_gomp_parallel.restype = None
    lib.accel_set_gomp_parallel.argtypes = [pointer]


def instruction_sets(lib: ctypes.CDLL) -> list[str]:
    """Return the instruction sets that are compiled into the library and run here, best first."""
    raw = (lib.accel_isa_name(i) for i in range(8))
    return [name.decode() for name in raw if name is not None]


def require() -> ctypes.CDLL:
    """Return the loaded library.

    Raises RuntimeError with the reason if there is none.
    """
    native = library()
    if native.lib is None:
        raise RuntimeError(f"native library not available: {native.reason}")
    return native.lib


@cache
def library() -> Native:
    """Load the library once; a missing or foreign library becomes a reason, not an error.

    ACCEL_ISA names the instruction set to use. Raises ValueError for one that cannot run here.
    """
    try:
        lib = ctypes.CDLL(_find())
        lib.accel_abi.restype = ctypes.c_int32
        if lib.accel_abi() != ABI:
            reason = f"accel_cpu has interface {lib.accel_abi()}, need {ABI}; reinstall"
            return Native(None, "none", reason)
        _declare(lib)
    except PackageNotFoundError:
        return Native(
            None, "none", f"{DISTRIBUTION} is not installed (bare checkout); pip install ."
        )
    except (OSError, AttributeError) as error:
        return Native(None, "none", str(error))
    wanted = os.environ.get("ACCEL_ISA")
    if wanted and not lib.accel_choose_isa(wanted.encode()):
        present = instruction_sets(lib)
        raise ValueError(f"ACCEL_ISA={wanted} cannot run here; this machine has {present}")
    return Native(lib, lib.accel_isa().decode(), "")
