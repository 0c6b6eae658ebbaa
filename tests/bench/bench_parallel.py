"""What splitting attention over two processes changes, beside what its precision costs.

    python tests/bench/bench_parallel.py [--tokens 640 2048 8192]

Two processes over gloo on this machine; N(0, 1), four heads of 64, fp32. Relative L2 errors:

    one      one process, to fp64
    two      the two together, to fp64
    between  the two together, to one process
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import parallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[640, 2048, 8192])
    columns = "one", "two", "between"
    print(f"{'':28}" + "".join(f"{name:>12}" for name in columns))
    for tokens in parser.parse_args().tokens:
        check = {"errors": partial(parallel.errors, tokens=tokens)}
        with tempfile.TemporaryDirectory() as folder:
            cases = parallel.found(Path(folder), check)[0]["errors"]
        for name, case in cases.items():
            print(f"{tokens:6} {name:21}" + "".join(f"{case[c]:12.2g}" for c in columns))


if __name__ == "__main__":
    main()
