"""Activations of transformer blocks, as they come and sliced, and what slicing costs in time.

    python tests/bench/bench_memory.py [--denoisers | --unets | --decoders | --time]
        [--tokens 8190] [--json FILE]

The table is simulated on the meta device (bf16, fused attention and RMS norm, in GiB).
``--denoisers`` simulates whole transformers. ``--unets`` simulates whole UNet pipelines, beside
diffusers' own tools: forward chunking of the UNet, chunks of frames for the VAE. ``--decoders``
simulates VAEs as diffusers sets them up, in as many strips of rows. ``--time`` measures a
Wan-1.3B-wide block in fp32 on this CPU: seconds with and without 8 slices in turn, and its measured
peak against the simulated one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from rows import SIMULATED, append, flat
from torch import nn

from accel import families
from accel.config import SlicingConfig
from accel.families.components import Part, meta
from accel.memory.meta_models import Video
from accel.memory.simulate import simulate
from accel.memory.tracker import activation_peak
from accel.slicing.program.derive import derive
from accel.slicing.program.run import run
from accel.slicing.vae.apply import apply_strips

SLICES = (2, 4, 8, 10, 16)
F32 = torch.float32
Case = tuple[nn.Module, dict[str, Any]]


def wan(width: int, ffn: int, tokens: int) -> Case:
    """A Wan 2.1 block; 128 channels a head, 512 text tokens."""
    block = WanTransformerBlock(width, ffn, width // 128, "rms_norm_across_heads", True)
    table = (meta(1, tokens, 1, 128, dtype=F32), meta(1, tokens, 1, 128, dtype=F32))
    return block, {
        "hidden_states": meta(1, tokens, width),
        "encoder_hidden_states": meta(1, 512, width),
        "temb": meta(1, 6, width, dtype=F32),
        "rotary_emb": table,
    }


def hunyuan(cls: type[nn.Module], rotary: str, tokens: int) -> Case:
    """A HunyuanVideo block with 256 text tokens."""
    return cls(24, 128, 4.0, qk_norm="rms_norm"), {
        "hidden_states": meta(1, tokens, 3072),
        "encoder_hidden_states": meta(1, 256, 3072),
        "temb": meta(1, 3072),
        "attention_mask": meta(1, 1, 1, tokens + 256, dtype=torch.bool),
        rotary: (meta(tokens, 128, dtype=F32), meta(tokens, 128, dtype=F32)),
    }


def cogvideox(tokens: int) -> Case:
    """A CogVideoX-5B block, both guidance branches in one batch."""
    block = CogVideoXBlock(
        dim=3072, num_attention_heads=48, attention_head_dim=64, time_embed_dim=512
    )
    return block, {
        "hidden_states": meta(2, tokens, 3072),
        "encoder_hidden_states": meta(2, 226, 3072),
        "temb": meta(2, 512),
        "image_rotary_emb": (meta(tokens, 64, dtype=F32), meta(tokens, 64, dtype=F32)),
    }


def mochi(tokens: int) -> Case:
    """A Mochi block with 256 text tokens, both guidance branches in one batch."""
    table = (meta(tokens, 24, 64, dtype=F32), meta(tokens, 24, 64, dtype=F32))
    return MochiTransformerBlock(3072, 24, 128, 1536), {
        "hidden_states": meta(2, tokens, 3072),
        "encoder_hidden_states": meta(2, 256, 1536),
        "temb": meta(2, 3072),
        "encoder_attention_mask": meta(2, 256, dtype=torch.bool),
        "image_rotary_emb": table,
    }


CASES: dict[str, Callable[[], Case]] = {
    "Wan-14B 720p x 81": lambda: wan(5120, 13824, 75600),
    "Wan-1.3B 480p x 81": lambda: wan(1536, 8960, 32760),
    "HunyuanVideo single 720p x 129": lambda: hunyuan(
        HunyuanVideoSingleTransformerBlock, "image_rotary_emb", 118800
    ),
    "HunyuanVideo double 720p x 129": lambda: hunyuan(
        HunyuanVideoTransformerBlock, "freqs_cis", 118800
    ),
    "CogVideoX-5B 480p x 49": lambda: cogvideox(17550),
    "Mochi 480p x 163": lambda: mochi(44520),
}


def peaks(block: nn.Module, arguments: dict[str, Any], slices: tuple[int, ...]) -> dict[int, int]:
    """Bytes alive at most in the block by number of slices, 1 being the block as it comes."""
    weights = [*block.parameters(), *block.buffers()]
    with torch.no_grad():
        program = derive(block, arguments)
    places = frozenset(program.overwrites.values())
    found = {1: activation_peak(lambda: block(**arguments), arguments, weights)[0]}
    for n in slices:
        call = lambda n=n: run(program, block, arguments, n, places)  # noqa: E731
        found[n] = activation_peak(call, arguments, weights)[0]
    return found


def time_cost(tokens: int, repeats: int) -> dict[str, Any]:
    """Wan-1.3B-wide block, fp32 on the CPU: seconds, and measured against simulated peaks."""
    block, shapes = wan(1536, 8960, tokens)
    block = block.eval()

    def real(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape)

    arguments = {k: tuple(map(real, v)) if isinstance(v, tuple) else real(v)
                 for k, v in shapes.items()}  # fmt: skip
    program = derive(block, arguments)
    seconds: dict[str, list[float]] = {"stock": [], "8 slices": []}
    with torch.no_grad():
        plain = block(**arguments)
        error = float((run(program, block, arguments, 8) - plain).norm() / plain.norm())
        assert error < 2e-7, error
        for _ in range(repeats):
            for name in seconds:
                start = time.perf_counter()
                if name == "stock":
                    block(**arguments)
                else:
                    run(program, block, arguments, 8, frozenset({"hidden_states.0"}))
                seconds[name].append(time.perf_counter() - start)
    pairs = [b / a for a, b in zip(seconds["stock"], seconds["8 slices"], strict=True)]
    sizes = {k: tuple(t.to("meta") for t in v) if isinstance(v, tuple) else v.to("meta")
             for k, v in arguments.items()}  # fmt: skip
    return {
        "seconds": {k: statistics.median(v) for k, v in seconds.items()},
        "ratio": statistics.median(pairs),
        "relative L2": error,
        "measured": peaks(block, arguments, (8,)),
        "simulated": peaks(block.to("meta"), sizes, (8,)),
    }


def forward_chunking(denoiser: Any) -> None:
    """diffusers' chunked feed-forward layers, each in at most 16 chunks of samples."""

    def before(block: Any, args: Any, kwargs: Any) -> None:
        x = kwargs.get("hidden_states", args[0] if args else None)
        parts = max(k for k in range(1, 17) if len(x) % k == 0)
        block.set_chunk_feed_forward(len(x) // parts, 0)

    for part in denoiser.modules():
        if type(part).__name__ == "BasicTransformerBlock":
            part.register_forward_pre_hook(before, with_kwargs=True)
        elif type(part).__name__ == "TemporalBasicTransformerBlock":
            part.set_chunk_feed_forward(1)  # frames


def unets(videos: dict[str, Video]) -> dict[str, Any]:
    """Activations of denoising and decoding, in bytes."""
    results = {}
    for name, video in videos.items():
        family = families.models()[name]
        found = simulate(family, video, (1, 8, 16))
        chunked = simulate(family, video, (1,), decode=False, prepare=forward_chunking)
        ways = {
            "as it comes": found.denoise[1],
            "forward chunking": chunked.denoise[1],
            "8 slices": found.denoise[8],
            "16 slices": found.denoise[16],
            **{f"decode, {way}": size for way, size in found.decode.items()},
        }
        results[name] = ways
        print(
            name, "  ".join(f"{way} {b / 2**30:.2f}" for way, b in ways.items()), "GiB", flush=True
        )
    return results


def denoisers(videos: dict[str, Video]) -> dict[str, Any]:
    """Activations of denoising in bytes, as it comes and in slices."""
    results = {}
    for name, video in videos.items():
        found = simulate(families.models()[name], video, (1, 8, 16), decode=False).denoise
        results[name] = {
            "as it comes" if n == 1 else f"{n} slices": size for n, size in found.items()
        }
        print(name, "  ".join(f"n={n} {b / 2**30:.2f}" for n, b in found.items()), "GiB")
    return results


DECODERS = {
    "Wan 2.1 720p x 81": (families.models()["wan-14b"].vae, (1, 16, 21, 90, 160)),
    "HunyuanVideo-1.5 720p x 33": (Part("AutoencoderKLHunyuanVideo15", {}), (1, 32, 9, 45, 80)),
    "LTX 704p x 97": (Part("AutoencoderKLLTXVideo", {}), (1, 128, 13, 22, 40)),
    "Stable Diffusion 1024 x 576": (families.models()["animatediff"].vae, (1, 4, 72, 128)),
    "SVD 1024 x 576 x 14": (families.models()["svd"].vae, (14, 4, 72, 128)),
    "HunyuanVideo 480p x 33": (families.models()["hunyuanvideo"].vae, (1, 16, 9, 60, 104)),
    "HunyuanVideo 720p x 33": (families.models()["hunyuanvideo"].vae, (1, 16, 9, 90, 160)),
}


@torch.no_grad()
def decoders() -> dict[str, Any]:
    """Activations of decoding in bytes by number of strips, 1 being the VAE as it comes."""
    results: dict[str, Any] = {}
    for name, (part, shape) in DECODERS.items():
        found = results[name] = {}
        for n in (1, 8, 16):
            vae = part.build()
            if n > 1:
                apply_strips(vae, SlicingConfig(n), ExitStack())
            frames = {"num_frames": len(z := meta(*shape, dtype=part.dtype))}
            more = frames if part.cls == "AutoencoderKLTemporalDecoder" else {}
            decode = partial(vae.decode, z, return_dict=False, **more)
            found[n] = activation_peak(decode, [z], [*vae.parameters(), *vae.buffers()])[0]
        print(
            name, "  ".join(f"n={n} {b / 2**30:.2f}" for n, b in found.items()), "GiB", flush=True
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--denoisers", action="store_true")
    parser.add_argument("--unets", action="store_true")
    parser.add_argument("--decoders", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--tokens", type=int, default=8190)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    if args.denoisers:
        results = denoisers({"wan-14b": Video(1280, 720, 81), "mochi": Video(848, 480, 163)})
    elif args.unets:
        results = unets({"animatediff": Video(1024, 576, 16), "svd": Video(1024, 576, 14)})
    elif args.decoders:
        results = decoders()
    elif args.time:
        results["time"] = time_cost(args.tokens, args.repeats)
        print(json.dumps(results["time"], indent=2))
    else:
        for name, case in CASES.items():
            with torch.device("meta"):
                block, arguments = case()
            found = results[name] = peaks(block.to(torch.bfloat16).eval(), arguments, SLICES)
            row = "  ".join(f"n={n} {b / 2**30:.2f}" for n, b in found.items())
            print(f"{name:<32}{row}  GiB, {found[1] / found[8]:.1f}x less at n=8", flush=True)
    if args.json:
        _append(args, results)


def _append(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Add the figures to the rows, sizes in GiB."""
    if args.time:
        units = {"seconds": "s", "ratio": "×", "relative": "relative L2", "": "B"}
        append(args.json, flat(results["time"], "memory/time", units), weights=None)
        return
    whole = args.unets or args.denoisers
    part = "memory/denoiser" if whole else "memory/decoders" if args.decoders else "memory"
    sizes = flat(results, part, {"": "GiB"})
    in_gib = (f._replace(value=f.value / 2**30) for f in sizes)
    append(args.json, in_gib, weights=None, on=SIMULATED)


if __name__ == "__main__":
    main()
