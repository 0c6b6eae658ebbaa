"""Draw samples/contact-sheet.png: clips of the embedded model for captions and commanded motion.

    python samples/contact_sheet.py [--steps 20]

Each row is one clip: caption and motion, the commanded flow, the flow that OpenCV's DIS finds in
the generated frames (both averaged over the clip; hue is direction, saturation speed), and frames
0, 4, 8, 12 and 16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from accel.core.optical_flow import estimate
from accel.pipelines.generate import generate
from accel.pipelines.job import Job
from accel.pipelines.load import load
from accel.pipelines.motion.flow_pictures import color_wheel
from accel.pipelines.motion.flows import make_flow

ROWS = [
    ("a red circle on a striped blue background", {"camera": {"pan": [2.0, 0.0]}}),
    ("a red circle on a striped blue background", {"camera": {"pan": [-2.0, 0.0]}}),
    ("a yellow crescent on a dotted purple background", {"camera": {"zoom": 1.025}}),
    ("a yellow crescent on a dotted purple background", {"camera": {"zoom": 0.975}}),
    ("a white square on a mottled green background", {"camera": {"roll": 3.0}}),
    ("an orange triangle on a cloudy grey background", {"camera": {"pan": [0.0, 2.0]}}),
    (
        "a blue square on a dotted orange background",
        {"drag": [{"polygon": [[8, 20], [30, 20], [30, 42], [8, 42]], "by": [24, 0]}]},
    ),
    ("a green circle and a purple crescent on a striped white background", None),
]
SHOWN, ZOOM, MARGIN = (0, 4, 8, 12, 16), 2, 300


def flows(frames: np.ndarray, motion: dict | None) -> list[np.ndarray]:
    """Return commanded and obtained flow as two pictures uint8 [H, W, 3] on one scale of speed."""
    height, width = frames.shape[1:3]
    obtained = estimate(frames)[0].transpose(0, 3, 1, 2)
    obtained[np.abs(obtained) > width] = np.nan  # occluded
    obtained = np.nan_to_num(np.nanmedian(obtained, 0, keepdims=True))
    commanded = np.zeros_like(obtained)
    if motion is not None:
        flow, _ = make_flow(motion, frames=len(frames), height=height, width=width)
        commanded = flow.numpy().mean(0, keepdims=True)
    full = max(float(np.hypot(*commanded[0]).max()), 1.0)
    return [color_wheel(flow, full=full)[0] for flow in (commanded, obtained)]


def row(frames: np.ndarray, caption: str, motion: dict | None) -> Image.Image:
    """Return one clip as a strip with its text."""
    pictures = [*flows(frames, motion), *(frames[k] for k in SHOWN)]
    strip = Image.fromarray(np.concatenate(pictures, axis=1))
    strip = strip.resize((strip.width * ZOOM, strip.height * ZOOM), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (strip.width + MARGIN, strip.height + 4), "white")
    sheet.paste(strip, (MARGIN, 2))
    words, lines = f"{caption} | {motion or 'free'}".split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 44:
            lines.append("")
        lines[-1] += word + " "
    ImageDraw.Draw(sheet).multiline_text((6, 10), "\n".join(lines), fill="black")
    return sheet


def main() -> None:
    """Generate the clips and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default=str(Path(__file__).with_name("contact-sheet.png")))
    args = parser.parse_args()
    pipe, rows = load("tiny"), []
    for seed, (caption, motion) in enumerate(tqdm(ROWS, "clips")):
        job = Job(caption, seed=seed, steps=args.steps, motion=motion, strength=0.1, preset=None)
        rows.append(row(generate(pipe, job).frames, caption, motion))
    sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), "white")
    top = 0
    for strip in rows:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(args.out, optimize=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
