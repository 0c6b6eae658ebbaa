"""Time of the page from a cold start: the command's first moment, the first paint, and the wait of
a tab that is opened later. No model is loaded before the first job.

    python tests/bench/bench_ui.py --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rows import append, flat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.page import chromium, missing, served

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def measure(browser) -> dict[str, float]:
    """Seconds: command to address, command to first paint, navigation to first paint."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with served(Path(folder) / "out") as address:
            ready = time.perf_counter() - start
            context = browser.new_context()
            page = context.new_page()
            before = time.perf_counter() - start
            page.goto(address, wait_until="commit")
            page.wait_for_function(f"{PAINT} > 0")
            paint = page.evaluate(PAINT) / 1000
            page.locator("#go").wait_for()
            usable = time.perf_counter() - start
            context.close()
    return {
        "command to address": ready,
        "command to first paint": before + paint,
        "navigation to first paint": paint,
        "command to a form that works": usable,
    }


def main() -> int:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    with chromium() as browser:
        runs = [measure(browser) for _ in range(args.repeats)]
    result = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for key, value in result.items():
        print(f"{key:<32}{value:6.2f} s")
    if args.json:
        append(args.json, flat(result, "ui", {"": "s"}), weights=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
