"""Whether an 8-bit layer pays: measured once per kind of call, kept, and what loses left alone."""

from __future__ import annotations

import json
import os
import statistics

import pytest
import torch
from helpers import linear_kernels
from helpers.families import FAMILIES
from helpers.linear_kernels import called, ours, site
from helpers.runs import forward

import accel
from accel.kernels import measured
from accel.linear import pays


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    linear_kernels.put_in(monkeypatch, tmp_path)


@pytest.fixture
def layer():
    return torch.nn.Linear(48, 40).requires_grad_(False)


def rows(count=64):
    return torch.randn(2, count // 2, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gained", [0.8, 1.6])
def test_what_was_measured_decides_and_is_kept(monkeypatch, layer, gained, tmp_path):
    timed = []

    def turns(jobs, device, repeats, burst=1):
        timed.append([job().shape for job in jobs])
        return [[1.0] * repeats, [gained] * repeats]

    monkeypatch.setattr(measured, "turns", turns)
    at, x = site(impl="auto"), rows(96)
    for _ in range(3):
        out = called(at, layer, x)
    assert timed == [[(64, 40), (64, 40)]]  # real rows, down to a power of two
    assert at.gains == {"int8 float32 64 x 48 -> 40": gained}
    assert bool(at.record.ran) == (gained > 1) == (not torch.equal(out, layer(x)))
    if gained < 1:
        why = "torch's own linear layer is faster on this machine: measured 0.80x"
        assert at.record.kept == {why: 3} and at.never_pays() and not at.weight.nbytes
    (file,) = tmp_path.rglob("linear-*.json")
    assert json.loads(file.read_text()) == at.gains
    monkeypatch.setattr(pays, "_known", {})  # another process
    called(site(impl="auto"), layer, x)
    assert len(timed) == 1
    called(site(impl="auto"), layer, rows(2 * 4096))
    assert timed[1:] == [[(2048, 40), (2048, 40)]]


def test_kinds_differ_in_what_decides_the_time(layer):
    config = site().config
    kinds = {
        pays.kind(x, n, p, c)
        for x in (torch.zeros(100, 48), torch.zeros(100, 48).bfloat16(), torch.zeros(300, 48))
        for n in (40, 80)
        for p in ("int8", "fp8")
        for c in (config, site(smooth=True).config, site(outliers=3).config)
    }
    assert len(kinds) == 36
    assert [pays.rows_of(n) for n in (1, 127, 128, 5000)] == [1, 64, 128, 2048]


def test_a_layer_that_does_not_pay_is_left_alone(monkeypatch):
    model, inputs = FAMILIES["wan"]()
    plain = forward(model, inputs)
    sizes = []

    def turns(jobs, device, repeats, burst=1):
        sizes.append(jobs[1]().shape)
        return [[1.0] * repeats, [2.0 if sizes[-1][-1] == 32 else 0.5] * repeats]

    monkeypatch.setattr(measured, "turns", turns)
    handle = accel.patch(model, plan=ours(impl="auto"))
    out = forward(model, inputs)
    assert not torch.equal(out, plain)
    again = forward(model, inputs)
    assert torch.equal(out, again)
    wide, narrow = model.blocks[0].ffn.net[0].proj, model.blocks[0].ffn.net[2]
    assert "forward" in vars(wide) and "forward" not in vars(narrow)
    report = handle.report()
    ((why, names),) = report.linear.left.items()
    assert "measured 0.50x" in why and len(names) == 18 and len(report.layers) == 2
    assert "used: int8 float32 64 x 24 -> 32" in str(report)
    assert len(sizes) == len(report.linear.gains) == len(set(report.linear.gains))
    accel.unpatch(model)
    assert "forward" not in vars(wide) and torch.equal(forward(model, inputs), plain)


QUIET = ([1.0, 1.1, 1.0, 0.9, 1.0, 1.05, 3.0], [2.0, 2.2, 2.1, 1.8, 2.0, 2.1, 6.0])
BUSY = ([1.0, 1.1, 3.0, 0.9, 1.0, 2.5, 3.0], [2.0, 2.2, 2.1, 1.8, 5.0, 2.1, 2.0])


@pytest.mark.parametrize(
    ("times", "load", "why"),
    [
        (QUIET, 0.0, ""),  # one slow round hits both
        (BUSY, 0.0, "its rounds gave 0.70x to 2.00x"),
        (QUIET, 1.2 * (os.cpu_count() or 1), ""),
        (QUIET, 3.0 * (os.cpu_count() or 1), "threads wanted"),
    ],
)
def test_what_a_busy_machine_gave_is_used_and_not_kept(monkeypatch, tmp_path, times, load, why):
    model, inputs = FAMILIES["wan"]()
    monkeypatch.setattr(measured, "turns", lambda *a, **k: times)
    monkeypatch.setattr(measured, "_load", lambda: load)
    assert why in measured.busy(*times) and bool(why) == bool(measured.busy(*times))
    handle = accel.patch(model, plan=ours(impl="auto"))
    forward(model, inputs)
    report = handle.report()
    gained = statistics.median(times[1]) / statistics.median(times[0])
    assert set(report.linear.gains.values()) == {gained} and report.linear.ran
    stored = [measured.read(file) for file in tmp_path.rglob("linear-*.json")]
    assert stored == ([] if why else [report.linear.gains])
    note = f"measured on a busy machine ({why}"
    assert str(report).count("measured on a busy machine") == len(report.linear.gains) * bool(why)
    assert not why or "threads" in why or note in str(report)
    accel.unpatch(model)
    asked = []
    quiet = [[1.0] * 7, [2.0] * 7]
    monkeypatch.setattr(measured, "turns", lambda *a, **k: asked.append(a) or quiet)
    monkeypatch.setattr(measured, "_load", lambda: 0.0)
    with accel.patched(model, plan=ours(impl="auto")):  # the same process measures no more
        forward(model, inputs)
    assert not asked
    monkeypatch.setattr(pays, "_known", {})  # another process
    with accel.patched(model, plan=ours(impl="auto")) as handle:
        forward(model, inputs)
        assert bool(why) == bool(asked) and "busy machine" not in str(handle.report())


def test_times_are_medians_of_turns():
    order = []
    jobs = [lambda: order.append("a"), lambda: order.append("b")]
    times = measured.alternate(jobs, torch.device("cpu"), 3, burst=2)
    assert "".join(order) == "ab" + "aabb" * 3 and all(t >= 0 for t in times)


def test_files_that_cannot_be_read_or_written_cost_a_measurement(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    assert measured.read(tmp_path / "bad.json") == {} == measured.read(tmp_path / "list.json")
    (tmp_path / "file").write_text("")
    measured.write(tmp_path / "file" / "x.json", {"a": 1})  # no folder can be made there
    measured.write(tmp_path / "new" / "x.json", {"a": 1})
    assert measured.read(tmp_path / "new" / "x.json") == {"a": 1}
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "x.json"]
