"""Step rehash: steps whose result hardly changes reuse what earlier ones computed."""

from accel.rehash.apply import apply, new_state
from accel.rehash.state import Record, RehashState

__all__ = ["Record", "RehashState", "apply", "new_state"]
