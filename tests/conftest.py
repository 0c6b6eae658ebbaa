"""Shared setup: helper modules on the path, seeds, and no log noise from libraries."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "samples")]

# Attention's providers are chosen by fixed rules: times of a test machine decide nothing here.
os.environ["ACCEL_MEASURE"] = "0"

from helpers import card  # noqa: E402, F401  before anything else brings Triton in

# Files of long tests: first, so that no process is left alone with one of them at the end.
LONGEST = (
    "test_app", "test_survival", "test_app_refused", "test_app_events", "test_render",
    "test_compiled_slicing", "test_ui_worker", "test_app_inputs", "test_app_attacks", "test_patch",
    "test_calibrate", "test_predict", "test_stream", "test_render_names", "test_gpu_attention",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist hand out files in our order; its own starts with those of the most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of long tests."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Spare collections of garbage the modules that are loaded: imageio collects after each video,
    which otherwise takes a third of a second.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give the garbage back that lies among what was frozen: libraries count it at the end."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def page_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the page that all browser tests and attacks share."""
    folder = tmp_path_factory.mktemp("page") / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for the tests of one file; it has an event loop of its own while it runs."""
    from helpers.page import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def address(page_out: Path) -> Iterator[str]:
    """Where that page is served."""
    from helpers.page import served

    with served(page_out) as url:
        yield url


@pytest.fixture
def jobs(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of quick jobs, from entries and further defaults; returns its path."""
    from helpers.job_files import write_jobs

    return partial(write_jobs, tmp_path)
