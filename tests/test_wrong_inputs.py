"""Wrong configurations, plans and jobs: one clear line each, raised where they were written, and
exit code 2 in the command line.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel import AttentionConfig, Multistep, Plan, RehashConfig, Rule, SlicingConfig
from accel.cli import main
from accel.pipelines.job import Job

# Each is written in the line that must be the one that fails.
CONFIGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Plan(attention="int8"), "plan attention must be AttentionConfig or None"),
    (lambda: Plan(slicing=8), "plan slicing must be SlicingConfig or None"),
    (lambda: Plan(rehash={"speedup": 2}), "plan rehash must be RehashConfig or None"),
    (lambda: Plan(name=3), "plan name must be text, got 3"),
    (lambda: SlicingConfig(2.5), "slicing slices must be a whole number from 1, got 2.5"),
    (lambda: SlicingConfig(True), "slicing slices must be a whole number from 1, got True"),
    (lambda: SlicingConfig(4, 0), "slicing min_tokens must be a whole number from 1, got 0"),
    (lambda: AttentionConfig("int7"), "did you mean 'int"),
    (lambda: AttentionConfig(impl="cuda"), "attention impl must be one of"),
    (lambda: AttentionConfig(rules="blocks"), "attention rules must be a list of rules"),
    (lambda: AttentionConfig(rules=[{"precison": "int8"}]), "did you mean 'precision'"),
    (lambda: AttentionConfig(check_rows=1.5), "attention check_rows must be a whole number"),
    (lambda: AttentionConfig(smooth_q="yes"), "attention smooth_q must be true or false"),
    (lambda: AttentionConfig(max_error="0.5"), "attention max_error must be a number"),
    (lambda: Rule("int8", start=0.5, end=0.2), "rule needs 0 <= start < end <= 1"),
    (lambda: Rule("int8", sites=3), "rule sites must be one or more names, got 3"),
    (lambda: RehashConfig(speedup="fast"), "rehash speedup must be a number"),
    (lambda: RehashConfig(keys=(0, 9), steps=5), "rehash keys must be steps of a run of 5 steps"),
    (lambda: RehashConfig(quality=36.0), "needs a measured schedule"),
    (lambda: RehashConfig(order=2), "rehash order must be None, 0 or"),
    (lambda: Multistep([["a"]], [1.0], "Euler"), "must be numbers"),
    (lambda: Job("x", motion={"camera": {"zom": 1.1}}), "did you mean 'zoom'"),
    (lambda: Job("x", strength=2), "strength must be a number from 0 to 1, got 2"),
    (lambda: Job("x", plan={"slicing": {"slices": 0}}), "slicing slices must be a whole number"),
    (lambda: Job("x", plan=7), "plan must be a plan file or a mapping, got 7"),
    (lambda: Job("x", steps=2.0), "steps must be a whole number from 1, got 2.0"),
]


@pytest.mark.parametrize(("make", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_wrong_value_fails_in_the_line_that_wrote_it(make, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        make()
    assert "\n" not in str(caught.value)
    lines = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert lines[1] == "<lambda>" and lines[2] in ("__init__", "__post_init__")


JOBS: list[tuple[dict[str, Any], str]] = [
    ({}, "has no prompt"),
    ({"promt": "x"}, "did you mean 'prompt'"),
    ({"prompt": 3}, "prompt must be text, got 3"),
    ({"prompt": "x", "seed": -1}, "seed must be a whole number from 0"),
    ({"prompt": "x", "width": "64"}, "width must be a whole number from 1, got '64'"),
    ({"prompt": "x", "fps": 0}, "fps must be a number from 0.001"),
    ({"prompt": "x", "format": "avi"}, "format must be one of"),
    ({"prompt": "x", "preset": "balancd"}, "did you mean 'balanced'"),
    ({"prompt": "x", "plan": "nowhere.json"}, "No such file"),
    ({"prompt": "x", "plan": {"version": 9}}, "plan version 9 is not supported"),
    ({"prompt": "x", "plan": {"atention": {}}}, "did you mean 'attention'"),
    ({"prompt": "x", "plan": {"attention": "int8"}}, "plan attention must be a mapping"),
    ({"prompt": "x", "motion": {"cam": 1}}, "did you mean 'camera'"),
    ({"prompt": "x", "motion": {"camera": {"zoom": 9}}}, "camera zoom is a factor per frame"),
    ({"prompt": "x", "motion": {"camera": {"pan": 1}}}, "camera pan must be two numbers"),
    ({"prompt": "x", "motion": {"drag": [{"polygon": [[0, 0]]}]}}, "needs 3 corners or more"),
    ({"prompt": "x", "motion": {"drag": [{"by": [1, 1]}]}}, "motion drag lacks"),
    ({"prompt": "x", "motion": {"flow": "a.npy", "camera": {}}}, "motion flow stands alone"),
    (
        {"prompt": "x", "motion": {"camera": {}}, "strength": {"map": 1}},
        "strength map must be text",
    ),
    ({"prompt": "x", "strength": {"default": 0, "regions": 1}}, "strength regions must be a list"),
]


@pytest.mark.parametrize(("job", "message"), JOBS, ids=range(len(JOBS)))
def test_a_wrong_job_is_one_line_and_exit_code_2(
    job: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [{"prompt": "fine"}, job]}))
    assert main(["motion", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("accel: error: ") and err.count("\n") == 1
    assert message in err and f"{path}, job 2" in err
    assert not (tmp_path / "out").exists()


def test_a_wrong_plan_file_names_itself(tmp_path: Path) -> None:
    for content, message in (("{", "is not a plan"), ("[]", "must be a mapping"), ("\xff", "plan")):
        path = tmp_path / "plan.json"
        path.write_text(content, "latin-1")
        with pytest.raises(ValueError, match=message) as caught:
            Plan.load(path)
        assert str(path) in str(caught.value)
