"""Saves a denoising run between its steps, and goes on from there with equal bytes.

Method. Everything a pipeline computes before its loop is computed again; it is cheap and depends
only on the job. For the steps that are already done the denoisers answer with zeros instead of
working, and at the last of them ``callback_on_step_end``, diffusers' own joint, puts back what was
saved: latents, the scheduler's state, the random generator and the patch's state. So no pipeline
needs to know how to start in the middle.

A pipeline is left alone, with a reason, if its loop carries what this cannot see: denoisers with
several outputs, or a scheduler with state that is no plain value.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel.core.atomic_write import write_atomic
from accel.core.diffusers_bridge import CONFIG_ATTRIBUTE
from accel.core.structure import denoisers
from accel.patching import Handle

_PLAIN = (bool, int, float, str, type(None))


class Unsupported(Exception):
    """This run cannot be saved; the message says why."""


class Stopped(Exception):
    """The run was asked to stop, and has saved its step if it saves any."""


class _Skipped(tuple):
    """Output of a denoiser that did not run: a tuple, and the usual ``.sample``."""

    @property
    def sample(self) -> Tensor:
        return self[0]


class StepCheckpoint:
    """Saves a run to ``path`` every ``every`` steps, after the last one, and when ``stop()``.

    ``key`` identifies the run: a file with another key is not used. After a run ``resumed_from`` is
    the number of steps that were taken over, and ``why_not`` the reason if steps could not be
    saved.
    """

    def __init__(
        self, path: Path, key: str, every: int, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._path, self._key, self._every, self._stop = path, key, every, stop
        self._saved: dict[str, Any] | None = None
        self._outputs: dict[str, list[Any]] = {}
        self._skipping = False
        self._done = 0  # steps of this run
        self._generator: torch.Generator | None = None
        self._handle: Handle | None = None
        self.resumed_from = 0
        self.why_not = ""

    @contextmanager
    def running(
        self, pipe: Any, generator: torch.Generator, handle: Handle | None
    ) -> Iterator[None]:
        """Around one pipeline call; ``generator`` is the one it is given."""
        self._generator, self._handle = generator, handle
        self._saved = read(self._path, self._key)
        self._outputs = {} if self._saved is None else self._saved["outputs"]
        self._skipping, self._done = self._saved is not None, 0
        self.resumed_from = self._saved["steps"] if self._saved else 0
        undo = [self._guard(name, module) for name, module in denoisers(pipe).items()]
        try:
            yield
        finally:
            for restore in undo:
                restore()
            self._saved = self._generator = self._handle = None

    def _guard(self, name: str, module: nn.Module) -> Callable[[], None]:
        """Let ``module`` answer with zeros while steps are skipped; returns the way back."""
        own = "forward" in vars(module)
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._skipping and name in self._outputs:
                shape, dtype = self._outputs[name]
                device = next(v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
                return _Skipped((torch.zeros(shape, dtype=dtype, device=device),))
            output = original(*args, **kwargs)
            self._note(name, output)
            return output

        def restore() -> None:
            if own:
                module.forward = original
            else:
                del module.forward

        module.forward = forward
        return restore

    def _note(self, name: str, output: Any) -> None:
        values = output if isinstance(output, tuple) else tuple(getattr(output, "values", tuple)())
        tensors = [value for value in values if isinstance(value, Tensor)]
        if len(tensors) != 1:
            self.why_not = f"the denoiser {name} has {len(tensors)} outputs"
        else:
            self._outputs[name] = [list(tensors[0].shape), tensors[0].dtype]

    def step_done(self, pipe: Any, done: int, steps: int, tensors: dict[str, Any]) -> None:
        """Call after step ``done`` of ``steps``; changes ``tensors`` where steps were skipped.

        Raises Stopped if ``stop()``.
        """
        if self._saved is not None and done <= self._saved["steps"]:
            if done == self._saved["steps"]:
                self._restore(pipe, tensors)
                self._saved = None
            self._done = done
            return
        if done <= self._done:  # its steps begin again: it makes the result part by part
            name = type(pipe).__name__
            self.why_not = f"{name} makes its video in parts, and only the first is saved"
        self._done = done
        stopping = self._stop()
        if self._every and (done % self._every == 0 or done == steps or stopping):
            self._save(pipe, done, tensors)
        if stopping:
            raise Stopped

    def _restore(self, pipe: Any, tensors: dict[str, Any]) -> None:
        saved, generator = self._saved, self._generator
        assert saved is not None and generator is not None
        self._skipping = False
        device = tensors["latents"].device
        tensors["latents"] = saved["latents"].to(device)
        _restore_scheduler(pipe.scheduler, saved["scheduler"], device)
        generator.set_state(saved["generator"])
        if self._handle is not None:
            self._handle.restore_run(saved["patch"])

    def _save(self, pipe: Any, done: int, tensors: dict[str, Any]) -> None:
        assert self._generator is not None
        if self.why_not:
            return
        try:
            if not isinstance(tensors.get("latents"), Tensor):
                raise Unsupported(f"{type(pipe).__name__} does not show its latents")
            data = {
                "key": self._key,
                "steps": done,
                "latents": _plain(tensors["latents"], "latents"),
                "scheduler": _scheduler_state(pipe.scheduler),
                "generator": self._generator.get_state(),
                "patch": {} if self._handle is None else self._handle.run_state(),
                "outputs": self._outputs,
            }
            write(self._path, data)
        except (Unsupported, OSError) as error:
            self.why_not = str(error)


# --------------------------------------------------------------------------------------- scheduler


def _plain(value: Any, name: str) -> Any:
    """Return a copy on the CPU of tensors and plain values.

    Raises Unsupported for anything else.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner, name) for inner in value)
    if isinstance(value, dict):
        return {key: _plain(inner, name) for key, inner in value.items()}
    raise Unsupported(f"the scheduler's {name} is a {type(value).__name__}, which cannot be saved")


def _scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Return all plain state of a scheduler; numpy arrays are constants of its noise schedule."""
    state = {}
    for name, value in vars(scheduler).items():
        if name == CONFIG_ATTRIBUTE or type(value).__module__ == "numpy":
            continue
        state[name] = _plain(value, name)
    return state


def _restore_scheduler(scheduler: Any, state: dict[str, Any], device: torch.device) -> None:
    """Put saved state back; tensors that are equal stay the same objects, as others watch them."""
    for name, value in state.items():
        now = getattr(scheduler, name, None)
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            if now.shape == value.shape and torch.equal(now.cpu(), value):
                continue
            value = value.to(now.device)
        setattr(scheduler, name, _on(value, device) if not isinstance(now, Tensor) else value)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_on(inner, device) for inner in value)
    if isinstance(value, dict):
        return {key: _on(inner, device) for key, inner in value.items()}
    return value


# -------------------------------------------------------------------------------------------- file


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises OSError.
    """
    buffer = io.BytesIO()
    torch.save(data, buffer)
    payload = buffer.getvalue()
    write_atomic(path, hashlib.sha256(payload).digest() + payload)


def read(path: Path, key: str) -> dict[str, Any] | None:
    """Return a checkpoint, None if there is none, it is damaged, or it belongs to another run."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    data = torch.load(io.BytesIO(content[32:]), weights_only=True)
    return data if data["key"] == key else None
