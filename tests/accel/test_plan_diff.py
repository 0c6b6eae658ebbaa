"""``accel plan-diff``: every field that differs has its line, and what is equal has none."""

from __future__ import annotations

import pytest

from accel import AttentionConfig, Plan, Rule, SlicingConfig
from accel.cli import main
from accel.core.differences import differences


@pytest.mark.parametrize(
    ("a", "b", "lines"),
    [
        ({"x": 1, "y": [1, 2]}, {"x": 1, "y": [1, 2]}, []),
        ({"x": 1}, {"x": 2}, ["x: 1 -> 2"]),
        ({"x": None}, {"x": {"y": 0}}, ["x: none -> {'y': 0}"]),
        ({"x": {"y": 1}}, {"x": {"z": 1}}, ["x.y: 1 -> none", "x.z: none -> 1"]),
        ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 3}], ["[1].b: 2 -> 3"]),
        ({"x": [{"a": 1}]}, {"x": []}, ["x: [{'a': 1}] -> []"]),
        ({"keys": list(range(99))}, {"keys": []}, [f"keys: {str(list(range(99)))[:57]}... -> []"]),
    ],
)
def test_each_difference_has_a_line(a, b, lines):
    assert list(differences(a, b)) == lines


def test_two_plans_are_compared(tmp_path, capsys):
    a = Plan("mine", AttentionConfig("int8", (Rule("full", end=0.2),)))
    b = Plan("mine", AttentionConfig("int4", (Rule("full", end=0.3),)), SlicingConfig(4))
    a.save(tmp_path / "a.json")
    b.save(tmp_path / "b.json")
    assert main(["plan-diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["attention.precision: int8 -> int4", "attention.rules[0].end: 0.2 -> 0.3"]
    assert lines[2].startswith("slicing: none -> ") and len(lines) == 3
    assert main(["plan-diff", "fast", "fast"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    (tmp_path / "c.json").write_text("{")
    assert main(["plan-diff", "fast", str(tmp_path / "c.json")]) == 2
    assert "c.json is not a plan" in capsys.readouterr().err
