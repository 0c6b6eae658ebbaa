"""Step rehash without a measurement: its rule, SeaCache and fewer steps, from 1.5× to 3×.

    python tests/bench/bench_rehash_rules.py [--model wan] [--half report] [--jobs 30]

Constants of the rule and of its prediction are chosen on the jobs of ``--half tuning`` alone;
``--half report`` (the default) has other prompts and seeds. Each row is the mean and the worst PSNR
in dB to the plain run, with ``computed``, the denoiser's work in the plain run over this one. The
last lines hold the rule against the targets: at each speed-up no lower than SeaCache (interpolated
between its thresholds) and fewer steps, and no cliff, 4 dB or more from one speed-up to the next.
``--method fast`` runs the preset, INT8 attention included; it should stay above 25 dB.

Results are kept per setting and job in ``build/rehash``, as in ``bench_rehash.py``. To compare two
versions of the code, run both with the same ``--folder`` and ``--label`` the older one's rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from bench_rehash import Full, Meter, compare
from diffusers import SeaCacheConfig
from rehash_caches import Contender, nothing, of, sea
from rehash_models import MODELS, Job
from rehash_results import Results, Row
from rows import weights_of

from accel.config import RehashConfig
from accel.patching import patched
from accel.plans import Plan
from accel.rehash.schedule import budget

SPEEDUPS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)
THRESHOLDS = (0.15, 0.25, 0.3, 0.4, 0.5, 0.7)
HALVES = {"tuning": 7000, "report": 9000}  # seed of the first job
CLIFF, LOWEST = 4.0, 25.0  # dB
RULE, FEWER, SEA, FAST = "rule", "fewer steps", "SeaCache", "fast"
METHODS = (RULE, "rule, line", "rule, 5 entries", FEWER, SEA, FAST)


def contenders(method: str, label: str, steps: int) -> list[Contender]:
    """The settings of a method; ``label`` tells versions of the rule apart."""
    match method:
        case "fewer steps":
            counts = [budget(steps, s) for s in SPEEDUPS]
            return [
                Contender(method, str(n), nothing, lambda j, n=n: {**j, "num_inference_steps": n})
                for n in counts
            ]
        case "SeaCache":
            configs = [SeaCacheConfig(t) for t in THRESHOLDS]
            return [Contender(method, f"threshold {c.threshold}", sea(c)) for c in configs]
        case "fast":
            plan = Plan.preset("fast")
            return [Contender(label + method, "", lambda pipe: patched(pipe, plan=plan))]
    settings: dict[str, Any] = {"rule": {}, "rule, line": {"order": 1}}.get(method, {"entries": 5})
    return [of(label + method, f"{s:g}×", RehashConfig(speedup=s, **settings)) for s in SPEEDUPS]


def measure(
    pipe: Any, jobs: Sequence[Job], wanted: Sequence[Contender], results: Results
) -> list[Row]:
    """What is missing is run, job by job."""
    meter, rows = Meter(pipe), [Row(c, []) for c in wanted]
    for i, job in enumerate(jobs):
        for row in rows:
            identity = [row.method, row.setting, row.contender.detail]
            known = results.get(identity, job)
            if known is None:
                full = Full.of(pipe, meter, job, False, results.full(job))
                known = compare(pipe, meter, job, row.contender, full)
                results.add(identity, job, known)
            row.results.append(known)
        print(f"job {i + 1} of {len(jobs)} done", flush=True)
    return rows


def line(row: Row) -> str:
    """One row of the table."""
    if row.failed:
        return f"{row.method:<24}{row.setting:<18}does not run: {row.failed}"
    worst = min(r.psnr for r in row.results)
    return f"{row.method:<24}{row.setting:<18}{row.computed:6.2f}×{row.psnr:8.2f}{worst:8.2f}"


def targets(rows: Sequence[Row]) -> list[str]:
    """Where the rule is below a rival, or falls off."""
    rule = sorted((r for r in rows if r.method == RULE), key=lambda r: r.computed)
    found = []
    for method in dict.fromkeys(r.method for r in rows if r.method not in (RULE, FAST)):
        curve = sorted((r.computed, r.psnr) for r in rows if r.method == method and not r.failed)
        if len(curve) < 2:
            continue
        speeds, decibels = zip(*curve, strict=True)
        for r in (r for r in rule if speeds[0] <= r.computed <= speeds[-1]):
            off = r.psnr - float(np.interp(r.computed, speeds, decibels))
            found.append(f"{r.setting}: {off:+.1f} dB to {method}")
    for a, b in pairwise(rule):
        if a.psnr - b.psnr >= CLIFF:
            found.append(f"cliff of {a.psnr - b.psnr:.1f} dB from {a.setting} to {b.setting}")
    for r in (r for r in rows if r.method == FAST):
        low = sum(x.psnr < LOWEST for x in r.results)
        found.append(f"preset fast: {low} of {len(r.results)} jobs below {LOWEST:g} dB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="wan")
    parser.add_argument("--half", choices=tuple(HALVES), default="report")
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--method", choices=METHODS, action="append", help="more than one: repeat")
    parser.add_argument("--label", default="", help="put before the names of our rows")
    parser.add_argument("--folder", type=Path, default=Path("build/rehash"), help="results")
    args = parser.parse_args()
    model = MODELS[args.model]
    pipe = model.load()
    jobs = model.jobs(args.jobs, args.steps, HALVES[args.half], args.guidance)
    label = f"{args.label} " if args.label else ""
    wanted = [c for m in args.method or METHODS for c in contenders(m, label, args.steps)]
    results = Results(args.folder, weights_of(model.source)["hash"])
    rows = measure(pipe, jobs, wanted, results)
    print(f"\n{'method':<24}{'setting':<18}{'computed':>7}{'mean dB':>8}{'worst':>8}")
    print("\n".join(map(line, rows)))
    print("\n" + "\n".join(targets(rows)))


if __name__ == "__main__":
    main()
