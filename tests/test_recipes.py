"""Every recipe in the docs is a job file that its pipeline's call takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel.pipelines.batch.jobfile import read_jobs
from accel.pipelines.inputs.binding import check_call
from accel.pipelines.inputs.taken import Takes, takes_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
RECIPES = re.findall(r"\n## ([^\n]+)\n.*?Pipeline: `(\w+)`.*?```yaml\n(.*?)```",
                     PAGE.read_text(), re.DOTALL)  # fmt: skip


def test_there_are_ten() -> None:
    assert len(RECIPES) == 10 == PAGE.read_text().count("```yaml")


@pytest.mark.parametrize(("title", "pipeline", "content"), RECIPES, ids=[r[0] for r in RECIPES])
def test_a_recipe_is_taken(title: str, pipeline: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    taken = takes_of(pipeline)
    assert isinstance(taken, Takes), taken
    for job in read_jobs(path):
        assert job.load_options.pipeline in (None, pipeline)
        check_call(taken, job.resolved())
