"""Acceleration add-on for Hugging Face diffusers: ``accel.patch(pipe)`` and what it decides."""

from pathlib import Path as _Path

# A checkout keeps kernels/ and pipelines/ beside this folder; a wheel carries them inside it.
_root = _Path(__file__).resolve().parents[1]
if (_root / "kernels" / "csrc").is_dir() and str(_root) not in __path__:
    __path__.append(str(_root))

from accel import choose  # noqa: E402
from accel.budget import plan as plan  # noqa: E402
from accel.calibrate import calibrate  # noqa: E402
from accel.calibration import ErrorTable  # noqa: E402
from accel.config import AttentionConfig, Rule, SlicingConfig  # noqa: E402
from accel.patch import Handle, patch, patched, report, unpatch  # noqa: E402
from accel.plan import Plan  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "AttentionConfig", "ErrorTable", "Handle", "Plan", "Rule", "SlicingConfig", "calibrate",
    "choose", "patch", "patched", "report", "unpatch",
]  # fmt: skip
