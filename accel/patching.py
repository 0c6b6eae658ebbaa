"""Patch and unpatch: applies a plan to a pipeline's instances, and takes it back exactly."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from accel.attention import guard, simpler
from accel.attention.apply import apply_attention
from accel.attention.deferred import Deferred
from accel.attention.notes import attention_notes
from accel.attention.policy import unmatched
from accel.attention.provider_report import provider_reports
from accel.attention.site import Site
from accel.core.clean_copies import CleanCopies
from accel.core.origin_check import OriginCheck
from accel.core.placed import kept
from accel.core.run_log import RunLog, Totals
from accel.core.run_state import RunState
from accel.core.structure import attention_modules, denoisers
from accel.core.waiting import may_wait
from accel.families import only_returns_frames
from accel.kernels import measured
from accel.kernels.dispatch import environment
from accel.linear.apply import apply_linear
from accel.linear.linear_layers import linear_layers
from accel.linear.linear_site import LinearSite
from accel.linear.summary import linear_notes, linear_totals
from accel.plans import Plan
from accel.rehash.apply import apply_rehash, new_state
from accel.rehash.rehash_report import rehash_report
from accel.reporting import Report, block_report, site_report, totals
from accel.slicing.block_record import BlockRecord
from accel.slicing.blocks import apply_slicing
from accel.slicing.vae.apply import apply_strips
from accel.slicing.vae.tiles import apply_tiles

Kinds = tuple[Callable[..., Site], Callable[..., LinearSite]]  # what makes the sites
_handles: weakref.WeakKeyDictionary[nn.Module, Handle] = weakref.WeakKeyDictionary()


class Handle:
    """A live patch.

    ``plan`` is what was asked for; ``report()`` says what happened; ``origin`` compares runs.
    """

    def __init__(self, pipe: Any, plan: Plan, kinds: Kinds = (Site, LinearSite)) -> None:
        self.plan = plan
        self.sites: dict[str, Site] = {}
        self.blocks: dict[str, BlockRecord] = {}
        self.layers: dict[str, LinearSite] = {}
        self.calls = 0
        self.seconds = 0.0
        self._pipeline = type(pipe).__name__
        self._pipe = weakref.ref(pipe)
        self._undo = ExitStack()
        self._active = True
        self._state = RunState(pipe)
        self._kinds = kinds
        self._rehash = new_state(plan.rehash, plan.attention, self._state)
        self._log = RunLog(plan.name, self._totals, self._demoted)
        self._undo.callback(self._log.finish)
        copies = CleanCopies(self._undo)
        long = plan.name == "balanced"
        self.origin = OriginCheck(pipe, plan.origin, plan.rehash, self._state, long=long)
        modules, vae = denoisers(pipe), getattr(pipe, "vae", None)
        # Only weak references: a pipeline dropped without unpatch must go and take the patch along.
        self._denoisers = {name: weakref.ref(module) for name, module in modules.items()}
        try:
            self._apply(modules)
            if plan.slicing is not None:
                strips = apply_strips(vae, plan.slicing, self._undo, only_returns_frames(pipe))
                self.blocks.update(strips)
                if plan.slicing.tiling:
                    self.origin.say([apply_tiles(vae, self._undo)])
            self.origin.say(unmatched(plan.attention, self.sites, plan.linear, self.layers))
            copies.watch([*modules.values(), *([vae] if isinstance(vae, nn.Module) else [])])
        except BaseException:
            self.unpatch()
            raise
        for module in modules.values():
            weakref.finalize(module, self._undo.close).atexit = False

    def _apply(self, modules: dict[str, nn.Module]) -> None:
        for name, module in modules.items():
            _handles[module] = self
            self._watch(module)
            several = len(modules) > 1
            if self.plan.slicing is not None:
                prefix = f"{name}." if several else ""
                records = apply_slicing(module, self.plan.slicing, self._undo)
                self.blocks.update({prefix + path: r for path, r in records.items()})
            checks = Deferred() if may_wait() else None
            if checks is not None and (self.plan.attention or self.plan.linear):
                from accel.attention.checks_hook import apply_checks

                apply_checks(module, checks, self._undo)
            if self._rehash is not None:
                apply_rehash(module, name, self._rehash, self._undo)
            if self.plan.linear is not None:
                layers = linear_layers(name, module, several=several)
                found = apply_linear(
                    module, *layers, self.plan.linear, self._state, self._undo, self._kinds[1],
                    fuse=self.plan.slicing is None,
                )  # fmt: skip
                self.layers |= found
                guard.defer(found.values(), checks)
            if self.plan.attention is None:
                continue
            parts = attention_modules(name, module, several=several)
            sites = apply_attention(
                module, parts, self.plan.attention, self._state, self._undo, self._kinds[0]
            )
            outside = sites.pop("")
            self.sites[f"{name}." if several else ""] = outside
            self.sites.update(sites)
            guard.defer(sites.values(), checks)

    def _watch(self, module: nn.Module) -> None:
        """Follow the denoiser's timestep, calls and seconds (not traced into compiled graphs)."""
        started: list[float] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                return
            self._state.count(kwargs.get("timestep", args[1] if len(args) > 1 else None))
            run = self._state.refresh()
            self.origin.called(run, args, kwargs)
            self._log.call(run, self._state.step)
            self.calls += 1
            started.append(time.perf_counter())

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling() and started:
                self.seconds += time.perf_counter() - started.pop()
                self._log.called(self._state.steps)

        handles = (
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),
        )
        for handle in handles:
            self._undo.callback(handle.remove)

    @property
    def steps(self) -> int | None:
        """Length of the current or last run, None if it cannot be known."""
        return self._state.steps if self._state.refresh() else None

    @property
    def active(self) -> bool:
        """Whether the patch is still in place."""
        return self._active

    def unpatch(self) -> None:
        """Take every change back, last one first.

        Does nothing the second time.
        """
        self._active = False
        self._undo.close()
        for reference in self._denoisers.values():
            module = reference()
            if module is not None and _handles.get(module) is self:
                del _handles[module]

    def run_state(self) -> dict[str, Any]:
        """Return what decides the rest of the current run beside latents and scheduler.

        Plain values: sites that were taken to full precision, what step rehash keeps, and for
        the report what ran so far.
        """
        run = self._state.refresh()
        state: dict[str, Any] = {
            **guard.saved(self.sites, run),
            **simpler.saved(self.sites, run),
            "measured": measured.remembered(),
        }
        if self.layers:
            state["linear"] = guard.saved(self.layers, run)
        return state if self._rehash is None else {**state, "rehash": self._rehash.to_dict()}

    def restore_run(self, state: dict[str, Any]) -> None:
        """Inverse of ``run_state``, for a run that goes on from a saved step."""
        run = self._state.refresh()
        guard.restore(self.sites, run, state)
        guard.restore(self.layers, run, state.get("linear", {}))
        simpler.restore(self.sites, run, state)
        measured.remember(state.get("measured", {}))
        if self._rehash is not None and "rehash" in state:
            self._rehash.restore(state["rehash"])

    def report(self) -> Report:
        """Return what ran so far."""
        layers = self.layers.values()
        sites = [s for s in self.sites.values() if s.config is not None or s.record.kept]
        return Report(
            self._pipeline,
            self.plan.name,
            environment(),
            self._state.run,
            self.calls,
            self.seconds,
            [site_report(site) for site in sites],
            [block_report(path, record) for path, record in self.blocks.items()],
            self._notes(),
            None if self._rehash is None else rehash_report(self._rehash),
            str(kept(self._pipe()) or "").splitlines(),
            None if self.plan.linear is None else linear_totals(layers),
            [site_report(site) for site in layers if not site.left],
            provider_reports(self.sites.values()),
        )

    def _totals(self) -> Totals:
        return totals(
            self.calls, self.seconds, self.sites.values(), self.layers.values(),
            self.blocks.values(), self._rehash,
        )  # fmt: skip

    def _demoted(self, run: int) -> list[tuple[str, str]]:
        """Name and reason of each site that was demoted in that run."""
        both = (*self.sites.values(), *self.layers.values())
        return [(s.name, s.demoted_why) for s in both if s.demoted_run == run]

    def _notes(self) -> list[str]:
        plan, lost = self.plan.attention, self._state.lost
        found = attention_notes(plan, self.sites.values(), self.calls, lost)
        notes = [*self.origin.notes, *found]
        notes += linear_notes(self.plan.linear, self.layers.values(), self.calls)
        return notes if self.active else [*notes, "this patch has been taken back"]


def _all(pipe: Any) -> list[Handle]:
    """Return the patches on a pipeline's denoisers, also on those it had when it was patched."""
    on = [_handles[module] for module in denoisers(pipe).values() if module in _handles]
    return list(dict.fromkeys([*on, *(h for h in _handles.values() if h._pipe() is pipe)]))


def _find(pipe: Any) -> Handle | None:
    return next(iter(_all(pipe)), None)


def patch(pipe: Any, preset: str | None = None, plan: Plan | None = None) -> Handle:
    """Accelerate a diffusers pipeline (or a bare denoiser) in place.

    ``preset``: "lossless", "balanced" (the default), "few-step" or "fast"; or give a ``plan``.
    Patching a patched pipeline takes the old patch back first. Only instances are changed;
    ``unpatch`` restores them exactly.

    Raises ValueError for both preset and plan, an unknown preset, or a pipeline without a known
    denoiser.
    """
    if preset is not None and plan is not None:
        raise ValueError(f"give a preset or a plan, not both (got preset {preset!r} and a plan)")
    if plan is None:
        plan = Plan.preset(preset or "balanced")
    taken = [h for h in _all(pipe) if h._pipe() is not pipe]
    unpatch(pipe)
    handle = Handle(pipe, plan)
    said = (f"took back the patch of a {h._pipeline} with the same denoiser" for h in taken)
    handle.origin.notes |= dict.fromkeys(said)
    return handle


def is_patched(pipe: Any) -> bool:
    """Return whether a patch is on the pipeline; ValueError without a known denoiser."""
    return _find(pipe) is not None


def unpatch(pipe: Any) -> None:
    """Restore the pipeline to what it was before ``patch``; does nothing if it is not patched."""
    for handle in _all(pipe):
        handle.unpatch()


@contextmanager
def patched(pipe: Any, preset: str | None = None, plan: Plan | None = None) -> Iterator[Handle]:
    """``patch`` for the length of a ``with`` block."""
    handle = patch(pipe, preset, plan)
    try:
        yield handle
    finally:
        handle.unpatch()


def report(pipe: Any) -> Report:
    """Return what the pipeline's patch did so far; ValueError if it is not patched."""
    handle = _find(pipe)
    if handle is None:
        raise ValueError(f"this {type(pipe).__name__} is not patched; call accel.patch(pipe) first")
    return handle.report()
