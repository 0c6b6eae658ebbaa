"""Pictures of every tab, wide and on a narrow screen, light and dark, to be looked at.

    python tests/bench/screenshots.py --out samples/ui

It renders two jobs of the embedded model with their references first.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.page import chromium, missing, opened, served, tab

WAYS = (("wide", 1100, "light"), ("narrow-dark", 390, "dark"))


def render(page: Any, out: Path) -> None:
    """Two jobs, of which the second follows a drag."""
    page.locator("#go-both").click()
    draw(page)
    tab(page, "Generate")
    page.get_by_label("Seed", exact=True).fill("2")
    page.get_by_label("Acceleration").first.click()
    page.get_by_role("option", name="fast").click()
    page.locator("#go-both").click()
    while len(list(out.glob("*-reference.json"))) < 2:
        time.sleep(0.5)
    page.get_by_label("Steps", exact=True).fill("150")
    page.get_by_label("Seed", exact=True).fill("3")
    page.locator("#go").click()  # something to see while it runs
    page.locator("#now img.preview").wait_for()


def draw(page: Any) -> None:
    """A box that moves and turns."""
    tab(page, "Motion")
    page.locator("[data-do=clear]").click()
    page.locator("[data-do=add]").click()
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "ArrowDown", "r", "r", "r"):
        page.keyboard.press(key)
    page.locator("#flow img").wait_for()


def plan(page: Any) -> None:
    """A little less memory than the job takes as it comes."""
    shown = page.locator("#predicted")
    shown.locator("svg").wait_for()
    (whole,) = re.findall(r"as it comes, decode\s*([\d.]+) GiB", shown.inner_text())
    memory = page.get_by_label("number input for Memory, at most GiB")
    memory.fill(f"{float(whole) - 0.003:.3f}")
    shown.get_by_text("planned, decode").wait_for()


def shoot(page: Any, name: str, folder: Path) -> None:
    """All tabs of one page, each under 300 KB."""
    for what in ("Generate", "Motion", "Queue and gallery", "Compare", "Plan"):
        if what == "Compare":
            tab(page, "Queue and gallery")
            page.locator("[data-act=compare]").first.click()
            page.locator(".compare").wait_for()
        elif what == "Motion":
            draw(page)
        else:
            tab(page, what)
        if what == "Plan":
            plan(page)
        elif what.startswith("Queue"):  # a browser loads only videos that were in sight
            page.locator("#gallery figure").last.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        path = folder / f"ui-{what.split()[0].lower()}-{name}.png"
        page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)


def main() -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/screenshots"))
    args = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        out = Path(folder) / "out"
        with served(out) as address:
            with opened(browser, address) as page:
                render(page, out)
            for name, width, scheme in WAYS:
                with opened(browser, address, width, color_scheme=scheme) as page:
                    shoot(page, name, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
