"""Step rehash beside fewer steps and every cache that runs, at speed-ups from 1.5× to 3×, by model.

    python tests/bench/bench_rehash_models.py --model dit [--tuning 6] [--jobs 30] [--timed 5]

Each method runs its settings on ``--tuning`` jobs, but those that are far from the range of
speed-ups on the first job. For each speed-up the setting with the
highest mean PSNR among those that leave out as much work is chosen there, and runs ``--jobs`` other
jobs, unless it was more than ``--within`` dB below the best there; only those are printed: mean
PSNR in dB to the plain run, worst job, and the mean speed-up in computed work. ``seconds``: of the
whole call at the speed-up ``--at``, plain over this one, in turn in one process, median of
``--timed`` jobs. The measured schedule knows 8 jobs more. The rule of step rehash has no setting
but the speed-up.

``--steadiness`` instead says what ``FAST`` does at guidance 1, 3, 5 and 7 at 1.9×: the largest
relative change of the guided output in plain steps, and PSNR with and without the steps that are
computed for it.

Results are kept in ``build/rehash``, as in ``bench_rehash.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_rehash import MEASURED_ON, measured, time_all
from bench_rehash_rules import HALVES, measure
from rehash_caches import Contender, of, theirs
from rehash_models import MODELS, Job, Model
from rehash_results import Results, Row
from rows import append, flat, weights_of

from accel.config import RehashConfig
from accel.rehash import steadiness

TARGETS = (1.5, 2.0, 2.5, 3.0)
NEAR = 0.96  # share of a speed-up that is close enough
RULE, MEASURED = "step rehash, the rule", "step rehash, measured"
LINE = f"{RULE}, order=1"
WISHES = (1.5, 1.6, 1.8, 1.9, 2.1, 2.25, 2.5, 2.75, 3.1, 3.5)
MEASURED_AT = (1.5, 1.75, 2.0, 2.5, 3.0)
UNITS = {"/computed": "×", "/seconds": "×", "/psnr": "dB", "/worst": "dB"}
GUIDANCE, SPEEDUP = (1.0, 3.0, 5.0, 7.0), 1.9


def contenders(model: Model, pipe: Any, steps: int, results: Results) -> list[Contender]:
    """All methods at all settings."""
    training = model.jobs(MEASURED_ON, steps, 5000)
    found = [of(RULE, f"{s:g}×", RehashConfig(speedup=s)) for s in WISHES]
    found += [of(LINE, f"{s:g}×", RehashConfig(speedup=s, order=1)) for s in WISHES]
    (plain,) = measured(pipe, training, results.file.parent, results.model, ("output",))
    for point in plain.points:
        config = plain.at_speedup(plain.steps / len(point.keys) - 1e-6)
        found.append(of(MEASURED, f"{len(point.keys)} keys", config))
    return [*found, *theirs(model, pipe, training[0], steps)]


def chosen(rows: Sequence[Row], target: float, within: float) -> dict[str, Contender]:
    """Of each method the setting with the highest PSNR that leaves out enough for ``target``.

    Methods that are more than ``within`` dB below the best are left out, and printed.
    """
    found: dict[str, Row] = {}
    for row in rows:
        if row.failed or row.computed < NEAR * target:
            continue
        if row.method not in found or row.psnr > found[row.method].psnr:
            found[row.method] = row
    best = max((row.psnr for row in found.values()), default=0.0)
    for row in [row for row in found.values() if row.psnr < best - within]:
        print(f"{target:g}×: {row.method} left out, {row.psnr:.1f} dB, the best has {best:.1f}")
        del found[row.method]
    return {method: row.contender for method, row in found.items()}


def table(by_target: dict[float, list[Row]], seconds: dict[str, float]) -> list[str]:
    """The rows of a Markdown table, methods by their PSNR at the speed-ups they reach."""
    names = list(dict.fromkeys(row.method for rows in by_target.values() for row in rows))
    cells = {(row.method, t): _cell(row) for t, rows in by_target.items() for row in rows}
    means = {
        n: np.mean([r.psnr for rows in by_target.values() for r in rows if r.method == n])
        for n in names
    }
    full = max(sum((n, t) in cells for t in by_target) for n in names)
    names.sort(key=lambda n: (-min(full, sum((n, t) in cells for t in by_target)), -means[n]))
    head = " | ".join(f"{t:g}×" for t in by_target)
    lines = [f"| | {head} | seconds |", "|---" * (len(by_target) + 2) + "|"]
    for name in names:
        row = " | ".join(cells.get((name, t), "") for t in by_target)
        lines.append(f"| {name} | {row} | {f'{seconds[name]:.2f}×' if name in seconds else ''} |")
    return lines


def figures(by_target: dict[float, list[Row]], seconds: dict[str, float]) -> dict[str, Any]:
    """The table's numbers by method and speed-up."""
    found: dict[str, Any] = {}
    for target, rows in by_target.items():
        for row in (r for r in rows if not r.failed):
            worst = min(r.psnr for r in row.results)
            cell = {"computed": row.computed, "psnr": row.psnr, "worst": worst}
            found.setdefault(row.method, {})[f"{target:g}×"] = cell
    for method, value in seconds.items():
        found[method]["seconds"] = value
    return found


def _cell(row: Row) -> str:
    if row.failed:
        return "fails"
    return f"{row.psnr:.1f} ({min(r.psnr for r in row.results):.1f}) at {row.computed:.2f}×"


def compare_all(model: Model, pipe: Any, args: argparse.Namespace, results: Results) -> None:
    """Choose on the one half, report on the other."""
    wanted = contenders(model, pipe, args.steps, results)
    tuning = model.jobs(args.tuning, args.steps, HALVES["tuning"])
    lowest, highest = 0.9 * min(TARGETS), 1.25 * max(TARGETS)
    first = measure(pipe, tuning[:1], wanted, results)
    for row in (r for r in first if not lowest <= r.computed <= highest):
        why = row.failed or f"{row.computed:.2f}×"
        print(f"{row.method:<26}{row.setting:<26}left out: {why}")
    wanted = [r.contender for r in first if lowest <= r.computed <= highest]
    rows = measure(pipe, tuning, wanted, results)
    for row in rows:
        why = row.failed or f"{row.computed:5.2f}× {row.psnr:6.2f} dB"
        print(f"{row.method:<26}{row.setting:<26}{why}")
    picks = {t: chosen(rows, t, args.within) for t in args.target or TARGETS}
    every = list({id(c): c for picked in picks.values() for c in picked.values()}.values())
    jobs = model.jobs(args.jobs, args.steps, HALVES["report"])
    reported = {id(r.contender): r for r in measure(pipe, jobs, every, results)}
    by_target = {t: [reported[id(c)] for c in p.values()] for t, p in picks.items()}
    timed = by_target.get(args.at, [])
    time_all(pipe, jobs[: args.timed], timed)
    seconds = {r.method: float(np.median(r.seconds)) for r in timed if r.seconds}
    print("\n" + "\n".join(table(by_target, seconds)))
    if args.json:
        found = flat(figures(by_target, seconds), f"rehash/{model.name}", UNITS)
        append(args.json, found, weights=weights_of(model.source))
    for target, found in by_target.items():
        ours = next((r for r in found if r.method == RULE), None)
        for rival in found if ours else ():
            if not rival.method.startswith("step rehash") and rival.psnr > ours.psnr + 0.5:
                print(f"{target:g}×: {rival.method}, {rival.setting}, is above the rule")


def follow(model: Model, pipe: Any, args: argparse.Namespace, results: Results) -> None:
    """What ``FAST`` does at some scales of guidance."""
    for guidance in GUIDANCE:
        jobs = model.jobs(args.tuning, args.steps, HALVES["tuning"], guidance)
        rows = []
        for label, fast in (("as it is", steadiness.FAST), ("never", float("inf"))):
            config = RehashConfig(speedup=SPEEDUP)
            wanted = [of(f"{RULE}, FAST {fast}", f"{SPEEDUP:g}×", config)]
            rows.append((label, _with_fast(fast, pipe, jobs, wanted, results)))
        changes = _changes(pipe, jobs)
        spread = ", ".join(f"{np.quantile(changes, q):.2f}" for q in (0.0, 0.5, 1.0))
        print(f"guidance {guidance:g}: largest change, least, median and most of jobs: {spread}")
        for label, row in rows:
            low = sum(r.psnr < 25 for r in row.results)
            worst = min(r.psnr for r in row.results)
            print(f"  {label:<9}{row.computed:5.2f}× {row.psnr:5.1f} dB ({worst:.1f}), {low} < 25")


def _with_fast(
    fast: float, pipe: Any, jobs: Sequence[Job], wanted: Sequence[Contender], results: Results
) -> Row:
    """Rows with other limits of a run that is steady; ``inf``: every run is."""
    before = steadiness.FAST, steadiness.SMALL
    steadiness.FAST, steadiness.SMALL = fast, before[1] if fast == before[0] else fast
    try:
        return measure(pipe, jobs, wanted, results)[0]
    finally:
        steadiness.FAST, steadiness.SMALL = before


def _changes(pipe: Any, jobs: Sequence[Job]) -> list[float]:
    """Of each job the largest relative change of the guided output from its third step on."""
    from accel.core.run_pipeline import call
    from accel.patching import patched
    from accel.plans import Plan

    found: list[float] = []
    largest = steadiness.Steadiness._compare

    def listen(self: Any, step: int, values: Any, known: bool) -> None:
        if known:
            change = (values - self._past[0][2]).norm(dim=1) / values.norm(dim=1)
            found[-1] = max(found[-1], float(change.max()))
        largest(self, step, values, known)

    steadiness.Steadiness._compare = listen  # type: ignore[method-assign]
    try:
        with patched(pipe, plan=Plan("all", None, rehash=RehashConfig(speedup=1.0))):
            for job in jobs:
                found.append(0.0)
                call(pipe, job)
    finally:
        steadiness.Steadiness._compare = largest  # type: ignore[method-assign]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="wan")
    parser.add_argument("--tuning", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--within", type=float, default=6.0, help="dB below the best; see above")
    parser.add_argument("--timed", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--target", type=float, action="append", help="more than one: repeat")
    parser.add_argument("--at", type=float, default=2.0, help="speed-up whose seconds are compared")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steadiness", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/rehash"), help="results")
    args = parser.parse_args()
    model = MODELS[args.model]
    pipe = model.load()
    results = Results(args.folder, weights_of(model.source)["hash"])
    (follow if args.steadiness else compare_all)(model, pipe, args, results)


if __name__ == "__main__":
    main()
