"""Make thousands of random attention calls and name those that torch would have answered otherwise.

    python tests/bench/fuzz_attention.py [--calls 3000] [--first 0]

Ends with status 1 if there are any. A seed alone makes its call again: ``--first SEED --calls 1``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.signatures import run, signature


def main() -> int:
    """Run the calls and print one line for each that is wrong, then what ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    ran, wrong = Counter[str](), 0
    for seed in range(options.first, options.first + options.calls):
        call = signature(seed)
        what, precision = run(call)
        ran[precision] += 1
        if what:
            wrong += 1
            print(f"seed {seed}: {what} ({call.words})", flush=True)
    counts = ", ".join(f"{n} {precision}" for precision, n in ran.most_common())
    print(f"{options.calls} calls: {counts}; {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
