"""A model family is one record: what a test registers here is all that a file would hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

import accel
from accel import families
from accel.families.components import Part, meta
from accel.families.family import Decoder, Denoiser, Family, Geometry, Model, Strip, Vae
from accel.memory.meta_models import Video, find, latent_shape
from accel.memory.simulate import simulate
from accel.pipelines.motion.latents import latent_geometry


class NovelBlock(nn.Module):
    """Tokens [B, T, C] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.to_qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.attn = Attention(width, heads=2, dim_head=8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.attn(self.norm(hidden_states))


class NovelTransformer(ModelMixin, ConfigMixin):
    """A denoiser that diffusers does not have."""

    @register_to_config
    def __init__(self, channels: int = 4, width: int = 16, num_layers: int = 2) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        self.blocks = nn.ModuleList(NovelBlock(width) for _ in range(num_layers))

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        x = self.enter(hidden_states.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return (self.leave(x).transpose(1, 2).view_as(hidden_states),)


class NovelResnet(nn.Module):
    """A convolution of width 3: it sees one row above and below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class NovelDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet, self.norm_out, self.conv_act = NovelResnet(), nn.Identity(), nn.SiLU()
        self.conv_out = nn.Conv3d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.conv_act(self.norm_out(self.resnet(z))))


class NovelVae(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.decoder = NovelDecoder()

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        return (self.decoder(z),)


class NovelPipeline:
    """A pipeline around them."""

    def __init__(self) -> None:
        self.transformer, self.vae = NovelTransformer().eval(), NovelVae().eval()


def _inputs(denoiser: Any, latent: tuple[int, ...]) -> dict[str, Any]:
    return {"hidden_states": meta(*latent), "timestep": meta(latent[0])}


NOVEL = Family(
    "novel",
    denoisers={"NovelTransformer": Denoiser(_inputs)},
    vaes={"NovelVae": Vae(lambda config: (2, 4))},
    decoders={"NovelDecoder": Decoder(("norm_out", "conv_act"))},
    strips={"NovelResnet": Strip(1)},
    latents={"Novel": lambda pipe: Geometry(pipe.vae.config.latent_channels, 2, 4)},
    return_frames=("NovelPipeline",),
    models={
        "novel-1b": Model(
            Part("NovelTransformer", {"num_layers": 6}), Part("NovelVae", {"latent_channels": 4})
        ),
    },
)


@pytest.fixture
def novel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for cls in (NovelTransformer, NovelVae):
        monkeypatch.setattr(diffusers, cls.__name__, cls, raising=False)
    unregister = families.register(NOVEL)
    yield
    unregister()


def test_every_family_of_the_folder_is_found() -> None:
    names = [f.name for f in families.families()]
    assert names == sorted(names) and {"wan", "ltx", "mochi", "flux", "svd"} <= set(names)
    assert "novel" not in names and "NovelTransformer" not in families.denoisers()


def test_a_new_family_has_its_memory_predicted(novel: None) -> None:
    model = find("novel-1b")
    assert latent_shape(model, Video(64, 32, 9)) == (1, 4, 3, 16, 32)
    peaks = simulate(model, Video(64, 64, 9))
    assert 0 < peaks.denoise[8] <= peaks.denoise[1] and peaks.decode["16 strips"] > 0
    assert model.denoiser.weights() > Part("NovelTransformer", {}).weights()
    with pytest.raises(ValueError, match=r"multiple of 2 .* got 63"):
        latent_shape(model, Video(63, 32, 9))


def test_a_new_family_is_patched_and_decodes_in_strips(novel: None) -> None:
    pipe = NovelPipeline()
    x, z = torch.randn(1, 4, 2, 16, 16), torch.randn(1, 4, 3, 16, 12)
    with torch.no_grad():
        plain, decoded = pipe.transformer(x, torch.ones(1))[0], pipe.vae.decode(z)[0]
        plan = accel.Plan("t", None, accel.SlicingConfig(4, min_tokens=1))
        with accel.patched(pipe, plan=plan) as handle:
            torch.testing.assert_close(pipe.transformer(x, torch.ones(1))[0], plain)
            torch.testing.assert_close(pipe.vae.decode(z)[0], decoded)
            blocks = {b.name: b for b in handle.report().blocks}
    assert blocks["vae.decoder"].sliced and blocks["blocks.0"].sliced == {4: 1}


def test_a_new_family_can_be_moved_by_noise(novel: None) -> None:
    assert latent_geometry(NovelPipeline()) == Geometry(4, 2, 4)
    assert families.only_returns_frames(NovelPipeline())


def test_without_its_record_it_is_named_as_unknown() -> None:
    with pytest.raises(ValueError, match=r"no model 'novel-1b'.*not one of"):
        find("novel-1b")
    with pytest.raises(ValueError, match="NovelPipeline: there is a rule for"):
        latent_geometry(NovelPipeline())
