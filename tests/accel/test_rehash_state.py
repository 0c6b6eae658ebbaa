"""What step rehash keeps belongs to one run, one denoiser and one branch of guidance."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from helpers.pipelines import images
from helpers.rehash_pipe import KEYS, STEPS, Pipe, plan

import accel

WISH = {"speedup": 1.6}


class Two(Pipe):
    """A pipeline with a second denoiser for the steps from ``switch`` on, as Wan 2.2 has."""

    def __init__(self, family, switch, **settings):
        super().__init__(family, **settings)
        self.transformer_2, self.switch = copy.deepcopy(self.module), switch

    def _call(self, branch, inputs):
        late = self.scheduler.step_index is not None and self.scheduler.step_index >= self.switch
        first, self.module = self.module, self.transformer_2 if late else self.module
        try:
            return super()._call(branch, inputs)
        finally:
            self.module = first


def error(got, true):
    return float((got - true).norm() / true.norm())


@pytest.mark.parametrize("family", ["wan", "ltx"])
@pytest.mark.parametrize("settings", [WISH, {"keys": KEYS, "steps": STEPS}])
@pytest.mark.parametrize("switch", [2, 6, 11])
def test_a_second_denoiser_is_computed_first_and_within_the_budget(family, settings, switch):
    pipe, one = Two(family, switch), Pipe(family)
    one.transformer = one.module = copy.deepcopy(pipe.module)
    plain = one()
    with accel.patched(one, plan=plan(**settings)) as handle:
        alone, keys = error(one(), plain), list(handle.report().rehash.keys)
    with accel.patched(pipe, plan=plan(**settings)) as handle:
        both, report = error(pipe(), plain), handle.report().rehash
    assert both <= 3 * alone + 1e-6
    assert {switch, switch + 1} <= set(report.keys) and not report.notes
    assert report.calls["computed"] == 2 * len(report.keys)
    if settings is WISH:
        assert len(report.keys) == len(keys)


def test_a_second_call_of_a_branch_in_a_step_is_a_branch_of_its_own():
    """As in skip-layer guidance: the same prompt again, with less of the model."""
    pipe = Pipe("wan", guided=lambda step: 2)
    outputs = []

    def again(branch, inputs):
        first = Pipe._call(pipe, branch, inputs)
        if branch == "cond":
            other = {**inputs, "hidden_states": 0.5 * inputs["hidden_states"]}
            third = Pipe._call(pipe, branch, other)
            outputs.append(error(third, first))
            first = first + 0.1 * (first - third)
        return first

    pipe._call = again
    plain = pipe()
    expected = outputs[:]
    outputs.clear()
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        got = pipe()
    assert handle.report().rehash.calls["reused"] == 3 * (STEPS - len(handle.report().rehash.keys))
    assert min(outputs) > 0.5 * min(expected) > 0
    assert error(got, plain) < 0.2


@pytest.mark.parametrize("family", ["wan", "flux"])
@pytest.mark.parametrize(
    "kind", [FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler]
)
@pytest.mark.parametrize("stopped", [1, 6, 9, None])
def test_another_pipeline_of_the_same_denoiser_gets_what_it_would(family, kind, stopped):
    pipe, other = Pipe(family, kind()), Pipe(family, kind())
    other.module = pipe.module
    plain = other()
    handle = accel.patch(pipe, plan=plan(**WISH))
    if stopped is None:
        pipe()
    else:
        with pytest.raises(RuntimeError, match="stopped"):
            pipe(fail_at=stopped)
    assert torch.equal(other(), plain)
    assert any("step unknown" in note for note in handle.report().rehash.notes)
    mine = pipe()
    accel.unpatch(pipe)
    with accel.patched(pipe, plan=plan(**WISH)):
        assert torch.equal(pipe(), mine)  # nothing of the other run was left


def part_of(pipe, steps, first, last=None):
    """Denoise steps ``first`` to ``last`` of a schedule, as img2img and refiners do."""
    pipe.scheduler.set_timesteps(steps)
    pipe.scheduler.set_begin_index(first)
    x = torch.ones(pipe.inputs["hidden_states"].shape, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for t in pipe.scheduler.timesteps[first:last]:
            y = pipe._call("cond", {**pipe.inputs, "hidden_states": x, "timestep": t.reshape(1)})
            x = pipe.scheduler.step(y, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("first", [0, 3, 6, 8])
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("told", [False, True])
def test_a_part_of_the_schedule_has_its_own_budget(first, kind, told):
    pipe, steps = Pipe("wan", kind()), 20
    stop = 18 if told else steps
    plain = part_of(pipe, steps, first, stop)
    if told:
        pipe.num_timesteps = stop - first  # diffusers' pipelines say how many steps they run
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        got, report = part_of(pipe, steps, first, stop), handle.report().rehash
    run = stop - first
    assert (report.steps, report.begin) == (run, first)
    assert len(report.keys) == round(run / 1.6) and report.keys[0] == first
    assert report.keys[-1] == stop - 1 and error(got, plain) < 0.2
    assert not report.notes
    assert f"from step {first} of the schedule" in str(handle.report()) or not first


def test_a_measured_schedule_over_a_part_keeps_its_keys_there():
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(keys=KEYS, steps=STEPS)) as handle:
        part_of(pipe, STEPS, 4)
    # KEYS after step 4, the first fifth of the part, and its last step
    assert handle.report().rehash.keys == [4, 5, 6, 8, 11, 14]


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.5])
def test_pictures_to_pictures(strength):
    parts = dict(images().components)
    parts["scheduler"] = DDIMScheduler()
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    g = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=g)
    text = torch.randn(2, 4, 8, generator=g)

    def run():
        return pipe(
            image=picture, strength=strength, prompt_embeds=text[:1], output_type="latent",
            negative_prompt_embeds=text[1:], num_inference_steps=25,
            generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip

    plain = run()
    with accel.patched(pipe, plan=plan(speedup=1.9)) as handle:
        got, report = run(), handle.report().rehash
    steps = int(25 * strength)
    assert report.steps == steps and report.keys[-1] == 24
    assert len(report.keys) == round(steps / 1.9) and error(got, plain) < 0.1


@pytest.mark.parametrize("family", ["wan", "ltx"])
@pytest.mark.parametrize("pre", [False, True])
def test_who_reads_inside_the_denoiser_sees_every_step(family, pre):
    pipe, told = Pipe(family), []
    plain = pipe()
    part = list(pipe.module.modules())[5]
    hook = part.register_forward_pre_hook if pre else part.register_forward_hook
    removable = hook(lambda *_: told.append(1))
    pipe()
    calls = len(told)
    told.clear()
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        assert torch.equal(pipe(), plain) and len(told) == calls > 0
        assert "a hook on" in str(handle.report())
        removable.remove()
        assert not torch.equal(pipe(), plain)


@pytest.mark.parametrize("family", ["ltx", "wan"])
@pytest.mark.parametrize("named", [False, True])
def test_nothing_is_kept_after_the_last_step(family, named):
    pipe = Pipe(family, named=named)
    pipe.module._reset_stateful_cache = lambda: None  # a pipeline that does not reset
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        pipe()
        assert handle.report().rehash.state_bytes > 0
        assert sum(b.bytes for b in handle._rehash.branches.values()) == 0


@pytest.mark.parametrize("off", [range(4, 9), range(3, 12), (7,)])
def test_guidance_in_an_interval_never_uses_old_outputs(off):
    """A branch that was away is computed when it is back."""
    pipe = Pipe("wan", guided=lambda step: 1 if step in off else 2)
    plain = pipe()
    with accel.patched(pipe, plan=plan(keys=KEYS, steps=STEPS)) as handle:
        got = pipe()
        for branch in handle._rehash.branches.values():
            assert not branch.entries
    assert error(got, plain) < 0.1


def test_a_denoiser_in_training_is_left_alone_and_that_is_said():
    pipe = Pipe("wan")
    pipe.module.train()
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        pipe()
    assert "training" in str(handle.report()) and not handle.report().rehash.calls


def test_a_run_that_starts_again_on_its_schedule_is_a_new_run():
    pipe = Pipe("wan")
    with accel.patched(pipe, plan=plan(**WISH)) as handle:
        whole = part_of(pipe, STEPS, 0)
        keys, set_timesteps = list(handle.report().rehash.keys), pipe.scheduler.set_timesteps
        pipe.scheduler.set_timesteps = lambda steps: setattr(pipe.scheduler, "_step_index", None)
        assert torch.equal(part_of(pipe, STEPS, 0), whole)
        assert handle.report().rehash.keys == keys and handle.report().runs == 2
        pipe.scheduler.set_timesteps = set_timesteps


def test_a_pipeline_made_from_a_patched_one_is_followed():
    class Other:
        def __init__(self, pipe):
            vars(self).update(vars(pipe))

        __call__ = Pipe.__call__
        _call = Pipe._call

    pipe = Pipe("wan")
    expected = accel.patch(pipe, plan=plan(**WISH)) and pipe()
    accel.unpatch(pipe)
    handle = accel.patch(pipe, plan=plan(**WISH))
    pipe = Other(pipe)
    assert torch.equal(pipe(), expected) and not handle.report().rehash.notes


def test_rules_by_step_say_when_they_could_not_be_followed():
    pipe, other = Pipe("wan"), Pipe("wan")
    other.module = pipe.module
    rules = ({"precision": "full", "end": 0.3},)
    config = accel.AttentionConfig("int8", rules=rules, impl="cpu")
    handle = accel.patch(pipe, plan=accel.Plan("rules", config))
    pipe()
    before = str(handle.report())
    other()
    assert "step unknown" not in before and "step unknown" in str(handle.report())
    assert f"{2 * STEPS} denoiser calls with the most accurate precision" in str(handle.report())
    accel.unpatch(pipe)
