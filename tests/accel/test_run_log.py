"""One line in the log per finished run, and a warning where it gained nothing or lost a site."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys

import pytest
import torch
from helpers.families import FAMILIES
from helpers.rehash_pipe import FIXED, KEYS, STEPS, Pipe, plan
from helpers.runs import forward, sliced

import accel
from accel import AttentionConfig, Plan, RehashConfig, Rule
from accel.core.run_log import RunLog, Totals, logger

INT8 = AttentionConfig("int8", impl="reference")


@pytest.fixture
def lines(caplog):
    """What was logged since the last look: level and text."""
    caplog.set_level(logging.INFO, "accel")

    def since():
        found = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "accel"]
        caplog.clear()
        return found

    return since


def test_a_run_is_logged_when_its_last_step_is_done(lines):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=plan(INT8, **FIXED))
    pipe()
    ((level, text),) = lines()
    assert level == "INFO"
    assert text.startswith(
        f"run 1 with plan 't': {len(KEYS)} steps computed, {STEPS - len(KEYS)} reused; "
    )
    ran, calls = map(int, re.findall(r"(\d+) of (\d+) attention calls quantized", text)[0])
    assert ran == calls == sum(sum(s.ran.values()) for s in accel.report(pipe).sites) > 0
    assert re.search(r"; \d+\.\d\d s in the denoiser$", text)
    pipe()
    ((_, again),) = lines()  # counted anew, not since patching
    assert again.startswith("run 2 ") and f"{ran} of {calls} attention calls" in again
    accel.unpatch(pipe)
    assert not lines()


def test_a_run_that_stops_is_logged_by_the_next_one_or_by_unpatch(lines):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=Plan("t", INT8))
    for earlier in ([], ["run 1"]):
        with pytest.raises(RuntimeError, match="stopped"):
            pipe(fail_at=3)
        assert [text.split(" with ")[0] for _, text in lines()] == earlier
    accel.unpatch(pipe)
    ((_, text),) = lines()
    assert text.startswith("run 2 with plan 't': 3 steps computed, 0 reused")


def test_guidance_that_ends_early_waits_for_what_may_come(lines):
    pipe = Pipe("wan", guided=lambda step: 2 if step < 5 else 1)
    accel.patch(pipe, plan=Plan("t", INT8))
    pipe()
    assert not lines()
    accel.unpatch(pipe)
    ((_, text),) = lines()
    assert f"{STEPS} steps computed" in text


def test_a_dropped_pipeline_is_logged(lines):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=Plan("t", INT8))
    pipe(1)
    assert not lines()
    del pipe
    gc.collect()
    ((_, text),) = lines()
    assert "1 steps computed" in text


def test_a_bare_denoiser_has_calls_instead_of_steps(lines):
    module, inputs = FAMILIES["wan"]()
    with accel.patched(module, plan=sliced(2)):
        forward(module, inputs)
    ((level, text),) = lines()
    assert level == "INFO" and "with plan 't': 1 denoiser calls; 0 of 0 attention calls" in text


def test_warns_once_where_nothing_was_accelerated(lines):
    pipe = Pipe("wan")  # too few tokens for "auto"
    plan = Plan("fast", AttentionConfig("int8"), rehash=RehashConfig(1.9))
    accel.patch(pipe, plan=plan)
    pipe(4)  # and too few steps
    (_, off), (_, info), (level, text) = lines()
    assert off.startswith(
        "step rehash: off in runs of 8 steps or fewer, which leave nothing to skip"
    )
    assert off.endswith("; preset 'few-step' has 8-bit layers in all of them")
    assert level == "WARNING" and "0 of " in info
    assert text.startswith("run 1 with plan 'fast': nothing in the denoiser was accelerated: ")
    assert re.search(r"\d+ × \w+", text) and "few steps" in text


@pytest.mark.parametrize(
    "nothing",
    [Plan("t", None), Plan("t", AttentionConfig("int8", rules=(Rule("full"),), impl="reference"))],
    ids=["no technique", "full by rule"],
)
def test_does_not_warn_where_nothing_was_asked(nothing, lines):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=nothing)
    pipe(2)
    ((level, text),) = lines()
    assert level == "INFO" and "2 steps computed, 0 reused" in text


def test_warns_once_of_sites_that_went_back(lines):
    pipe = Pipe("wan")
    accel.patch(pipe, plan=Plan("t", AttentionConfig("int4", impl="reference", max_error=1e-6)))
    pipe(3)
    found = lines()
    assert [level for level, _ in found] == ["INFO", "WARNING", "WARNING"]
    assert "nothing in the denoiser was accelerated" in found[1][1]
    assert "sites that went back to full precision: blocks.0.attn1 (int4 has error" in found[2][1]
    names = [s.name for s in accel.report(pipe).sites]
    assert len(names) <= 3 or f"; and {len(names) - 3} more" in found[2][1]


def test_costs_nothing_between_the_moments_it_writes():
    """Totals are made at the start and at the end of a run, not in between."""
    asked = []
    log = RunLog("t", lambda: asked.append(1) or Totals(), lambda run: ())
    for step in range(10):
        for _ in range(2):
            log.call(1, step)
            log.called(10)
    assert len(asked) == 2


def test_no_handler_is_configured():
    code = (
        "import logging, accel, accel.patching\n"
        "log = logging.getLogger('accel')\n"
        "print(log.handlers, log.level, log.propagate, logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] 0 True []", done.stderr
    assert logger.name == "accel"


def test_values_are_the_same_with_the_log_on(lines):
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=Plan("t", INT8)):
        loud = pipe(3)
        logging.getLogger("accel").setLevel(logging.CRITICAL)
        assert torch.equal(pipe(3), loud)
    assert len(lines()) == 1
