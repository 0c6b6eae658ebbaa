"""Recorded calls: what a pipeline hands to its parts, from configurations alone and in a run."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny_pipelines import RECIPES

from accel import families
from accel.core.tree import tree_map
from accel.families.components import Part, size_of
from accel.memory import stand_ins
from accel.memory.meta_models import Video, find, of_pipeline
from accel.memory.recorded_calls import DENOISERS, CannotRecord, call_arguments, record
from accel.memory.simulate import denoiser_call, simulate
from accel.memory.small_values import SmallValues

SIZE = (64, 64, 9)
MOST = 2000  # elements of a tensor that keeps its values: fewer than a picture of this size has
TOKENS = 2  # of the prompt: a word and the end
PARTS = (*DENOISERS, "vae", "controlnet")


def described(arguments: Any) -> Any:
    """Arguments with tensors as their shapes and dtypes."""

    def leaf(x: Any) -> Any:
        return (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x

    return tree_map(leaf, dict(arguments))


def real_calls(pipe: Any) -> list[tuple[str, str, Any]]:
    """Run a pipeline with its weights; what it hands to its parts until it decodes."""
    calls: list[tuple[str, str, Any]] = []

    class Decoding(Exception):
        pass

    def watch(name: str, part: Any, method: str) -> None:
        real = getattr(part, method)
        signature = inspect.signature(real)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            for key, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    given |= given.pop(key, {})
            calls.append((name, method, described(given)))
            if method == "decode":
                raise Decoding
            return real(*args, **kwargs)

        call.__signature__ = signature  # pipelines ask what a denoiser takes
        setattr(part, method, call)

    for name in PARTS:
        if (part := getattr(pipe, name, None)) is not None:
            for method in ("encode", "decode") if name == "vae" else ("forward",):
                watch(name, part, method)
    with pytest.raises(Decoding):
        pipe(**call_arguments(type(pipe), SIZE))
    return calls


# Tokens of the prompt behind a template that is cut off, where it is not padded.
TEMPLATES = {"qwen-image": 34 + TOKENS, "z-image": TOKENS}
# Not recorded: the model must be told of a last picture; its prompt's tokens are those of a
# picture; and what has a stand-in for its encoder.
UNLIKE = ("wan first and last frame", "hunyuanvideo i2v", "qwen-image edit", "qwen-image edit plus")


@pytest.mark.proof
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in UNLIKE])
def test_recorded_calls_are_those_of_a_real_run(name):
    pipe, tokens = RECIPES[name](), TEMPLATES.get(name, TOKENS)
    if name in TEMPLATES:
        pipe.tokenizer = stand_ins.Tokenizer(tokens, 512)
    model = replace(of_pipeline(pipe), tokens=tokens)
    calls = record(model, SIZE, most=MOST)
    recorded = [
        (c.component, c.method, described(c.arguments)) for c in calls.calls if c.component in PARTS
    ]
    assert recorded == real_calls(pipe)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["wan 2.2 i2v", "sd3"])
def test_a_stored_pipeline_is_simulated_as_it_was_loaded(name, tmp_path):
    pipe = RECIPES[name]()
    pipe.save_pretrained(tmp_path)
    model = find(str(tmp_path))
    peaks = simulate(model, Video(*SIZE), (1, 4), decode=False)
    for part, size in peaks.weights.items():
        wider = 1 if part == "vae" else 2  # all but the VAE is predicted in bf16
        assert size * wider == pytest.approx(size_of(getattr(pipe, part)), rel=0.02)
    both = [size for part, size in peaks.weights.items() if part in DENOISERS]
    assert peaks.denoiser_weights == sum(both) and len(both) == (2 if "wan" in name else 1)
    assert set(peaks.encode) == {n for n in pipe.components if n.startswith("text_encoder")}
    assert (peaks.encode_image > 0) == ("i2v" in name) and not peaks.not_counted
    assert peaks.denoise[4] <= peaks.denoise[1]


# Billions of parameters as they were published, of the denoiser and of the largest encoder.
PUBLISHED = {
    "wan-14b": (14.3, 5.68), "wan-1.3b": (1.42, 5.68), "wan-i2v-14b": (16.4, 5.68),
    "wan2.2-t2v-a14b": (14.3, 5.68), "wan2.2-i2v-a14b": (14.3, 5.68),
    "wan2.2-ti2v-5b": (5.0, 5.68), "hunyuanvideo": (12.8, 7.5), "hunyuanvideo-1.5": (8.33, 7.07),
    "ltx-video-2b": (1.92, 4.76), "ltx-video-13b": (13.0, 4.76), "ltx-2": (18.9, 12.2),
    "qwen-image": (20.4, 8.29), "qwen-image-edit": (20.4, 8.29), "flux": (11.9, 4.76),
    "flux-kontext": (11.9, 4.76), "flux.2-dev": (32.2, 24.0), "z-image": (6.15, 4.02),
    "z-image-turbo": (6.15, 4.02), "sd3.5-large": (8.06, 4.76), "sdxl": (2.57, 0.695),
    "mochi": (10.0, 4.76), "cogvideox-5b": (5.57, 4.76), "svd": (1.52, 0.632),
    "animatediff": (1.31, 0.123),
}  # fmt: skip


def test_every_built_in_model_has_a_published_size():
    assert set(PUBLISHED) == set(families.models())


@pytest.mark.proof
@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_models_have_their_published_sizes(name):
    model, (denoiser, encoder) = families.models()[name], PUBLISHED[name]
    assert parameters(model.denoiser.build()) == pytest.approx(denoiser, rel=0.02)
    encoders = [parameters(e.build(e.layers)) for e in model.encoders.values()]
    assert max(encoders) == pytest.approx(encoder, rel=0.02)


def parameters(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e9


def test_few_layers_leave_out_the_listed_ones():
    part = Part("WanVACETransformer3DModel", {"num_layers": 6, "vace_layers": [0, 1, 5]})
    assert len(part.few_layers().vace_blocks) == 2 and len(part.build().vace_blocks) == 3


def test_small_tensors_keep_their_values_and_large_ones_their_sizes():
    with SmallValues(10), torch.no_grad():
        small = torch.arange(6, device="meta") * 2
        large = small.repeat(3) + torch.ones(18, dtype=torch.int64)
        mask = torch.tensor([True, False] * 9)
        chosen, zero = large[small > 4], large.sum().item()
        filled = small.clone()
        filled += large[:6]
    assert small.tolist() == [0, 2, 4, 6, 8, 10] and large.is_meta and mask.is_meta
    assert chosen.shape == (3,) and zero == 0 and filled.tolist() == small.tolist()


def test_what_cannot_be_recorded_says_why_in_one_line():
    model = families.models()["wan-1.3b"]
    with pytest.raises(CannotRecord, match="diffusers has no pipeline 'NoPipeline'"):
        record(replace(model, pipeline="NoPipeline"), SIZE)
    with pytest.raises(CannotRecord, match=r"cannot be run without weights: .") as error:
        record(replace(model, schedulers={}), SIZE)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no pipeline is known that calls it"):
        denoiser_call(replace(model, pipeline=""), Video(*SIZE))
