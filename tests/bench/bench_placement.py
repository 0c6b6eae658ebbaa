"""A model larger than the memory that may be used: rendered plainly, and by a process held to less.

    python tests/bench/bench_placement.py [--memory 3GB] [--folder build/big] [--json FILE]

The folder is made first: a Wan pipeline with at least 6 GB of random bf16 weights. Two processes
render one short clip of it: one as ``load`` does it on a CPU, in fp32, the other by
``accel.load(folder, memory=...)`` in a control group with that limit, where one can be made. The
frames must be equal. Peaks are VmHWM: all resident pages of the process, mapped files included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (  # version of control groups, a new group, its limit
    (Path("/sys/fs/cgroup/accel-bench"), "memory.max"),
    (Path("/sys/fs/cgroup/memory/accel-bench"), "memory.limit_in_bytes"),
)


def child(folder: str, memory: int, steps: int) -> dict[str, Any]:
    """Render in this process; ``memory`` 0 is without a limit."""
    import torch

    import accel
    from accel.core.process_memory import most_resident_bytes
    from accel.memory.placement import phases_text
    from accel.pipelines.arranging import arrangement_of
    from accel.pipelines.generate import generate
    from accel.pipelines.job import Job
    from accel.pipelines.load import load

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    job = Job("a red ball", width=64, height=64, frames=9, steps=steps, guidance=1.0, seed=1,
              model=folder, preset="lossless")  # fmt: skip
    start, told = time.perf_counter(), {}
    if memory:
        pipe = accel.load(folder, memory=memory, job=job)
        found = arrangement_of(pipe)
        assert found is not None
        told = {
            "predicted": found.decision.room.held + found.placement.peak,
            "way": f"{found.placement.way}, {found.placement.blocks} blocks kept",
            "phases": phases_text(found.placement),
        }
    else:
        pipe = load(folder)
    loaded = time.perf_counter() - start
    frames = generate(pipe, job).frames
    return {
        "sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
        "peak": most_resident_bytes(),
        "load seconds": loaded,
        "seconds": time.perf_counter() - start - loaded,
        "distinct values": len(set(frames.ravel().tolist())),
        **told,
    }


def group(limit: int) -> Path | None:
    """Make a control group with a limit of memory; None where that is not allowed."""
    for folder, file in GROUPS:
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            if not (folder / "cgroup.procs").exists():  # no file system of control groups
                folder.rmdir()
                continue
            (folder / file).write_text(str(limit))
            return folder
    return None


def run(folder: Path, memory: int, steps: int, held: Path | None) -> dict[str, Any]:
    """Render in a process of its own."""

    def enter() -> None:
        if held is not None:
            (held / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, __file__, "--child", "--folder", str(folder),
               "--memory", str(memory), "--steps", str(steps)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=enter)
    if done.returncode:
        raise SystemExit(f"the process ended with {done.returncode}; -9 is the group's limit")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "big")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(str(args.folder), int(args.memory), args.steps)))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.big_folder import make

    from accel.core.units import parse_bytes

    memory = parse_bytes(args.memory)
    if not (args.folder / "model_index.json").is_file():
        make(args.folder, width=2048, layers=40, encoder_width=2048, encoder_layers=10)
    weights = sum(f.stat().st_size for f in args.folder.rglob("*.safetensors"))
    print(f"{weights / 1e9:.2f} GB of weights on disk, {2 * weights / 1e9:.2f} GB in fp32")
    held = group(memory)
    print(f"held by {held or 'nothing but its own budget: no control group can be made'}")
    try:
        less = run(args.folder, memory, args.steps, held)
    finally:
        if held is not None:
            held.rmdir()
    print("held: ", json.dumps(less, indent=1), flush=True)
    plain = run(args.folder, 0, args.steps, None)
    print("plain:", json.dumps(plain, indent=1))
    assert less["sha256"] == plain["sha256"], "the frames are not equal"
    assert less["peak"] <= memory, "more than the memory allowed"
    assert abs(less["predicted"] / less["peak"] - 1) < 0.1, "the prediction is off by over 10 %"
    print(f"equal frames; predicted / measured {less['predicted'] / less['peak']:.3f}")
    if args.json:
        from rows import append, flat

        figures = {"weights": weights, "held": less, "plain": plain}
        units = {"seconds": "s", "": "B"}
        append(args.json, flat(figures, "placement/proof", units), weights=None)


if __name__ == "__main__":
    main()
