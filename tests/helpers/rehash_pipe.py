"""A pipeline in the small around real denoisers, for the tests of step rehash."""

from __future__ import annotations

import functools

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from accel import Plan
from accel.calibration.plain_runs import listening
from accel.calibration.step_weights import Sampler, fit
from accel.config import RehashConfig
from accel.core.key_steps import Multistep
from helpers.families import FAMILIES, MORE

STEPS = 15
KEYS = (0, 1, 2, 5, 8, 11, 14)
FIXED = {"keys": KEYS, "steps": STEPS}


class Pipe:
    """A pipeline in the small: one denoiser, a scheduler, and diffusers' way of calling both.

    ``guided(step)``: branches of that step. ``named``: whether calls run in a cache context.
    """

    def __init__(self, family, scheduler=None, guided=lambda step: 2, named=True):
        module, self.inputs = {**FAMILIES, **MORE}[family]()
        name = "unet" if hasattr(module, "up_blocks") else "transformer"
        setattr(self, name, module)
        self.module, self.guided, self.named = module, guided, named
        self.scheduler = scheduler or FlowMatchEulerDiscreteScheduler()
        self.calls, self.guidance_scale = [], 3.0

    @torch.no_grad()
    def __call__(self, steps=STEPS, fail_at=None):
        key = "sample" if "sample" in self.inputs else "hidden_states"
        g = torch.Generator().manual_seed(1)
        x = torch.randn(self.inputs[key].shape, generator=g)
        self.scheduler.set_timesteps(steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        text = self.inputs["encoder_hidden_states"]
        for i, t in enumerate(self.scheduler.timesteps):
            if i == fail_at:
                raise RuntimeError("stopped")
            scale = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
            outs = []
            for branch in range(self.guided(i)):
                inputs = {
                    **self.inputs, key: scale(x, t), "timestep": t.reshape(1),
                    "encoder_hidden_states": text * (1 - branch),
                }  # fmt: skip
                outs.append(self._call(("cond", "uncond")[branch], inputs))
            y = outs[0] if len(outs) == 1 else outs[1] + self.guidance_scale * (outs[0] - outs[1])
            if y.shape != x.shape:  # image-conditioned: the condition stays
                pad = torch.zeros_like(x)
                pad[:, :, : y.shape[2]] = y
                y = pad
            x = self.scheduler.step(y, t, x, return_dict=False)[0]
        reset = getattr(self.module, "_reset_stateful_cache", None)
        if reset is not None:
            reset()
        return x

    def _call(self, branch, inputs):
        if not self.named or not hasattr(self.module, "cache_context"):
            return self.module(**inputs, return_dict=False)[0]
        with self.module.cache_context(branch):
            return self.module(**inputs, return_dict=False)[0]


def plan(attention=None, slicing=None, **settings):
    return Plan("t", attention, slicing, RehashConfig(**settings))


def counting(pipe):
    """Counts in ``pipe.calls`` how often the first block (a UNet: the input convolution) runs."""
    part = getattr(pipe.module, "conv_in", None) or pipe.module.blocks[0].attn1
    return seen(part, lambda: pipe.calls.append(1))


class seen:
    """Calls ``tell`` at every forward of ``part``; a hook on it would switch reuse off."""

    def __init__(self, part, tell):
        self._cls, self._own = type(part), type(part).forward

        def forward(module, *args, **kwargs):
            if module is part:
                tell()
            return self._own(module, *args, **kwargs)

        self._cls.forward = functools.update_wrapper(forward, self._own)

    def remove(self):
        self._cls.forward = self._own


def plain_run(pipe, steps=STEPS):
    """A full run as measuring sees it."""
    with listening(pipe) as run:
        pipe(steps)
    return run


def fitted(run, keys=KEYS, depth=3, attention=None, **settings):
    """A plan with weights fitted to ``run`` and the key steps ``keys``."""
    groups = tuple(sorted(set(run.names)).index(name) for name in run.names)
    sampler = Sampler(run.gram(), run.response[:, :-1], np.array(run.times), groups)
    rows = fit(sampler, keys, depth, sampler.growth(1.0, 2.0)).weights
    weights = Multistep(rows, tuple(run.times), run.sampler)
    return plan(attention, keys=tuple(keys), steps=len(run.times), multistep=weights, **settings)
