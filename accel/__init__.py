"""Acceleration add-on for Hugging Face diffusers.

    import accel
    accel.patch(pipe)            # the preset "balanced"
    print(accel.report(pipe))    # exactly what ran
    accel.unpatch(pipe)          # exactly what was there before

Public names are loaded when they are first used, so ``import accel`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from accel.attention.backend import enable_parallelism as enable_parallelism
    from accel.attention.backend import register_backend as register_backend
    from accel.attention.backend import unregister_backend as unregister_backend
    from accel.calibration import choose as choose
    from accel.calibration.precision import calibrate as calibrate
    from accel.calibration.step_measurement import Measurement as Measurement
    from accel.calibration.steps import measure_steps as measure_steps
    from accel.calibration.table import ErrorTable as ErrorTable
    from accel.config import AttentionConfig as AttentionConfig
    from accel.config import LinearConfig as LinearConfig
    from accel.config import RehashConfig as RehashConfig
    from accel.config import Rule as Rule
    from accel.config import SlicingConfig as SlicingConfig
    from accel.core import quality as quality
    from accel.core.key_steps import Multistep as Multistep
    from accel.core.plan_origin import PlanOrigin as PlanOrigin
    from accel.memory.seconds.time_prediction import TimePrediction as TimePrediction
    from accel.memory.seconds.time_prediction import predict_time as predict_time
    from accel.patching import Handle as Handle
    from accel.patching import is_patched as is_patched
    from accel.patching import patch as patch
    from accel.patching import patched as patched
    from accel.patching import report as report
    from accel.patching import unpatch as unpatch
    from accel.pipelines.fitting import load as load
    from accel.pipelines.planned import plan as plan
    from accel.planning.budgets import search_plan as search_plan
    from accel.planning.plan_search import PlanSearch as PlanSearch
    from accel.planning.wishes import NoPlan as NoPlan
    from accel.plans import Plan as Plan
    from accel.reporting import Report as Report

# Public name: the module that has it, or that it is.
_PUBLIC = {
    "AttentionConfig": "accel.config",
    "ErrorTable": "accel.calibration.table",
    "Handle": "accel.patching",
    "LinearConfig": "accel.config",
    "Measurement": "accel.calibration.step_measurement",
    "Multistep": "accel.core.key_steps",
    "NoPlan": "accel.planning.wishes",
    "Plan": "accel.plans",
    "PlanOrigin": "accel.core.plan_origin",
    "PlanSearch": "accel.planning.plan_search",
    "RehashConfig": "accel.config",
    "Report": "accel.reporting",
    "Rule": "accel.config",
    "SlicingConfig": "accel.config",
    "TimePrediction": "accel.memory.seconds.time_prediction",
    "calibrate": "accel.calibration.precision",
    "choose": "accel.calibration.choose",
    "enable_parallelism": "accel.attention.backend",
    "is_patched": "accel.patching",
    "load": "accel.pipelines.fitting",
    "measure_steps": "accel.calibration.steps",
    "patch": "accel.patching",
    "patched": "accel.patching",
    "plan": "accel.pipelines.planned",
    "predict_time": "accel.memory.seconds.time_prediction",
    "quality": "accel.core.quality",
    "register_backend": "accel.attention.backend",
    "report": "accel.patching",
    "search_plan": "accel.planning.budgets",
    "unpatch": "accel.patching",
    "unregister_backend": "accel.attention.backend",
}
_WINGS = (
    "attention", "calibration", "cli", "config", "core", "families", "kernels", "linear",
    "memory", "patching", "pipelines", "planning", "plans", "rehash", "reporting", "slicing",
)  # fmt: skip

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return import_module(f"accel.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'accel' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    found = module if _PUBLIC[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_WINGS])
