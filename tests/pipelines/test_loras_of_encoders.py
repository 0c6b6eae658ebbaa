"""LoRAs of a denoiser and a text encoder, in the formats that people have."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from helpers.loras import layers
from helpers.pipelines import images
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from accel.pipelines.job import Job
from accel.pipelines.loading import loras
from accel.pipelines.loading.encodings import lora_key

ENDS = {"unet": ("attn1.to_q", "attn2.to_v"), "text_encoder": ("q_proj", "out_proj")}
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


@pytest.fixture
def pipe():
    found = images()
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval()
    return diffusers.StableDiffusionPipeline(
        vae=found.vae, unet=found.unet.eval(), scheduler=found.scheduler, text_encoder=encoder,
        tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def write(path: Path, pipe, seed: int, parts: tuple[str, ...], kohya: bool, alpha: float) -> Path:
    g, tensors = torch.Generator().manual_seed(seed), {}
    for part in parts:
        for name, layer in layers(getattr(pipe, part), *ENDS[part]).items():
            down = torch.randn(2, layer.in_features, generator=g)
            up = torch.randn(layer.out_features, 2, generator=g)
            if kohya:
                text = "text_model." if part == "text_encoder" and "text_model" not in name else ""
                key = KOHYA[part] + (text + name).replace(".", "_")
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                            f"{key}.alpha": torch.tensor(alpha)}  # fmt: skip
            else:
                tensors |= {f"{part}.{name}.lora_A.weight": down,
                            f"{part}.{name}.lora_B.weight": up}  # fmt: skip
    save_file(tensors, path)
    return path


@torch.no_grad()
def outputs(pipe) -> tuple[torch.Tensor, torch.Tensor]:
    text = pipe.text_encoder(torch.arange(8)[None]).last_hidden_state
    g = torch.Generator().manual_seed(0)
    sample, condition = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 8, 8, generator=g)
    return text, pipe.unet(sample, 10, condition).sample


@pytest.mark.parametrize("kohya", [False, True])
def test_each_part_is_switched_and_left_as_it_was(pipe, tmp_path, kohya):
    plain = outputs(pipe)
    both = ("unet", "text_encoder")
    one = write(tmp_path / "one.safetensors", pipe, 1, both, kohya, 2.0)
    two = write(tmp_path / "two.safetensors", pipe, 2, ("unet",), kohya, 2.0)
    seen = []
    for files in ([one], [two], [one, two], [one], []):
        with loras.switched(pipe, [{"file": str(file)} for file in files]):
            seen.append(outputs(pipe))
    assert [torch.equal(text, plain[0]) for text, _ in seen] == [False, True, False, False, True]
    assert [torch.equal(x, plain[1]) for _, x in seen] == [False] * 4 + [True]
    assert torch.equal(seen[0][1], seen[3][1]) and torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[0][1], seen[2][1])


def test_alpha_and_weight_scale_it(pipe, tmp_path):
    """alpha / rank times weight: 4 / 2 at weight 1 is 2 / 2 at weight 2."""
    results = []
    four, two = (
        write(tmp_path / f"{alpha}.safetensors", pipe, 1, ("unet",), True, alpha)
        for alpha in (4.0, 2.0)
    )
    for file, weight in ((four, 1.0), (two, 2.0), (two, 1.0)):
        with loras.switched(pipe, [{"file": str(file), "weight": weight}]):
            results.append(outputs(pipe)[1])
    torch.testing.assert_close(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("kohya", [False, True])
def test_only_those_of_a_text_encoder_count_for_prompts(pipe, tmp_path, kohya):
    for parts, counts in ((("unet",), False), (("unet", "text_encoder"), True)):
        file = write(tmp_path / f"{len(parts)}.safetensors", pipe, 1, parts, kohya, 2.0)
        assert bool(lora_key(Job("x", loras=[{"file": str(file)}]))) == counts
