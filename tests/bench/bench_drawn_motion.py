"""Draw a drag on the page: does the video move as drawn?

    python tests/bench/bench_drawn_motion.py [--drags 8] [--steps 20] [--json FILE]

What the canvas sends for a dragged box goes the page's whole way: drawing, form, queue, worker
process, video file. The file's motion is measured as in ``bench_motion.py`` and correlated with the
drawn flow; the same jobs without the drawing are the control. Printed is what today's embedded
model does; nothing is asserted about it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

from bench_motion import correlation, measured_flow, pooled
from rows import append, flat, weights_of

from accel.pipelines.motion.flows import make_flow
from accel.pipelines.ui import drawing
from accel.pipelines.ui.finished import Finished
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import read_video

SIZE = (64, 64, 17)
FORM = {
    "prompt": "a red circle on a striped blue background", "model": "tiny (embedded)",
    "preset": "balanced", "width": SIZE[0], "height": SIZE[1], "frames": SIZE[2],
}  # fmt: skip
LONG = 24.0  # pixels a box is dragged in all


def drawn(number: int, of: int) -> dict:
    """What the canvas sends for a box that is dragged; directions go round the circle."""
    angle = 2 * math.pi * number / of
    move = [LONG * math.cos(angle), LONG * math.sin(angle)]
    x, y = 20 - move[0] / 2, 20 - move[1] / 2  # its way passes the middle
    box = [[x, y], [x + 24, y], [x + 24, y + 24], [x, y + 24]]
    return {"layers": [{"polygon": box, "keys": [{"at": 1, "move": move}]}], "brush": None}


def rendered(studio: Studio, forms: dict[str, dict]) -> dict[str, Finished]:
    """Submit forms by name and wait for their videos. Raises RuntimeError if one fails."""
    for name, form in forms.items():
        studio.submit({**form, "name": name})
    while studio.queue.entries:
        failed = [e.error for e in studio.queue.order() if e.state == "failed"]
        if failed:
            raise RuntimeError(failed[0])
        time.sleep(0.2)
    return {video.name: video for video in studio.finished()}


def measure(drags: int, steps: int) -> dict[str, float]:
    """Correlation of the drawn flow with the motion of the videos, and of those without it."""
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder))
        studio.start()
        try:
            forms, flows = {}, []
            for n in range(drags):
                form = {**FORM, "steps": steps, "seed": n}
                sketch = drawn(n, drags)
                motion = drawing.read_motion(studio, sketch, drawing.STILL, None, 0.0, SIZE)
                assert motion is not None
                forms |= {f"drawn-{n}": {**form, **motion}, f"free-{n}": form}
                flow, _ = make_flow(motion["motion"], width=SIZE[0], height=SIZE[1], frames=SIZE[2])
                flows.append(pooled(flow.numpy()))
            videos = rendered(studio, forms)
            found = {
                kind: [
                    pooled(measured_flow(read_video(videos[f"{kind}-{n}"].video)))
                    for n in range(drags)
                ]
                for kind in ("drawn", "free")
            }
        finally:
            studio.close()
    return {kind: correlation(flows, values) for kind, values in found.items()}


def main() -> None:
    """Measure and print; with ``--json`` also write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drags", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args.drags, args.steps)
    print(f"drawn flow against the video's: correlation {result['drawn']:.3f}")
    print(f"the same seeds without the drawing: {result['free']:.3f}")
    if args.json:
        figures = flat(result, "drawn-motion", {"": "correlation"})
        append(args.json, figures, weights=weights_of("tiny"))


if __name__ == "__main__":
    main()
