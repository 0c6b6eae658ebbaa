"""The page as a server of its own, and Debian's Chromium in front of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCRIPT = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
# Texts whose contrast with what is behind them is under 4.5 : 1 (WCAG AA), with that contrast.
POOR_CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const parse = (color) => {
    const [r, g, b, a = 1] = numbers(color), by = color.startsWith('color(srgb') ? 255 : 1;
    return [by * r, by * g, by * b, a];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[3] * a[i] + (1 - a[3]) * b[i]).concat(1);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => (e ? over(parse(getComputedStyle(e).backgroundColor),
    behind(e.parentElement)) : [255, 255, 255, 1]);
  const poor = {}, texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), e = texts.currentNode.parentElement;
    if (!text || !e.getClientRects().length || /SCRIPT|STYLE|OPTION/.test(e.tagName)) continue;
    if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(e), back = behind(e);
    const color = over(parse(e instanceof SVGElement ? style.fill : style.color), back);
    const [low, high] = [light(color), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    seen += 1;
    if (ratio < 4.5) poor[text.slice(0, 60)] = ratio;
  }
  return seen ? poor : 'no text';
}"""
# What the Tab key reaches, and pictures, that a screen reader has no name for.
NAMELESS = """() => [...document.querySelectorAll(
  'input, select, textarea, button, canvas, video[controls], [tabindex="0"], [role=img]'
)].filter((e) => e.getClientRects().length && (e.tabIndex >= 0 || e.role === 'img')).filter(
  (e) => ![...(e.labels || [])].some((label) => label.innerText.trim())
    && !(e.ariaLabel || e.getAttribute('aria-labeledby') || e.innerText?.trim() || e.title)
).map((e) => e.outerHTML.slice(0, 200))"""
# Texts of charts and tables that lie beside the part of the page that they belong to.
CUT_OFF = """() => [...document.querySelectorAll('svg.chart text, td, th')].filter((e) => {
  const box = e.getBoundingClientRect(), part = e.closest('.ui-html')?.getBoundingClientRect();
  return part && box.width && (box.left < part.left - 1 || box.right > part.right + 1);
}).map((e) => e.textContent)"""
BROKEN_OFF = ("error AbortError", "AbortError", "Unexpected error Connection errored out")
ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(out: Path, *options: str) -> Iterator[str]:
    """``accel ui`` in a process; its address. It must end by itself when it is told to."""
    port = free_port()
    command = [sys.executable, "-m", "accel", "ui", "--out", str(out), "--port", str(port)]
    server = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    said: list[str] = []
    try:
        for line in server.stdout:
            said.append(line)
            if line.startswith("accel ui: http"):
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=said.extend, args=(server.stdout,), daemon=True).start()
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "".join(said)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(240)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert code == 143, "".join(said[-40:])


def missing() -> str:
    """What a browser test lacks here, or ""."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (make)"
    return "" if shutil.which("chromium") else "chromium is not installed (make browser)"


browsing = pytest.mark.skipif(bool(missing()), reason=missing())


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def kept_errors(wrong: list[str]) -> list[str]:
    """Errors that are not of requests that a reload breaks off."""
    return [text for text in wrong if not text.startswith(BROKEN_OFF)]


@contextmanager
def opened(browser: Any, address: str, width: int = 1100, **options: Any) -> Iterator[Any]:
    """A tab on the page. Fails if the page asks anybody else for anything, or reports an error.
    What it shows at the end is printed, which pytest shows for a test that fails.
    """
    from playwright.sync_api import Error

    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page, wrong = context.new_page(), []
    page.set_default_timeout(120_000)

    def asked(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(f"asked {request.url}")

    page.on("request", asked)
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    # What was under way when the page was left ends with an error that nobody sees.
    page.on("framenavigated", lambda _: wrong.__setitem__(slice(None), kept_errors(wrong)))
    try:
        page.goto(address)
        page.locator("#go").wait_for()
        yield page
    finally:
        with suppress(Error):  # the page may be gone
            print(page.locator("body").inner_text(timeout=5000), *wrong, sep="\n")
        context.close()
    assert not wrong, wrong


@contextmanager
def shown(browser: Any, studio: Any) -> Iterator[Any]:
    """A tab on a page over ``studio`` that this process serves."""
    from accel.pipelines.ui.page import Page, launch

    built = Page(studio)
    try:
        with opened(browser, launch(built, "127.0.0.1", free_port(), None)) as found:
            yield found
    finally:
        built.blocks.close(verbose=False)


def until(condition: Callable[[], Any], looks: int = 1200) -> Any:
    """What the condition gives once it is true; looks are counted, as a machine may stand still."""
    for _ in range(looks):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def fill(page: Any, **values: Any) -> None:
    """Type values into the fields of the form that have these labels."""
    for name, value in values.items():
        page.get_by_label(name.capitalize(), exact=True).first.fill(str(value))


def unfold(page: Any, name: str) -> None:
    """Open a part of the page. Gradio makes its fields only then, and what is typed into one in
    that very moment may be lost; after two answers to what the page asks by itself they stand.
    """
    page.get_by_role("button", name=name).first.click()
    for _ in range(2):
        with page.expect_response(lambda response: "/run/" in response.url):
            pass


def tab(page: Any, name: str) -> None:
    """Show a tab; on a narrow screen it may be in the menu of those that do not fit."""
    button = page.get_by_role("tab", name=name, exact=True)
    if button.is_visible():
        button.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
