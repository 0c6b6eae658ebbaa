"""What a measured schedule holds for, and where it is no better than the rule."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers.rehash_pipe import KEYS, STEPS, Pipe, plan
from torch import nn

import accel
from accel.calibration.step_measurement import Measurement, Point
from accel.calibration.steps import _Trial
from accel.config import RehashConfig
from accel.core.key_steps import Origin
from accel.core.origin import origin_of, weights_hash

FIXED = {"keys": KEYS, "steps": STEPS}


def test_a_hash_is_of_names_shapes_and_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    known = weights_hash(model)
    assert weights_hash(copy.deepcopy(model)) == weights_hash(model.to(torch.bfloat16)) == known
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[0, 0] += 1
    assert weights_hash(other) != known
    assert weights_hash(nn.Sequential(model[0], nn.Identity(), model[1])) != known
    assert weights_hash(model.to("meta")) == ""


def test_each_difference_has_a_name():
    known = Origin((("transformer", "a"), ("transformer_2", "b")), "Euler", "1")
    assert known.differs(known) == ""
    assert known.differs(replace(known, settings="2")) == "other settings of Euler"
    assert known.differs(replace(known, sampler="Heun", settings="2")) == "Euler, not Heun"
    other = replace(known, weights=(("transformer", "c"),))
    found = known.differs(other)
    assert "other weights of 'transformer'" in found and "'transformer_2', which is not" in found
    assert "cannot be compared" in known.differs(replace(known, weights=(("transformer", ""),)))


@pytest.mark.parametrize("value", [3, [("a",)], [("a", 3)]])
def test_an_origin_is_texts(value):
    with pytest.raises(ValueError, match="origin"):
        Origin(value, "Euler", "")


def test_runs_with_other_weights_or_samplers_are_reported(caplog):
    pipe = Pipe("wan")
    origin = origin_of({"transformer": pipe.module}, pipe.scheduler)
    with accel.patched(pipe, plan=plan(**FIXED, origin=origin)) as handle:
        pipe()
        assert not handle.report().rehash.notes
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
        with caplog.at_level(logging.WARNING, "accel"):
            pipe()
            with torch.no_grad():
                next(pipe.module.parameters()).mul_(2)
            pipe()
            pipe()
        first, second = handle.report().rehash.notes
    assert "measured with other settings of FlowMatchEulerDiscreteScheduler" in first
    assert "measured with other weights of 'transformer' and other settings" in second
    assert len([line for line in caplog.messages if "measure again" in line]) == 2


class Told(_Trial):
    """Runs that reach what they are told to: the rule, then the schedule, on each of two jobs."""

    rule, schedule, computed = (40.0, 41.0), (30.0, 31.0), (0, 1, 2, 5, 9, 14)

    def reached(self, job, config, run):
        values = self.schedule if config.keys else self.rule
        return values[job], config.keys or self.computed


def chosen(**values):
    """What is chosen for 2.5 times, and what is said."""
    said = []
    told = type("Told", (Told,), values)(None, (0, 1), (None, None), None, said.append)
    config = RehashConfig(keys=KEYS, steps=STEPS, origin=Origin((), "X", ""))
    proposals = iter([("smallest error", config, [config, config])])
    return told.best(2.5, proposals, RehashConfig()), said


def test_the_rule_is_taken_where_it_keeps_more():
    point, said = chosen()
    assert point.rule and point.psnr == (40.0, 41.0) and point.keys == Told.computed
    assert any("the rule keeps more" in line for line in said)
    worse, _ = chosen(rule=(20.0, 41.0))
    assert not worse.rule and worse.keys == KEYS


def test_a_rule_that_computed_more_steps_is_not_compared():
    point, said = chosen(computed=tuple(range(STEPS)))
    assert not point.rule and any("not compared" in line for line in said)


def test_a_measurement_gives_the_rule_without_a_schedule(tmp_path):
    point = Point((0, 1, 2, 5, 9, 14), (40.0, 41.0), "the rule", rule=True)
    config = RehashConfig(origin=Origin((("transformer", "a"),), "X", "s"))
    found = Measurement(STEPS, (1.0,) * STEPS, ((1.0,),), config, 1, (point,))
    for made in (found.at_speedup(2.5), found.at_quality(10.0)):
        assert (made.keys, made.quality, made.origin) == ((), None, None)
        assert made.speedup == STEPS / 6
    found.save(tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json") == found
