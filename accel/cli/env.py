"""``accel env``: prints what a bug report needs."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import accel
from accel.core.strict_json import dumps

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch", "diffusers", "transformers", "accelerate", "triton", "peft", "gradio", "imageio", "av",
    "pillow",
    "kernels", "sageattention", "flash-attn", "xformers", "torchao", "bitsandbytes",
    "optimum-quanto", "gguf", "cache-dit", "ray", "opencv-python-headless",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel env``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def environment() -> dict[str, dict[str, str]]:
    """Return versions, devices and kernels as text by name, under three headings."""
    from accel.kernels.dispatch import ATTENTION, WARP
    from accel.kernels.dispatch import environment as machine

    versions = {"accel": accel.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    devices = {"system": platform.platform(), "processor": _processor(), **machine()}
    devices.pop("torch")
    missing = [name for name in PACKAGES if name not in versions]
    return {
        "versions": {**versions, "not installed": ", ".join(missing)},
        "machine": devices,
        "kernels": {
            f"{table} {entry.name}": entry.why_not(_device(entry.name)) or "runs here"
            for table, entries in (("attention", ATTENTION), ("warp", WARP))
            for entry in entries
        },
    }


def _device(kernel: str) -> torch.device:
    import torch

    return torch.device("cuda" if kernel == "gpu" and torch.cuda.is_available() else "cpu")


def _processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = {line.split(":", 1)[1].strip() for line in lines if "model name" in line}
    except OSError:
        names = set()
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()


def run(args: argparse.Namespace) -> int:
    """Print the environment and return the exit code."""
    found = environment()
    if args.json:
        print(dumps(found, indent=2))
        return 0
    for title, lines in found.items():
        print(title)
        for name, value in lines.items():
            print(f"  {name:<24} {value}")
    return 0
