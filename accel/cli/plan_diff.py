"""``accel plan-diff``: what two plans do differently."""

from __future__ import annotations

import argparse

from accel.core.differences import differences
from accel.plans import PRESETS, Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel plan-diff``."""
    parser.add_argument("a", metavar="A", help="a plan: a JSON file, or a preset's name")
    parser.add_argument("b", metavar="B", help="another plan")


def run(args: argparse.Namespace) -> int:
    """Print where the plans come from and each field that differs, and return the exit code.

    Raises ValueError or OSError for what is no plan.
    """
    a, b = (_plan(text) for text in (args.a, args.b))
    for name, plan in (("A", a), ("B", b)):
        if plan.origin is not None:
            print(f"{name} was {plan.origin}")
    lines = list(differences(a.to_dict(), b.to_dict()))
    print("\n".join(lines) if lines else "no difference")
    return 0


def _plan(text: str) -> Plan:
    return Plan.preset(text) if text in PRESETS else Plan.load(text)
