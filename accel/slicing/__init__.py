"""Exact feature slicing: denoisers and VAE decoders in slices, with the same result."""

from accel.slicing import stream
from accel.slicing.apply import Record, apply
from accel.slicing.decoders import apply as apply_strips
from accel.slicing.programs import Programs
from accel.slicing.stream import returned

__all__ = ["Programs", "Record", "apply", "apply_strips", "returned", "stream"]
