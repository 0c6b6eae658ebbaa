"""Real models at real sizes on this machine's GPU: time and measured memory of one denoiser call.

    python tests/bench/gpu_models.py [--models wan-1.3b ...] [--repeats 3] [--decode] [--json FILE]

Configurations are the published ones, weights are random (bf16), so errors say what quantization
does to random weights and nothing about a trained model. Of large models a few layers stand for
all, since layers run one after another. Variants take turns; seconds are medians by CUDA events.
"measured" is torch's own count of the most bytes allocated beside the weights, "simulated" what
``accel memory`` says of the same call. The check of a run's first step is off, as in later steps.
``--decode`` also decodes a Wan video, whole and in strips.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import append, card, flat
from torch import Tensor, nn

import accel
from accel import AttentionConfig, Plan, SlicingConfig, families
from accel.core.tree import leaves, tree_map
from accel.families.family import Model
from accel.memory.meta_models import Video, latent_shape
from accel.memory.simulate import decode_peak, denoise_peak, denoiser_call, strips_peak
from accel.slicing.program.cache import Programs
from accel.slicing.vae.apply import apply_strips

UNITS = {"seconds": "s", "speed": "×", "error": "relative L2", "": "B"}
CARD = torch.device("cuda", 0)
# Size, and layers where not all of them fit or are needed.
MODELS: dict[str, tuple[Video, dict[str, int]]] = {
    "wan-1.3b": (Video(832, 480, 81), {}),
    "wan-14b": (Video(1280, 720, 81), {"num_layers": 4}),
    "hunyuanvideo": (Video(1280, 720, 129), {"num_layers": 2, "num_single_layers": 2}),
    "cogvideox-5b": (Video(720, 480, 49), {"num_layers": 8}),
    "flux": (Video(1024, 1024, 1), {}),
}
VARIANTS: dict[str, Plan | None] = {
    "as it comes": None,
    "int8": Plan("bench", AttentionConfig("int8", check_rows=0)),
    "8 slices": Plan("bench", None, SlicingConfig(8)),
    "int8, 8 slices": Plan("bench", AttentionConfig("int8", check_rows=0), SlicingConfig(8)),
}


def on_card(family: Model, layers: dict[str, int], video: Video) -> tuple[Any, Callable[[], Any]]:
    """The denoiser with random weights, and what makes the arguments of a call."""
    import diffusers

    part = family.denoiser
    torch.manual_seed(0)
    torch.set_default_dtype(part.dtype)
    try:
        with CARD:
            cls = getattr(diffusers, part.cls)
            denoiser = cls.from_config({**part.config, **layers})
    finally:
        torch.set_default_dtype(torch.float32)
    denoiser = nn.Module.to(denoiser, part.dtype).eval()
    shapes = denoiser_call(family, video)[1]

    def value(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_floating_point():
            dtype = part.dtype if x.dtype == torch.bfloat16 else x.dtype
            return torch.randn(x.shape, dtype=dtype, device=CARD)
        full = 500 if x.dim() == 1 and x.dtype == torch.int64 else 1
        return torch.full(x.shape, full, dtype=x.dtype, device=CARD)

    return denoiser, lambda: tree_map(value, shapes)


@torch.no_grad()
def once(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """Result, seconds, and the most bytes allocated during a call beside those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = call()
    end.record()
    end.synchronize()
    return result, start.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated() - before


def simulated(family: Model, layers: dict[str, int], video: Video) -> dict[str, int]:
    """Bytes of activations by variant, inputs included."""
    denoiser = family.denoiser.build(**layers)
    kwargs = denoiser_call(family, video)[1]
    ways = {"as it comes": None, "8 slices": SlicingConfig(8)}
    return {name: denoise_peak(denoiser, kwargs, way, Programs()) for name, way in ways.items()}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Seconds, bytes, error and what the report says, by variant."""
    family, (video, layers) = families.models()[name], MODELS[name]
    denoiser, arguments = on_card(family, layers, video)
    results: dict[str, Any] = {}
    reference = None
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(repeats + 1):
        for variant, plan in VARIANTS.items():
            handle = None if plan is None else accel.patch(denoiser, plan=plan)
            torch.manual_seed(1)
            kwargs = arguments()
            held = sum(x.nbytes for x in leaves(kwargs))
            (out, *_), seconds, size = once(partial(denoiser, **kwargs, return_dict=False))
            if turn:
                times[variant].append(seconds)
                results[variant]["measured"] = size + held
            else:  # warms up: tuning and compiling are not counted
                exact = reference = out.float() if reference is None else reference
                results[variant] = {"error": float((out.float() - exact).norm() / exact.norm())}
                if handle is not None:
                    results[variant]["report"] = str(handle.report())
            del out, kwargs
            if handle is not None:
                accel.unpatch(denoiser)
    del denoiser, reference
    torch.cuda.empty_cache()
    expected = simulated(family, layers, video)
    for variant, found in results.items():
        found["seconds"] = statistics.median(times[variant])
        pairs = zip(times["as it comes"], times[variant], strict=True)
        found["speed"] = statistics.median(a / b for a, b in pairs)
        found["simulated"] = expected.get(variant)
    return results


@torch.no_grad()
def decode(frames: int) -> dict[str, Any]:
    """A Wan 480p video decoded whole, in strips, and in strips whose frames go to the CPU."""
    part = families.models()["wan-1.3b"].vae
    shape = latent_shape(families.models()["wan-1.3b"], Video(832, 480, frames))
    with CARD:
        import diffusers

        vae = diffusers.AutoencoderKLWan.from_config(part.config).eval()
        z = torch.randn(1, *shape[1:])
    results: dict[str, Any] = {}
    exact = None
    ways = {"whole": None, "16 strips": False, "16 strips, frames to the CPU": True}
    for name, way in ways.items():
        undo = ExitStack()
        if way is not None:
            apply_strips(vae, SlicingConfig(16, 1), undo, way)
        call = partial(vae.decode, z, return_dict=False)
        call()  # warms up
        (out,), seconds, size = once(call)
        exact = out if exact is None else exact
        error = float((out.to(CARD) - exact).norm() / exact.norm())
        del out
        undo.close()
        meta_vae, meta_z = part.build(), z.to("meta")
        expected = (
            decode_peak(meta_vae, meta_z)
            if way is None
            else strips_peak(meta_vae, meta_z, streamed=way)
        )
        results[name] = {
            "seconds": seconds, "measured": size + z.nbytes, "simulated": expected, "error": error,
        }  # fmt: skip
        print(f"decode, {name}: {line(results[name])}", flush=True)
    return results


def line(found: dict[str, Any]) -> str:
    """One variant in words."""
    parts = [f"{found['seconds']:.3f} s"]
    if "speed" in found:
        parts.append(f"{found['speed']:.2f}x")
    parts.append(f"{found['measured'] / 2**30:.3f} GiB")
    if found.get("simulated"):
        parts.append(f"simulated {found['simulated'] / 2**30:.3f} GiB")
    return ", ".join([*parts, f"relative L2 {found['error']:.1e}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode", type=int, metavar="FRAMES")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing was measured")
        return
    print(f"{torch.cuda.get_device_name(CARD)}, torch {torch.__version__}")
    results: dict[str, Any] = {}
    for name in args.models:
        try:
            found = results[name] = measure(name, args.repeats)
        except (RuntimeError, ValueError) as error:
            print(f"{name}: {type(error).__name__}: {error}"[:600], flush=True)
            torch.cuda.empty_cache()
            continue
        video, layers = MODELS[name]
        size = f"{video.width}x{video.height}x{video.frames}"
        print(f"{name} {size} {layers or 'all layers'}")
        for variant, row in found.items():
            print(f"  {variant:<16}{line(row)}")
        print(flush=True)
    if args.decode:
        results["decode"] = decode(args.decode)
    if args.json:
        append(args.json, flat(results, "gpu-models", UNITS), weights=None, on=card())


if __name__ == "__main__":
    main()
