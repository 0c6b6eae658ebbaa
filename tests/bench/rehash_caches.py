"""The caches that step rehash is compared with, each as its documentation sets it and swept.

Every entry is a name, its setting as text, and a context in which the pipeline has it. An entry
that cannot run on a model raises in its context or run; the benchmark prints why. No cache of
blocks runs on a UNet in diffusers 0.42.1 or cache-dit 1.5.3.
"""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
)
from rehash_models import Job, Model
from rehash_rivals import Chebyshev, Transformation, skipping
from torch import Tensor

from accel.calibration.step_measurement import Measurement
from accel.config import AttentionConfig, RehashConfig
from accel.core.run_pipeline import call
from accel.patching import patched
from accel.plans import Plan


@dataclass(frozen=True)
class Contender:
    """One method at one setting. ``change`` alters a job instead (fewer steps); ``detail``: what
    else the result depends on, as plain values.
    """

    method: str
    setting: str
    on: Callable[[Any], AbstractContextManager[Any]]
    change: Callable[[Job], Job] = dict
    detail: Any = None


@contextmanager
def nothing(pipe: Any) -> Iterator[None]:
    """The pipeline as it is."""
    yield


def of_diffusers(make: Callable[[Any], Any]) -> Callable[[Any], AbstractContextManager[Any]]:
    """A cache of diffusers; ``make`` builds its config for a pipeline."""

    @contextmanager
    def on(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(make(pipe))
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return on


def of(
    method: str, setting: str, config: RehashConfig, attention: AttentionConfig | None = None
) -> Contender:
    """Ours."""
    plan = Plan("bench", attention, rehash=config)
    return Contender(method, setting, lambda pipe: patched(pipe, plan=plan), detail=asdict(plan))


def sea(config: SeaCacheConfig) -> Callable[[Any], AbstractContextManager[Any]]:
    """SeaCache. FLUX's pipeline does not tell it the step and the noise level; here it is told."""

    @contextmanager
    def on(pipe: Any) -> Iterator[None]:
        if isinstance(pipe, WanPipeline):
            with of_diffusers(lambda _: config)(pipe):
                yield
            return
        transformer, scheduler = pipe.transformer, pipe.scheduler
        plain = transformer.cache_context

        def context(name: str) -> Any:
            step, steps = scheduler.step_index or 0, len(scheduler.timesteps)
            sigma = float(scheduler.sigmas[step])
            return plain(name, step_index=step, sigma=sigma, num_inference_steps=steps)

        transformer.cache_context = context
        try:
            with of_diffusers(lambda _: replace(config, raw_vision_callback=_latents))(pipe):
                yield
        finally:
            del transformer.cache_context

    return on


def _latents(module: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Latents [C, 1, H, W] of FLUX's tokens [1, H W / 4, 4 C] of a square picture."""
    tokens = kwargs["hidden_states"][0]
    side = round(len(tokens) ** 0.5)
    x = tokens.view(side, side, -1, 2, 2).permute(2, 0, 3, 1, 4)
    return [x.reshape(x.shape[0], 1, 2 * side, 2 * side)]


def cache_dit(**settings: Any) -> Callable[[Any], AbstractContextManager[Any]]:
    """cache-dit's DBCache; ``taylor`` adds its TaylorSeer calibrator of that order."""

    @contextmanager
    def on(pipe: Any) -> Iterator[None]:
        import cache_dit as library

        options = dict(settings)
        order = options.pop("taylor", None)
        calibrator = (
            None if order is None else library.TaylorSeerCalibratorConfig(taylorseer_order=order)
        )
        if isinstance(pipe, FluxPipeline):  # its two branches of guidance are calls of their own
            options["enable_separate_cfg"] = True
        plain = pipe.transformer
        pipe.transformer = copy.deepcopy(plain)  # its patch of FLUX's forward is not undone
        try:
            library.enable_cache(
                pipe, cache_config=library.DBCacheConfig(**options), calibrator_config=calibrator
            )
            yield
        finally:
            library.disable_cache(pipe)
            pipe.transformer = plain

    return on


def magnitudes(pipe: Any, job: Job, steps: int) -> list[float]:
    """MagCache's ratios, by its own calibration: one run, printed per branch, the first taken."""
    printed = io.StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    with redirect_stdout(printed), of_diffusers(lambda _: config)(pipe):
        call(pipe, job)
    lists = [line for line in printed.getvalue().splitlines() if line[1:2].isdigit()]
    return [float(x) for x in lists[0].strip("[]").split(",")]


def ours(measured: Measurement, features: Measurement) -> list[Contender]:
    """Step rehash: measured schedules, the rule, and the paper's features."""
    found = []
    for point in measured.points:
        config = measured.at_speedup(measured.steps / len(point.keys) - 1e-6)
        name = f"{len(point.keys)} keys"
        found.append(of("rehash, measured", name, config))
        found.append(of("rehash, measured, 8 bits", name, replace(config, store="int8")))
    for speedup in (1.5, 1.9, 2.4, 3.0):
        found.append(of("rehash, no map", f"{speedup:g}×", RehashConfig(speedup=speedup)))
    keys = measured.at_speedup(1.9).keys
    for precision, order in itertools.product(("full", "int8", "int4"), (1, 0)):
        attention = AttentionConfig(precision, impl="cpu", smooth_q=True)
        config = RehashConfig(keys=keys, steps=measured.steps, order=order)
        name = f"{'line' if order else 'repeat'}, {len(keys)} keys"
        found.append(of(f"rehash, {precision} attention", name, config, attention))
    for point in features.points:
        config = features.at_speedup(features.steps / len(point.keys) - 1e-6)
        name = f"{len(point.keys)} keys, {point.found}"
        found.append(of("rehash, features (paper)", name, config))
    return found


def theirs(model: Model, pipe: Any, job: Job, steps: int) -> list[Contender]:
    """Fewer steps, the methods of ``rehash_rivals``, and every cache, documented setting first."""
    speedups = (1.25, 1.5, 1.7, 1.9, 2.1, 2.4, 2.75, 3.0)
    found = [
        Contender("fewer steps", str(n), nothing, lambda j, n=n: {**j, "num_inference_steps": n})
        for n in sorted({round(steps / s) for s in speedups}, reverse=True)
    ]
    for gap, growth in ((2, 0.75), (1, 0.25), (2, 0.25), (2, 0.5), (3, 0.5), (3, 1), (4, 1.5)):
        on = skipping(lambda g=gap, w=growth: Chebyshev(g, w))
        found.append(Contender("like Spectrum", f"gap {gap}, growth {growth}", on))
    for t in (0.05, 0.03, 0.07, 0.1, 0.15, 0.2, 0.3):
        on = skipping(lambda t=t: Transformation(t))
        found.append(Contender("like EasyCache", f"threshold {t}", on))
    return found if not model.parts else [*found, *_of_blocks(model, pipe, job, steps)]


def _of_blocks(model: Model, pipe: Any, job: Job, steps: int) -> list[Contender]:
    """Caches that leave out blocks of a transformer."""
    found = []
    for t in (0.2, 0.05, 0.1, 0.25, 0.3, 0.5):
        on = of_diffusers(lambda _, t=t: FirstBlockCacheConfig(t))
        found.append(Contender("FirstBlockCache", f"threshold {t}", on))
    ratios = magnitudes(pipe, job, steps)
    for t, k in ((0.06, 3), (0.12, 3), (0.24, 3), (0.5, 5)):
        config = MagCacheConfig(t, k, num_inference_steps=steps, mag_ratios=ratios)
        on = of_diffusers(lambda _, c=config: c)
        found.append(Contender("MagCache", f"threshold {t}, at most {k}", on))
    found += [_broadcast(2, None), _broadcast(2, 6), _broadcast(3, 6), _broadcast(5, 6)]
    for n in (5, 2, 3, 4):
        lite = TaylorSeerCacheConfig(cache_interval=n, use_lite_mode=True)
        parts = TaylorSeerCacheConfig(cache_interval=n, cache_identifiers=list(model.parts))
        found.append(
            Contender("TaylorSeer lite", f"interval {n}", of_diffusers(lambda _, c=lite: c))
        )
        found.append(Contender("TaylorSeer", f"interval {n}", of_diffusers(lambda _, c=parts: c)))
    for t, order in ((0.25, 1), (0.3, 1), (0.1, 1), (0.5, 1), (0.25, 0), (0.15, 1), (0.7, 1)):
        config = SeaCacheConfig(t, residual_order=order)
        found.append(Contender("SeaCache", f"threshold {t}, order {order}", sea(config)))
    return [*found, *_faster(), *_of_cache_dit(steps)]


def _broadcast(spatial: int, cross: int | None) -> Contender:
    def make(pipe: Any) -> Any:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=spatial,
            cross_attention_block_skip_range=cross,
            current_timestep_callback=lambda: pipe.current_timestep,
        )

    return Contender("PAB", f"spatial {spatial}, cross {cross}", of_diffusers(make))


def _faster() -> list[Contender]:
    def make(pipe: Any, skip: int) -> Any:
        return FasterCacheConfig(
            spatial_attention_block_skip_range=skip,
            current_timestep_callback=lambda: pipe.current_timestep,
            attention_weight_callback=lambda _: 0.3,
            is_guidance_distilled=True,  # the pipeline calls its branches one after another
        )

    return [
        Contender("FasterCache", f"attention {n}", of_diffusers(lambda p, n=n: make(p, n)))
        for n in (2, 3)
    ]


def _of_cache_dit(steps: int) -> list[Contender]:
    """Its F8 needs more than six blocks, so one block decides."""
    found = []
    for t in (0.08, 0.2, 0.4, 0.8):
        settings = {
            "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": t,
            "num_inference_steps": steps,
        }  # fmt: skip
        found.append(Contender("cache-dit DBCache", f"F1B0 {t}", cache_dit(**settings)))
        short = {**settings, "max_warmup_steps": 4}
        found.append(Contender("cache-dit DBCache", f"F1B0 W4 {t}", cache_dit(**short)))
        on = cache_dit(**short, taylor=1)
        found.append(Contender("cache-dit TaylorSeer", f"F1B0 W4 {t}", on))
    return found
