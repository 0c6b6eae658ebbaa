"""Exact feature slicing: transformer blocks run slice by slice, with the same result."""

from accel.slicing.apply import Record, apply

__all__ = ["Record", "apply"]
