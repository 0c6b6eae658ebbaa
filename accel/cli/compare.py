"""``accel compare``: what two videos, or two folders of them, differ by."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from accel.core.quality import Metric, Score
    from accel.pipelines.video_pairs import VideoPair

WIDE = 28  # characters of a metric's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``accel compare``."""
    parser.add_argument("a", metavar="A", help="the reference: a video, a folder of PNG frames, "
                        "or a folder of videos")  # fmt: skip
    parser.add_argument("b", metavar="B", help="another of the same size and length; videos of two "
                        "folders are paired by name")  # fmt: skip
    parser.add_argument(
        "--metrics", metavar="NAMES", help="such as psnr,ssim,vmaf (all that can be measured here)"
    )
    parser.add_argument(
        "--lpips-weights", metavar="FILE", help="torchvision's weights of AlexNet, for LPIPS"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="write PSNR and SSIM by frame as an SVG picture"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; null is infinite")


def run(args: argparse.Namespace) -> int:
    """Print the metrics of each pair of videos, of several the mean and the worst too.

    Returns the exit code. Raises ValueError for videos that cannot be compared, an unknown metric,
    and one that was asked for by name and cannot be measured.
    """
    from accel.core.atomic_write import write_atomic
    from accel.core.line_chart import line_chart
    from accel.pipelines.paths import user_path
    from accel.pipelines.video_pairs import video_pairs

    metrics = _metrics(args)
    pairs, alone = video_pairs(user_path(args.a), user_path(args.b))
    found: list[tuple[VideoPair, list[Score]]] = []
    lines: dict[str, dict[str, list[float]]] = {"PSNR in dB": {}, "SSIM": {}}
    for pair in pairs:
        a, b = _read(pair)
        found.append((pair, _scores(pair.name, a, b, metrics, named=args.metrics is not None)))
        if args.plot:
            _by_frame(pair.name, a, b, lines)
    print(_json(found, alone) if args.json else _text(found, alone))
    if args.plot:
        title = f"{args.b} beside {args.a}, frame by frame"
        panels = [(label, values) for label, values in lines.items() if values]
        write_atomic(user_path(args.plot), line_chart(title, panels))
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0


def _metrics(args: argparse.Namespace) -> list[Metric]:
    """Return the metrics that are asked for, all by default."""
    from accel.core.quality import lpips
    from accel.core.quality.metric_registry import chosen
    from accel.pipelines.paths import user_path

    names = args.metrics and [name for name in args.metrics.replace(",", " ").split() if name]
    if names is not None and not names:
        raise ValueError("--metrics names no metric")
    metrics = chosen(names)
    if args.lpips_weights is None:
        return metrics
    given = lpips(user_path(args.lpips_weights))
    if names and "lpips" not in names:
        return [*metrics, given]
    return [given if metric.name == "lpips" else metric for metric in metrics]


def _read(pair: VideoPair) -> tuple[np.ndarray, np.ndarray]:
    from accel.pipelines.video_reading import read_video

    a, b = read_video(pair.a), read_video(pair.b)
    if a.shape != b.shape:
        size_a, size_b = (f"{len(v)} frames of {v.shape[2]} x {v.shape[1]}" for v in (a, b))
        raise ValueError(
            f"videos must have one size and length: {pair.a} has {size_a}, {pair.b} has {size_b}"
        )
    return a, b


def _scores(
    name: str, a: np.ndarray, b: np.ndarray, metrics: Sequence[Metric], *, named: bool
) -> list[Score]:
    """Return a pair's scores; of metrics that were named none may be missing."""
    from accel.core.quality import scores

    found = scores(a, b, metrics)
    for score in found:
        if named and score.value is None:
            raise ValueError(f"{name}: {score.metric.name}: {score.why_not}")
    return found


def _by_frame(
    name: str, a: np.ndarray, b: np.ndarray, lines: dict[str, dict[str, list[float]]]
) -> None:
    """Add a pair's PSNR and SSIM by frame to the ``lines`` of a picture."""
    from accel.core.quality import CannotMeasure, psnr_by_frame, ssim_by_frame

    for label, function in (("PSNR in dB", psnr_by_frame), ("SSIM", ssim_by_frame)):
        try:
            lines[label][name] = function(a, b)
        except CannotMeasure as error:
            print(f"not drawn: {error}", file=sys.stderr)


def summary(found: Sequence[Sequence[Score]]) -> dict[str, tuple[float, float | None]]:
    """Return mean and worst of each metric that every pair has, by name.

    The worst is None where neither more nor less is better.
    """
    out: dict[str, tuple[float, float | None]] = {}
    for column in zip(*found, strict=True):
        values = [score.value for score in column if score.value is not None]
        if len(values) == len(column):
            better = column[0].metric.higher_is_better
            worst = None if better is None else min(values) if better else max(values)
            out[column[0].metric.name] = (sum(values) / len(values), worst)
    return out


def _json(found: Sequence[tuple[VideoPair, list[Score]]], alone: list[str]) -> str:
    from accel.core.strict_json import dumps

    rows: list[dict[str, Any]] = []
    for pair, scores in found:
        rows.append({
            "name": pair.name, "a": str(pair.a), "b": str(pair.b),
            "metrics": {s.metric.name: s.value for s in scores if s.value is not None},
            "of_a": {s.metric.name: s.of_reference for s in scores if s.of_reference is not None},
            "not_measured": {s.metric.name: s.why_not for s in scores if s.value is None},
        })  # fmt: skip
    both = summary([scores for _, scores in found])
    whole = {
        "pairs": rows,
        "mean": {name: mean for name, (mean, _) in both.items()},
        "worst": {name: worst for name, (_, worst) in both.items() if worst is not None},
        "without_partner": alone,
    }
    return dumps(whole, indent=2)


def _text(found: Sequence[tuple[VideoPair, list[Score]]], alone: list[str]) -> str:
    """Return a table: of one pair its scores, of several those of each, the mean and the worst."""
    lines: list[str] = []
    for pair, scores in found:
        if len(found) > 1:
            lines += [Path(pair.name).name]
        lines += [_row(score) for score in scores if score.value is not None]
    if len(found) > 1:
        first = {score.metric.name: score.metric for score in found[0][1]}
        lines.append(f"{len(found)} pairs{'':{WIDE - len(str(len(found))) - 6}}mean, worst")
        for name, (mean, worst) in summary([scores for _, scores in found]).items():
            metric = first[name]
            end = "" if worst is None else f", {_value(metric, worst)}"
            lines.append(f"{metric.title or name:<{WIDE}}{_value(metric, mean)}{end}")
    missing = {s.metric.name: s.why_not for _, scores in found for s in scores if s.value is None}
    lines += [f"not measured: {name}: {why}" for name, why in missing.items()]
    lines += [f"without a partner: {path}" for path in alone]
    return "\n".join(lines)


def _row(score: Score) -> str:
    metric, value = score.metric, score.value
    assert value is not None
    text = f"{metric.title or metric.name:<{WIDE}}{_value(metric, value)}"
    if score.of_reference is not None:
        text += f" (A: {_value(metric, score.of_reference)})"
    return text


def _value(metric: Metric, value: float) -> str:
    digits = (
        f"{value:.2f}" if metric.unit else f"{value:.4f}" if abs(value) >= 0.1 else f"{value:.3g}"
    )
    return f"{digits} {metric.unit}".rstrip()
