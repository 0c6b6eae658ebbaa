"""``load``: what a job may ask for, on the embedded model; what is wrong is one line, at once."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers import checkpoints

from accel.core.extras import how_to_install
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.load_options import LoadOptions
from accel.pipelines.loading import building
from accel.pipelines.loading.checking import problem
from accel.pipelines.loading.offload import apply_offload
from accel.pipelines.loading.source import resolve

TINY = tiny_folder()
DENOISER = str(TINY / "transformer" / checkpoints.WEIGHTS)


def frames(pipe, steps: int = 2):
    return pipe(
        prompt="a red circle", num_inference_steps=steps, width=64, height=64, num_frames=5,
        output_type="np", generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip


def dtypes(module: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in module.named_parameters()}


def test_a_denoiser_in_a_file_is_the_one_in_the_folder() -> None:
    """Also what its class keeps in fp32, which ``from_single_file`` casts."""
    options = {"dtype": "bf16"}
    want = load("tiny", options=LoadOptions(**options)).transformer
    for model, more in (
        ("tiny", {"components": {"transformer": DENOISER}}),
        (DENOISER, {"config": "tiny"}),
    ):
        pipe = load(model, options=LoadOptions(**options, **more))
        assert dtypes(pipe.transformer) == dtypes(want)
        for name, p in want.named_parameters():
            assert torch.equal(p, pipe.transformer.get_parameter(name)), name


def test_settings_of_the_scheduler_count() -> None:
    pipe = load("tiny", options=LoadOptions(scheduler={"flow_shift": 7.0}))
    assert pipe.scheduler.config.flow_shift == 7.0
    own = load("tiny").scheduler
    assert type(pipe.scheduler) is type(own) and own.config.flow_shift != 7.0
    name = "FlowMatchEulerDiscreteScheduler"
    pipe = load("tiny", options=LoadOptions(scheduler={"class": name, "shift": 5.0}))
    assert type(pipe.scheduler).__name__ == name and pipe.scheduler.config.shift == 5.0


def test_another_pipeline_class_takes_what_it_shares() -> None:
    pipe = load("tiny", options=LoadOptions(pipeline="WanVideoToVideoPipeline"))
    assert type(pipe) is diffusers.WanVideoToVideoPipeline


def test_a_variant_is_found(tmp_path: Path) -> None:
    folder = checkpoints.copied(tmp_path)
    checkpoints.as_variant(folder / "transformer", "fp16")
    pipe = load(str(folder), options=LoadOptions(variant="fp16"))
    assert len(list(pipe.transformer.parameters()))
    assert "only weights of the variant fp16; name it" in problem(str(folder), LoadOptions())
    assert "{variant: fp16}" in problem(str(folder), LoadOptions(variant="fp61"))


def test_an_offload_without_a_card_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        pipe = load("tiny", options=LoadOptions(offload="model"), device="cpu")
    assert "offload model has no effect on a CPU" in caplog.text
    assert pipe.device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pipeline": "WanPipelin"}, "has no pipeline 'WanPipelin' (did you mean 'WanPipeline'?)"),
        ({"pipeline": "FluxPipeline"}, "tiny has no text_encoder_2, tokenizer_2, which Flux"),
        ({"pipeline": "DDIMScheduler"}, "is no pipeline of diffusers"),
        ({"pipeline": "DiffusionPipeline"}, "is no pipeline that can be run"),
        ({"scheduler": {"shfit": 5}}, "has no setting 'shfit'"),
        ({"scheduler": {"class": "FlowMatchScheduler"}}, "is no scheduler of diffusers"),
        ({"scheduler": {"class": "WanPipeline"}}, "is no scheduler of diffusers"),
        ({"scheduler": {"flow_shift": {"a": 1}}}, "must be a plain value"),
        ({"components": {"vea": "x"}}, "(did you mean 'vae'?)"),
        ({"components": {"vae": str(TINY / "transformer")}}, "and WanPipeline takes AutoencoderKL"),
        ({"components": {"vae": DENOISER}}, "it lacks 122 of 122 tensors"),
        ({"components": {"vae": str(TINY / "scheduler")}}, "holds no config.json"),
        ({"components": {"vae": "./nothing"}}, "no folder, no file and no hub id"),
        ({"components": {"vae": str(TINY / "model_index.json")}}, "must end in .safetensors or"),
        ({"components": {"text_encoder": DENOISER}}, "from a single file; give a folder"),
        ({"weights": {"transfomer": "int8"}}, "(did you mean 'transformer'?)"),
        ({"weights": {"vae": "int8"}}, "a VAE is not quantized"),
        ({"weights": "nf4"}, "need a GPU"),
        ({"allow": "nf4"}, "need a GPU"),
        ({"weights": {"transformer": "gguf nothing.gguf"}}, "there is no file nothing.gguf"),
        ({"variant": "fp16"}, "it has none, so leave load variant out"),
        ({"revision": "main"}, "load revision is for hub models"),
        ({"config": "tiny"}, "config is for a model that is a single file"),
    ],
)
def test_wrong_options_are_one_line_before_a_weight_is_read(
    options: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accel.pipelines.loading.weights.find_spec", lambda name: True)
    monkeypatch.setattr(building, "built", None)  # calling it would be a TypeError
    with pytest.raises(ValueError) as error:
        load("tiny", options=LoadOptions(**options), device="cpu")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_may_be_quantized_is_said_in_one_way() -> None:
    assert LoadOptions.parse({"allow": "int8"}).allow == ("int8",)
    options = LoadOptions.parse({"allow": ["fp8", "int8", "fp8"]})
    assert options.allow == ("fp8", "int8")
    assert options.deciding() == {"allow": ("fp8", "int8")} and options.key("m") != "m"
    assert LoadOptions().deciding() == {}
    for wrong, said in (
        ({"allow": "int4"}, "load allow must be one of"),
        ({"allow": {"int8": True}}, "must be a kind or a list of kinds"),
        ({"allow": "int8", "weights": "fp8"}, "load allow and load weights exclude each other"),
    ):
        with pytest.raises(ValueError, match=said):
            LoadOptions.parse(wrong)


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_names_how_to_install_it(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accel.pipelines.loading.weights.find_spec", lambda name: None)
    said = problem("tiny", LoadOptions(weights=kind))
    assert f"the package {package}, which is missing: {how_to_install(package)}" in said


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = checkpoints.copied(tmp_path)
    (folder / "pipeline.py").write_text("raise SystemExit('ran')")
    checkpoints.index(folder, _class_name=["pipeline", "Mine"])
    said = problem(str(folder), LoadOptions())
    assert "brings pipeline code of its own" in said
    with pytest.raises(ValueError, match="brings pipeline code of its own"):
        load(str(folder), options=LoadOptions(pipeline="WanPipeline"))
    checkpoints.index(folder, _class_name="WanPipeline", vae=["pipeline", "Mine"])
    said = problem(str(folder), LoadOptions())
    assert "vae of" in said and "is code that comes with the model (pipeline.Mine)" in said
    options = LoadOptions(components={"vae": str(TINY / "vae")})
    with pytest.raises(ValueError, match="is code that comes with the model"):
        load(str(folder), options=options)
    checkpoints.index(folder, vae=["diffusers", "AutoencoderKLWanX"])
    assert "does not have (did you mean 'AutoencoderKLWan'?)" in problem(str(folder), LoadOptions())


def test_a_class_whose_package_is_missing_is_said_with_the_way_out(tmp_path, monkeypatch) -> None:
    class DummyObject(type):
        """What diffusers and transformers put in the place of such a class."""

    dummy = DummyObject("Dummy", (), {"_backends": ["torch", "no_such_package"]})
    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", dummy)
    folder = checkpoints.copied(tmp_path)
    needs = "needs the package no_such_package, which is missing: pip install no_such_package"
    options = LoadOptions(scheduler={"class": "DPMSolverSDEScheduler"})
    assert f"DPMSolverSDEScheduler {needs}" in problem(str(folder), options)
    checkpoints.index(folder, scheduler=["diffusers", "DPMSolverSDEScheduler"])
    said = problem(str(folder), LoadOptions())
    assert f"scheduler of {folder} is a DPMSolverSDEScheduler, which {needs}" in said


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_a_processor_with_a_part_that_needs_torchvision_says_so(tmp_path) -> None:
    folder = checkpoints.copied(tmp_path)
    checkpoints.index(folder, processor=["transformers", "Qwen2VLProcessor"])
    said = problem(str(folder), LoadOptions())
    assert f"processor of {folder} is a Qwen2VLProcessor, which needs the package torch" in said
    assert said.endswith("torchvision, which is missing: pip install torchvision")


def test_weights_in_a_format_that_can_run_code_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.copied(tmp_path)
    checkpoints.pickled(folder / "transformer")
    said = problem(str(folder), LoadOptions())
    assert "transformer of" in said and "alone, a format that can run code" in said
    assert "save_pretrained" in said
    options = LoadOptions(components={"transformer": DENOISER})
    assert problem(str(folder), options) == ""
    (folder / "transformer" / checkpoints.WEIGHTS.replace("safetensors", "bin")).unlink()
    assert "has no weights" in problem(str(folder), LoadOptions())


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    half = checkpoints.half(tmp_path / "half.safetensors")
    options = LoadOptions(components={"transformer": str(half)})
    assert "is not of this WanTransformer3DModel: it lacks" in problem("tiny", options)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    options = LoadOptions(components={"transformer": str(broken)})
    assert "is no .safetensors file or is broken" in problem("tiny", options)
    assert "holds weights alone" in problem_of_file(half)
    text = tmp_path / "model.txt"
    text.write_text("no model")
    with pytest.raises(FileNotFoundError, match=r"must end in \.safetensors or \.gguf"):
        resolve(str(text), LoadOptions())


def problem_of_file(file: Path) -> str:
    with pytest.raises(ValueError) as error:
        resolve(str(file), LoadOptions())
    return str(error.value)


@pytest.mark.proof
def test_a_gguf_file_is_read(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = checkpoints.write_gguf(tmp_path / "tiny.gguf", checkpoints.tiny_tensors())
    exact = frames(load("tiny"))
    for model, options in (
        ("tiny", LoadOptions(weights={"transformer": f"gguf {file}"})),
        ("tiny", LoadOptions(components={"transformer": str(file)})),
        (str(file), LoadOptions(config="tiny")),
    ):
        pipe = load(model, options=options)
        kinds = {type(p).__name__ for p in pipe.transformer.parameters()}
        assert "GGUFParameter" in kinds
        error = ((frames(pipe) - exact) ** 2).mean() ** 0.5
        assert 0 < error < 0.02
    other = checkpoints.write_gguf(tmp_path / "vae.gguf", checkpoints.tiny_tensors("vae"))
    options = LoadOptions(weights={"transformer": f"gguf {other}"})
    assert "is not of this WanTransformer3DModel" in problem("tiny", options)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("kind", "bound"), [("int8", 0.02), pytest.param("fp8", 0.08, marks=pytest.mark.proof)]
)
def test_quantized_weights_render_beside_every_technique(kind: str, bound: float) -> None:
    pytest.importorskip("torchao")
    import accel

    exact = frames(load("tiny"), 12)
    pipe = load("tiny", options=LoadOptions(weights=kind))
    weight = pipe.transformer.blocks[0].attn1.to_q.weight
    assert type(weight.data) is not torch.Tensor
    assert type(pipe.text_encoder.shared.weight.data) is torch.Tensor  # a small encoder
    plain = frames(pipe, 12)
    assert 0 < ((plain - exact) ** 2).mean() ** 0.5 < bound
    for preset in ("lossless", "fast"):
        with accel.patched(pipe, preset=preset) as handle:
            error = ((frames(pipe, 12) - plain) ** 2).mean() ** 0.5
            assert error < (1e-3 if preset == "lossless" else 0.2), str(handle.report())
    assert (frames(pipe, 12) == plain).all()


CARD = torch.device("cuda")


class Recorder:
    """Stands for a pipeline on a card; writes down what it is told."""

    def __init__(self) -> None:
        self.told: list = []

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))


@pytest.mark.parametrize(
    ("way", "name", "given"),
    [
        ("none", "to", (CARD,)),
        ("auto", "to", (CARD,)),
        ("model", "enable_model_cpu_offload", {"device": CARD}),
        ("sequential", "enable_sequential_cpu_offload", {"device": CARD}),
    ],
)
def test_each_offload_is_diffusers_own(way: str, name: str, given) -> None:
    pipe = Recorder()
    apply_offload(pipe, way, CARD)
    ((called, args, kwargs),) = pipe.told
    assert called == name and (args == given or given.items() <= kwargs.items())


def test_groups_are_blocks_of_denoisers_and_layers_of_encoders(monkeypatch) -> None:
    parts = {name: torch.nn.Linear(1, 1) for name in ("transformer", "text_encoder_2", "vae")}
    moved, grouped = [], {}
    monkeypatch.setattr(parts["vae"], "to", moved.append)
    names = {id(part): name for name, part in parts.items()}
    own = inspect.signature(diffusers.hooks.apply_group_offloading)

    def group(*args, **kwargs):
        given = own.bind(*args, **kwargs).arguments
        grouped[names[id(given["module"])]] = (given["offload_type"], given["onload_device"])

    monkeypatch.setattr("diffusers.hooks.group_offloading.apply_group_offloading", group)
    apply_offload(SimpleNamespace(components={**parts, "scheduler": None}), "group", CARD)
    blocks, layers = ("block_level", CARD), ("leaf_level", CARD)
    assert grouped == {"transformer": blocks, "text_encoder_2": layers} and moved == [CARD]


def test_offload_takes_the_arguments_that_diffusers_has() -> None:
    """The card that is missing here would tell."""
    for way in ("model", "sequential"):
        pipe = Recorder()
        apply_offload(pipe, way, CARD)
        ((name, args, kwargs),) = pipe.told
        method = getattr(diffusers.DiffusionPipeline, name)
        inspect.signature(method).bind(pipe, *args, **kwargs)


@pytest.mark.proof
def test_compiled_blocks_render_beside_every_technique() -> None:
    import accel

    exact = frames(load("tiny"))
    pipe = load("tiny", options=LoadOptions(compile="blocks"))
    assert ((frames(pipe) - exact) ** 2).mean() ** 0.5 < 1e-4
    for preset in ("lossless", "fast"):
        with accel.patched(pipe, preset=preset):
            assert ((frames(pipe) - exact) ** 2).mean() ** 0.5 < 0.03
