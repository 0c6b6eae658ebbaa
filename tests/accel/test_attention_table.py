"""``accel bench-attention``: this machine's table of attention, as text, JSON and a picture."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
from helpers import stand_ins
from helpers.stand_ins import StandIn

from accel.attention import attention_table
from accel.attention.attention_table import Shape, timed
from accel.cli import main

SMALL = (Shape("short 16x16", 2, 3, 100, 32), Shape("long 64x64", 1, 4, 300, 64))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(attention_table, "SHAPES", SMALL)


def test_every_shape_has_its_contenders_and_reasons(small):
    short, long = timed(SMALL, torch.float32, torch.device("cpu"))
    assert long["shape"] == "1x4x300x64" and (long["heads"], long["queries"]) == (2, 300)
    assert set(long["milliseconds"]) == {"accel int8", "accel int6", "accel int4", "native"}
    assert long["gain"]["native"] == 1.0 and 0 < long["errors"]["accel int8"] < 0.05
    assert long["errors"]["accel int8"] < long["errors"]["accel int4"] < 0.3
    assert "pays from 128 on" in short["why_not"]["accel int8"] and not short["milliseconds"]
    assert long["why_not"]["sage"] == "not installed"


def test_a_large_call_is_timed_in_part():
    shape = Shape("wan-14b", 1, 40, 75600, 128)
    call = attention_table._call(shape, torch.bfloat16, torch.device("cpu"))
    assert call.key.shape == (1, 2, 75600, 128) and call.query.shape == (1, 2, 258, 128)
    assert call.query.dtype == torch.bfloat16


def test_packages_take_part(small, monkeypatch, tmp_path):
    stand_ins.costs(monkeypatch)
    stand_ins.put_in(monkeypatch, tmp_path, {"flash": StandIn(ms=2)})
    *_, long = timed(SMALL, torch.float32, torch.device("cpu"))
    assert long["gain"]["flash"] == stand_ins.NATIVE / 2


def test_the_command_prints_a_table_and_draws_it(small, capsys, tmp_path):
    picture = tmp_path / "attention.svg"
    assert main(["bench-attention", "--dtype", "fp32", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "long 64x64, 1x4x300x64, float32 (2 heads, 300 queries timed)" in out
    assert "not accel int8: 100 keys" in out and "not installed: " in out
    drawn = ElementTree.parse(picture).getroot()
    texts = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "long 64x64 float32" in texts and "accel int4" in texts and "1.00x" in texts
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}rect"))) == 5


def test_the_command_gives_json(small, capsys):
    assert main(["bench-attention", "long", "--dtype", "bf16", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["dtype"] for row in data["rows"]] == ["bfloat16"] and "torch" in data["environment"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["wann"], "no model named wann; there are: short 16x16, long 64x64"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--device", "meta"], "--device must be cpu or cuda, got 'meta'"),
    ],
)
def test_what_there_is_not_is_refused(small, capsys, words, error):
    assert main(["bench-attention", *words]) == 2
    assert error in capsys.readouterr().err
