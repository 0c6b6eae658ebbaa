"""A job's ``load: {scheduler: …}``: a class of diffusers and its settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from accel.core.diffusers_loading import packages_lacking
from accel.core.plain_values import shown
from accel.core.validate import did_you_mean
from accel.pipelines.loading.class_names import needs

CLASS = "class"
_PLAIN = (str, int, float, bool, type(None), list)


def scheduler_class(name: Any) -> type:
    """Return the scheduler class of that name.

    Raises ValueError for one that diffusers does not have.
    """
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if lacking := packages_lacking(found):
        raise ValueError(f"load scheduler class {name} {needs(lacking)}")
    if not isinstance(found, type) or not issubclass(found, diffusers.SchedulerMixin):
        known = [one for one in dir(diffusers) if one.endswith("Scheduler")]
        raise ValueError(
            f"load scheduler class {shown(name)} is no scheduler of diffusers "
            f"{diffusers.__version__}{did_you_mean(str(name), known)}"
        )
    return found


def check_scheduler(own: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a class or a setting that does not exist.

    ``own``: name of the model's scheduler class, which counts if the settings name none.
    """
    cls: Any = scheduler_class(settings.get(CLASS, own))
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for key, value in settings.items():
        if key == CLASS:
            continue
        if key not in known:
            raise ValueError(
                f"{cls.__name__} has no setting {shown(key)}{did_you_mean(str(key), known)}; it "
                f"has {known}"
            )
        if not isinstance(value, _PLAIN):
            raise ValueError(f"load scheduler {key} must be a plain value, got {shown(value)}")


def with_scheduler(scheduler: Any, settings: Mapping[str, Any]) -> Any:
    """Return a scheduler like ``scheduler`` with the settings of a job.

    Raises ValueError for a value that its class refuses.
    """
    cls: Any = scheduler_class(settings.get(CLASS, type(scheduler).__name__))
    others = {key: value for key, value in settings.items() if key != CLASS}
    try:
        return cls.from_config(scheduler.config, **others)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"load scheduler {dict(settings)}: {error}") from error
