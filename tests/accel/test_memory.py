"""Memory: the tracker against hand counts, simulation against measurement, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

import accel
from accel import families
from accel.cli import main
from accel.cli.memory import table
from accel.config import RehashConfig
from accel.core.units import parse_bytes
from accel.families.components import Part, size_of
from accel.memory.encoders import peak
from accel.memory.fit import Kept
from accel.memory.meta_models import Video, find
from accel.memory.simulate import simulate
from accel.memory.tracker import Tracker, activation_peak
from accel.pipelines.load import load, tiny_folder

KIB = 1024


def test_the_tracker_counts_storages_once_until_they_are_freed():
    x = torch.zeros(256)  # 1 KiB
    with Tracker() as tracker:
        tracker.hold(x)
        y = x + 1
        view = y[:10]
        assert tracker.live == 2 * KIB
        z = y * 2
        del y
        assert tracker.live == 3 * KIB  # the view keeps it
        del view, z
        assert (tracker.live, tracker.peak, tracker.at) == (KIB, 3 * KIB, "mul.Tensor")


def test_weights_are_not_counted():
    weight = torch.zeros(256, 256)
    peak, _ = activation_peak(lambda: weight.t() @ weight, (), [weight])
    assert peak == 256 * KIB


def test_what_goes_to_the_cpu_is_not_counted_on_meta():
    x = torch.zeros(256, device="meta")
    with Tracker() as tracker:
        tracker.hold(x)
        y = (x + 1).to("cpu")  # KIB that is freed at once
        video = torch.cat([y, y.clamp(0, 1)])
        assert (tracker.live, tracker.peak) == (KIB, 2 * KIB) and video.shape == (512,)
        z = torch.cat([video, x])  # something of the device in it
        assert tracker.live == 4 * KIB and z.is_meta
    with Tracker(torch.device("meta")) as tracker:
        torch.zeros(256)
        assert tracker.peak == 0


def test_sizes_that_are_derived_once_are_those_that_torch_derives():
    def results(device):
        x = torch.randn(2, 3, 8, 6, device=device).to(memory_format=torch.channels_last)
        outs = [
            x * 2, x + x[:1], x.transpose(1, 3) * x.transpose(1, 3), torch.cat([x, x], 1),
            x.sum(1, keepdim=True), x.half(), x.amax((2, 3)), x.contiguous(), x.view(2, 3, 48),
            *x.topk(2), *x.split(2, 1), x.add_(1), torch.arange(4, device=device) * 2,
        ]  # fmt: skip
        return [(y.shape, y.stride(), y.dtype, y.storage_offset()) for y in outs], outs

    with Tracker() as tracker:
        first, kept = results("meta")
        live = tracker.live
        second, again = results("meta")
        assert tracker.live == 2 * live
        del kept, again
    assert first == second == results("cpu")[0]


@pytest.mark.parametrize("slices", [1, 4])
def test_simulated_and_measured_peaks_agree_on_a_wide_block(slices):
    def peak(device):
        with torch.device(device):
            block = WanTransformerBlock(384, 2240, 3, "rms_norm_across_heads", True).eval()
            wrapped = Wrapped(block)
            inputs = {
                "hidden_states": torch.randn(1, 512, 384),
                "encoder_hidden_states": torch.randn(1, 64, 384),
                "temb": torch.randn(1, 6, 384),
                "rotary_emb": (torch.randn(1, 512, 1, 128), torch.randn(1, 512, 1, 128)),
            }
        plan = accel.Plan("t", None, accel.SlicingConfig(slices, 1))
        with accel.patched(wrapped, plan=plan), torch.no_grad():
            wrapped(**inputs)
            weights = list(wrapped.parameters())
            return activation_peak(lambda: wrapped(**inputs), inputs, weights)[0]

    assert peak("meta") == pytest.approx(peak("cpu"), rel=0.05)


class Wrapped(torch.nn.Module):
    """A denoiser of one block that keeps nothing of its input."""

    def __init__(self, block):
        super().__init__()
        self.blocks = torch.nn.ModuleList([block])

    def forward(self, hidden_states, **kwargs):
        return self.blocks[0](hidden_states * 1.0, **kwargs)


@pytest.mark.slow
def test_simulated_and_measured_peaks_agree_on_the_embedded_model(capsys):
    denoiser = load("tiny").transformer
    inputs = {
        "hidden_states": torch.randn(1, denoiser.config.in_channels, 5, 32, 32),  # 1280 tokens
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 512, denoiser.config.text_dim),
    }
    weights = [*denoiser.parameters(), *denoiser.buffers()]
    with torch.no_grad():
        measured, _ = activation_peak(lambda: denoiser(**inputs), inputs, weights)
        twin = Part("WanTransformer3DModel", dict(denoiser.config), torch.float32).build()
        meta = {k: v.to("meta") for k, v in inputs.items()}
        known = [*twin.parameters(), *twin.buffers()]
        simulated, _ = activation_peak(lambda: twin(**meta), meta, known)
    assert simulated == pytest.approx(measured, rel=0.05)


def small(name):
    part = families.models()[name].denoiser
    layers = dict.fromkeys(part.layers(), 2) or {"layers_per_block": 1}
    part = replace(part, config={**part.config, **layers})
    second = families.models()[name].second and part
    return replace(families.models()[name], denoiser=part, second=second)


# What a model takes in 8 slices where much of it is not sliced: a UNet's convolutions, and what
# goes before and after the two blocks that are looked at here.
LESS = {"sdxl": 0.8, "flux.2-dev": 0.7, "hunyuanvideo-1.5": 0.7}
NOT_SLICED = {"ltx-2"}  # its blocks read a tensor that they changed through another view
# diffusers does not know what their blocks take and return.
NO_FEATURES = {"flux.2-dev", "hunyuanvideo-1.5", "ltx-2", "z-image", "z-image-turbo"}


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("name", families.models())
def test_every_built_in_model_takes_less_when_sliced(name):
    picture = name.startswith(("flux", "qwen", "z-image", "sd"))
    size = Video(1024, 1024, 1) if picture else Video(512, 512, 9)
    size = Video(1280, 704, 33) if name == "ltx-2" else size  # which makes one token of 32 x 32
    peaks = simulate(small(name), size, (1, 8), decode=False)
    assert (peaks.denoise[8] == peaks.denoise[1]) == (name in NOT_SLICED)
    if name not in NOT_SLICED:
        assert peaks.denoise[8] < LESS.get(name, 0.6) * peaks.denoise[1], peaks.denoise
    assert peaks.denoiser_weights > 10**8
    assert 0 < peaks.rehash["output"] < peaks.denoise[8]
    assert ("features" in peaks.rehash) == (name not in NO_FEATURES)
    assert peaks.rehash["output"] < peaks.rehash.get("features", 1 << 62)


@pytest.mark.parametrize(
    ("name", "asked", "kept"),
    [
        ("wan-1.3b", {}, 2 * 20),
        ("wan-1.3b", {"level": "features"}, 2 * 70),
        ("wan-1.3b", {"store": "int8"}, 2 * 10),  # of bf16
        ("wan-1.3b", {"store": "cpu"}, 0),
        ("cogvideox-5b", {}, 20),  # both branches of guidance in one call
    ],
)
def test_what_step_rehash_keeps_is_counted_as_it_is_stored(name, asked, kept):
    levels = {"output": 20, "output, measured": 30, "features": 70}
    model = families.models()[name]
    need = Kept(levels, 2 // model.batch, model.denoiser.dtype.itemsize)
    assert need.bytes(RehashConfig(**asked)) == kept


def test_text_encoding_is_simulated_from_a_stored_configuration():
    pipe = load("tiny")
    (encoder,) = find(str(tiny_folder())).encoders.values()
    encoder = replace(encoder, dtype=torch.float32)
    assert encoder.weights() == size_of(pipe.text_encoder)
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    weights = [*pipe.text_encoder.parameters(), *pipe.text_encoder.buffers()]
    measured, _ = activation_peak(lambda: pipe.text_encoder(input_ids=tokens), tokens, weights)
    assert peak(encoder) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("name", "component", "gigabytes"),
    [
        ("wan-14b", "text_encoder", 11.36),
        ("hunyuanvideo", "text_encoder", 15.01),
        ("cogvideox-5b", "text_encoder", 9.52),
        ("animatediff", "text_encoder", 0.246),
        ("svd", "image_encoder", 1.264),
        ("flux", "text_encoder_2", 9.52),
    ],
)
def test_encoders_of_built_in_models_have_their_known_sizes(name, component, gigabytes):
    encoder = families.models()[name].encoders[component]
    assert encoder.weights() / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert 0 < peak(encoder) < 0.2 * encoder.weights()


def test_hidden_states_are_counted_for_all_layers():
    encoder = families.models()["hunyuanvideo"].encoders["text_encoder"]
    few = replace(encoder, config={**encoder.config, "num_hidden_layers": 8})
    state = 351 * 4096 * 2  # bytes of a hidden state; keys and values beside it
    assert peak(encoder) - peak(few) >= 24 * state


@pytest.mark.slow
def test_the_command_prints_json_and_a_table(capsys, monkeypatch):
    found = []

    def once(*arguments):
        found[:] = found or [simulate(*arguments)]
        return found[0]

    monkeypatch.setattr("accel.memory.simulate.simulate", once)
    command = ["memory", "tiny", "--size", "64x64", "--frames", "17", "--budget", "1GiB"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["denoise"]) == {"1", "2", "4", "8", "16"} and data["slices"] == 1
    (card,) = data["placement"]["cards"].values()
    assert card["chosen"]["way"] == "all resident" and len(card["ways"]) == 6
    assert data["encode"]["text_encoder"] > 0 and data["encoder_weights"]["text_encoder"] > 10**5
    assert data["decode"]["16 strips, frames to the CPU"] < data["decode"]["16 strips"]
    assert 10**6 < data["packed"] < data["denoiser_weights"] / 2  # of bf16
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "step rehash keeps" in out and "encode, text_encoder" in out
    assert "8-bit linear layers add at most 0.00" in out
    assert "denoise, 8 slices" in out and "decode, tiled (approximate)" in out
    assert "placement for device memory 0.95 GiB" in out and "nothing; taken" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wan-14", "--size", "64x64"], "did you mean 'wan-14b'"),
        (["wan-14b", "--size", "64"], "--size must look like"),
        (
            ["wan-14b", "--size", "65x64"],
            "width must be a multiple of 8 for this model, got 65",
        ),
        (["wan-14b", "--size", "64x64", "--frames", "0"], "frames must be at least 1"),
        (["wan-14b", "--size", "64x64", "--budget", "lots"], "memory must look like"),
        (["wan-14b", "--size", "64x64", "--host", "lots"], "memory must look like"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message, capsys):
    assert main(["memory", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sizes_in_bytes():
    read = [parse_bytes(x) for x in ("8GiB", "1.5 GB", "12B", 7, str(2**33))]
    assert read == [2**33, 1500000000, 12, 7, 2**33]


@pytest.mark.parametrize("text", ["40", " 40 ", "8.5", "0", "1048575"])
def test_a_size_without_its_unit_is_not_bytes(text):
    with pytest.raises(ValueError, match=rf"without a unit; did you mean '{text.strip()}GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "text",
    ["infGiB", "1e999GiB", "-5GiB", "8G", "GiB", "8 bananas", "²GiB", "8,5GiB", "", -1, True],
)
def test_what_is_no_size_is_named_with_the_way_out(text):
    with pytest.raises(ValueError, match="memory must look like '8GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "size", ["832", "832*480", "0x480", "832x", "832x480x81", "²x²", "9999999x1"]
)
def test_a_picture_size_that_cannot_be_is_named(size, capsys):
    assert main(["memory", "wan-14b", "--size", size]) == 2
    error = capsys.readouterr().err
    assert "--size must look like 832x480" in error and size in error


@pytest.mark.slow
def test_an_encoder_of_another_kind_is_named(tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen2Model"]
    (folder / "model_index.json").write_text(json.dumps(index))
    family = find(str(folder))
    assert family.unknown == ("text_encoder",) and not family.encoders
    peaks = simulate(family, Video(64, 64, 1), (1,), decode=False)
    assert "not counted: text_encoder" in table(peaks)


def test_a_model_with_an_unknown_denoiser_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ValueError, match="it needs a denoiser"):
        find(str(tmp_path))
