"""Exact feature slicing: denoisers and VAE decoders in slices, with the same result."""

from accel.slicing.apply import Record, apply
from accel.slicing.programs import Programs
from accel.slicing.strips import apply as apply_strips

__all__ = ["Programs", "Record", "apply", "apply_strips"]
