"""What a user of the installed package relies on, checked in the environment that runs this.

    python tests/release/probe.py        (from any folder but the checkout)

The package comes from site-packages with its native library, the command works, the embedded model
renders two steps, nothing of the checkout can be imported as a part of ``accel``, and ``kernels``
is Hugging Face's.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib")).resolve()

OTHER = "kernels"  # Hugging Face's package, which diffusers imports


def installed() -> None:
    """The package and its native library lie in site-packages; the checkout's folders do not."""
    import accel
    from accel.kernels.cpu.native import library

    assert Path(accel.__file__).resolve().is_relative_to(SITE), accel.__file__
    native = library()
    assert native.lib is not None and native.isa != "none", native.reason
    for name in ("accel", "tests", "samples", "app"):
        assert importlib.util.find_spec(f"accel.{name}") is None, f"accel.{name} can be imported"
    print(f"accel {accel.__version__} from site-packages, native library on {native.isa}")


def whose_kernels() -> None:
    """``import kernels`` finds Hugging Face's package."""
    kernels = importlib.import_module(OTHER)
    assert kernels.get_kernel.__module__.split(".")[0] == "kernels"
    assert Path(kernels.__file__).resolve().is_relative_to(SITE), kernels.__file__
    print("kernels is Hugging Face's")


def command() -> None:
    """``accel --version`` and ``accel env`` as a shell runs them."""
    import accel

    accel_command = Path(sysconfig.get_path("scripts")) / "accel"
    for argument in ("--version", "env"):
        done = subprocess.run([accel_command, argument], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert accel.__version__ in done.stdout, done.stdout
    print(done.stdout)


def render() -> None:
    """Two steps of the embedded model, patched."""
    import accel
    from accel.pipelines.load import load

    pipe = load("tiny")
    accel.patch(pipe)
    result = pipe(
        "a red circle on a striped blue background",
        height=64, width=64, num_frames=17, num_inference_steps=2, output_type="np",
    )  # fmt: skip
    assert result.frames.shape == (1, 17, 64, 64, 3), result.frames.shape
    report = accel.report(pipe)
    assert any("int8 by cpu" in site.ran for site in report.sites), report
    print(report)


if __name__ == "__main__":
    assert not (Path.cwd() / "accel").is_dir(), "run this from outside the checkout"
    sys.path.remove(str(Path(__file__).resolve().parent))
    for check in (installed, whose_kernels, command, render):
        check()
