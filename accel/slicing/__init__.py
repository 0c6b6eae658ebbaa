"""Exact feature slicing: transformer blocks run slice by slice, with the same result."""

from accel.slicing.apply import Record, apply
from accel.slicing.programs import Programs

__all__ = ["Programs", "Record", "apply"]
