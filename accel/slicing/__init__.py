"""Exact feature slicing: transformer blocks run slice by slice, with the same result."""

from accel.slicing.apply import Programs, Record, apply

__all__ = ["Programs", "Record", "apply"]
