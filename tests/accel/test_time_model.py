"""The time model: operators counted, tables interpolated and kept, and prices of plans."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import accel
from accel import AttentionConfig, LinearConfig, Plan, RehashConfig, Rule
from accel.cli import main
from accel.kernels import measured
from accel.memory.meta_models import Video, find, in_dtype
from accel.memory.seconds import rate_bench, time_prediction
from accel.memory.seconds.job_work import job_work
from accel.memory.seconds.operator_calls import STREAMS, of_operator
from accel.memory.seconds.operator_kinds import FUNCTIONS
from accel.memory.seconds.operators import Operator, count
from accel.memory.seconds.plan_prices import computed_steps
from accel.memory.seconds.rates import Rates, interpolate
from accel.pipelines.load import tiny_folder

JOB = SimpleNamespace(width=64, height=64, frames=17, steps=10)
CPU, TINIEST = torch.device("cpu"), 1e-12
TOKENS, TEXT, WIDTH, INNER, LAYERS = 5 * 8 * 8, 512, 192, 512, 6


@pytest.fixture(scope="module")
def model():
    return in_dtype(find(str(tiny_folder())), torch.float32)


@pytest.fixture(scope="module")
def work(model):
    return job_work(model, Video(64, 64, 17))


def stand_in(**more):
    """Rates where products take 1 ps for each multiply-add, and bytes 1 ps each."""
    tables = {"matmul": (1, 1, 1), "attention": (1, 1, 1, 1), "pointwise": (1,)}
    found = {f"{kind} float32": {size: TINIEST} for kind, size in tables.items()}
    return Rates({**found, "glue": {(): 1e-9}, **more})


def on_meta(*size):
    return torch.empty(size, device="meta")


def only(run):
    """The operators that are no glue."""
    return {op: n for op, n in count(run).all().items() if op.kind != "glue"}


def test_operations_of_the_embedded_denoiser_are_those_counted_by_hand(work):
    def product(rows, columns, inner):
        return 2 * rows * columns * inner

    block = 6 * product(TOKENS, WIDTH, WIDTH) + 2 * product(TEXT, WIDTH, WIDTH)
    block += 2 * product(TOKENS, WIDTH, INNER)
    block += 2 * product(TOKENS, TOKENS, WIDTH) + 2 * product(TOKENS, TEXT, WIDTH)
    ends = 2 * product(TOKENS, 48, WIDTH) + product(TEXT, WIDTH, 128) + product(TEXT, WIDTH, WIDTH)
    ends += product(1, WIDTH, 64) + product(1, WIDTH, WIDTH) + product(1, 6 * WIDTH, WIDTH)
    (calls,) = work.denoise
    assert calls.times == 2 and work.flops["denoise"] == 2 * (LAYERS * block + ends)
    assert set(calls.counted.attention) == {
        f"blocks.{i}.attn{j}" for i in range(LAYERS) for j in (1, 2)
    }
    assert len(calls.counted.linear) == 10 * LAYERS and calls.output == 4 * 12 * 5 * 16 * 16


def test_operators_have_their_sizes():
    x, weight = on_meta(2, 3, 8, 8), on_meta(6, 3, 3, 3)
    (conv,) = only(lambda: F.conv2d(x, weight, padding=1))
    assert (conv.table, conv.sizes) == ("conv 3x3 float32", (2 * 64, 6, 3))
    assert conv.flops == 2 * 128 * 6 * 3 * 9
    (patches,) = only(lambda: F.conv2d(x, on_meta(6, 3, 2, 2), stride=2))
    assert (patches.kind, patches.sizes) == ("matmul", (32, 6, 12))
    q, k = on_meta(1, 4, 10, 8), on_meta(1, 4, 12, 8)
    (attended,) = only(lambda: F.scaled_dot_product_attention(q, k, k))
    assert attended.sizes == (4, 10, 12, 8) and attended.flops == 4 * 4 * 10 * 12 * 8
    assert only(lambda: x.permute(0, 2, 3, 1).contiguous()) == {
        Operator("transposed", "float32", (2 * x.nbytes,), 0, 2 * x.nbytes): 1
    }
    small = on_meta(4, 1)  # an expanded tensor is read once
    assert only(lambda: small.expand(4, 9) + 1) == {
        Operator("pointwise", "float32", (4 * (4 + 36),), 0, 4 * (4 + 36)): 1
    }


def test_what_is_not_known_is_named():
    (op,) = only(lambda: on_meta(8).sort())
    rates = stand_in()
    assert rates.seconds(op) == pytest.approx(op.nbytes * TINIEST)
    assert op.kind == "other" and rates.missing == {"sort"}
    with pytest.raises(ValueError, match="no times for 'other float32'"):
        Rates().seconds(op)


@pytest.mark.parametrize("kind", [*STREAMS, *sorted(FUNCTIONS - {"gelu"}), "gelu none"])
def test_what_is_timed_is_the_operator_it_stands_for(kind):
    asked = Operator(kind, "float32", (2**17,))
    of_operator(asked, CPU)()  # makes the pool that operands come from
    found = {op for op in only(lambda: of_operator(asked, CPU)()) if op.kind == kind}
    assert found and all(2**16 < op.nbytes < 2**18 for op in found)
    shape = ((1, 2, 3, 8, 8), (4, 2, 3, 3, 3), (1, 1, 1), (0, 1, 1), (1,))
    conv = Operator("conv 3x3x3", "float32", (64, 4, 2), shape=shape)
    assert {op.shape for op in only(of_operator(conv, CPU))} == {shape}


def test_interpolation_keeps_the_points_and_power_laws():
    points = {(n, m): 1e-9 * n * m**0.5 for n in (1, 8, 64) for m in (4, 64)}
    for sizes, seconds in points.items():
        assert interpolate(points, sizes) == pytest.approx(seconds)
    assert interpolate(points, (20, 9)) == pytest.approx(1e-9 * 20 * 3)
    assert interpolate(points, (640, 64)) == pytest.approx(10 * points[64, 64])  # by the work
    assert interpolate(points, (8, 1)) == pytest.approx(points[8, 4])  # a call costs by itself
    left_out = {sizes: s for sizes, s in points.items() if sizes != (64, 64)}
    assert interpolate(left_out, (64, 64)) == pytest.approx(8 * points[8, 64])


def test_a_part_stands_for_an_operator_that_takes_long():
    shape = ((1, 8, 3, 130, 66), (8, 8, 3, 3, 3), (1, 1, 1), (0, 0, 0), (1,))
    conv = Operator("conv 3x3x3", "float32", (128 * 64, 8, 8), shape=shape)
    part, times = rate_bench._part(conv, 4 * rate_bench.LONGEST)
    assert part.shape[0] == (1, 8, 3, 32, 66) and times == pytest.approx(128 / 30)
    attention = Operator("attention", "float32", (torch.get_num_threads(), 4096, 77, 64))
    part, times = rate_bench._part(attention, 4 * rate_bench.LONGEST)
    assert part.sizes[1:] == (1024, 77, 64) and times == 4
    part, times = rate_bench._part(Operator("matmul", "float32", (4096, 8, 8)), 1e-6)
    assert part.sizes == (4096, 8, 8) and times == 1


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A cache of its own, where a table takes no time to measure; the sizes that were timed."""
    timed = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ACCEL_MEASURE", "1")
    monkeypatch.setattr(rate_bench, "_seconds", lambda job, device: timed.append(job) or 2e-6)
    monkeypatch.setattr(rate_bench, "_known", {})
    monkeypatch.setattr(rate_bench, "_doubts", {})
    monkeypatch.setattr(measured, "busy", lambda mine, theirs: "")
    for cached in (rate_bench._file, rate_bench._rates):
        cached.cache_clear()
    yield timed
    for cached in (rate_bench._file, rate_bench._rates):
        cached.cache_clear()


def other_process(monkeypatch):
    monkeypatch.setattr(rate_bench, "_known", {})
    for cached in (rate_bench._file, rate_bench._rates):
        cached.cache_clear()


def test_tables_are_kept_and_measured_anew_for_another_version(kept, monkeypatch, tmp_path):
    said: list[str] = []
    silu = Operator("silu", "float32", (2**16,))
    assert rate_bench.rates(CPU, said.append).seconds(silu) == pytest.approx(2e-6)
    assert said == ["measuring silu float32"] and len(kept) == len(rate_bench.STREAM[0])
    (file,) = tmp_path.rglob("seconds-*.json")
    assert set(json.loads(file.read_text())) == {"silu float32"}
    other_process(monkeypatch)
    rate_bench.rates(CPU).seconds(silu)
    assert len(kept) == len(rate_bench.STREAM[0])
    other_process(monkeypatch)
    monkeypatch.setattr(torch, "__version__", "99.0")
    rate_bench.rates(CPU).seconds(silu)
    assert len(kept) == 2 * len(rate_bench.STREAM[0])
    monkeypatch.setenv("ACCEL_MEASURE", "0")
    with pytest.raises(ValueError, match=r"seconds of 'tanh float32' were never measured"):
        rate_bench.rates(CPU).seconds(Operator("tanh", "float32", (64,)))


def test_times_of_a_busy_machine_are_measured_twice_and_not_kept(kept, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "busy", lambda mine, theirs: "others compute")
    rate_bench.rates(CPU).seconds(Operator("silu", "float32", (64,)))
    assert len(kept) == 2 * len(rate_bench.STREAM[0]) and not list(tmp_path.rglob("*.json"))
    assert rate_bench.doubts(CPU) == ["silu float32, others compute"]


def test_the_largest_operators_are_measured_in_their_own_sizes(kept):
    rates = rate_bench.rates(CPU)
    large = Operator("matmul", "float32", (300, 200, 100))
    small = Operator("matmul", "float32", (3, 20, 10))
    rates.tables["matmul float32"] = {(1, 1, 1): TINIEST}
    rate_bench.measure_own({large: 10, small: 1}, rates, CPU, lambda text: None)
    assert rates.own == {large.key: pytest.approx(2e-6)} and rates.seconds(large) != 6e-6


def test_a_prediction_is_the_sum_of_its_operators(work):
    rates = stand_in()
    found = time_prediction.of_work(work, Plan("plain", attention=None), 10, rates)
    (calls,) = work.denoise

    def price(op):
        if op.kind == "glue":
            return 1e-9
        return TINIEST * (op.flops / {"attention": 4}.get(op.kind, 2) or op.nbytes)

    def cost(one):
        heavy = ("matmul", "attention", "glue")
        return one.times * sum(
            n * (price(op) if op.kind in heavy else TINIEST * op.nbytes)
            for op, n in one.counted.all().items()
        )

    assert found.step == pytest.approx(cost(calls)) and found.denoise == pytest.approx(
        10 * found.step
    )
    assert found.encode == {"text_encoder": pytest.approx(cost(work.encode[0]))}
    assert found.decode == pytest.approx(sum(map(cost, work.decode)))
    assert found.total == pytest.approx(sum(found.kinds.values()))
    assert (found.steps, found.computed, found.reused) == (10, 10, 0)
    (note,) = found.notes
    assert note.startswith("counted as reading and writing memory: ") and "silu float32" in note
    assert "predicted seconds:" in str(found) and "denoise, 10 of 10 steps computed" in str(found)


def test_a_plan_is_priced_by_site_and_step(work):
    def of(plan, steps=10, **more):
        rates = stand_in(**{"reduce float32": {(1,): 1e-30}}, **more)
        return time_prediction.of_work(work, plan, steps, rates)

    plain = of(Plan("plain", attention=None))
    quick = {"attention int8 float32": {(1, 1, 1, 1): TINIEST / 2}}
    full = plain.kinds["attention"]
    encoder = 2 * 2 * 4 * 512 * 512 * 32 * TINIEST
    vae = 5 * 256 * 256 * 32 * TINIEST
    sites = full - encoder - vae
    assert of(Plan(), **quick).kinds["attention"] == pytest.approx(full - sites / 2)
    late = Plan(attention=AttentionConfig("int8", (Rule("full", end=0.5),)))
    assert of(late, **quick).kinds["attention"] == pytest.approx(full - sites / 4)
    some = Plan(attention=AttentionConfig("full", (Rule("int8", sites="blocks.0.*"),)))
    assert of(some, **quick).kinds["attention"] == pytest.approx(full - sites / 2 / LAYERS)
    slow = {"attention int8 float32": {(1, 1, 1, 1): 2 * TINIEST}}
    assert of(Plan(), **slow).denoise == pytest.approx(plain.denoise)  # "auto" leaves it to torch
    named = Plan(attention=AttentionConfig("int8", impl="reference"))
    assert of(named, **slow).kinds["attention"] == pytest.approx(full + sites)
    free = {"linear int8 float32": {(1, 1, 1): 1e-30}}
    linear = of(Plan("l", None, linear=LinearConfig()), **free)
    layers = 2 * 10 * LAYERS * (6 * TOKENS + 2 * TEXT) * WIDTH**2 * TINIEST
    layers += 2 * 10 * LAYERS * 2 * TOKENS * WIDTH * INNER * TINIEST
    assert plain.denoise - linear.denoise == pytest.approx(layers)
    assert of(Plan("l", None, linear=LinearConfig(min_rows=1000)), **free) == plain


def test_skipped_steps_cost_next_to_nothing(work):
    plan = Plan("r", attention=None, rehash=RehashConfig(speedup=1.9))
    found = time_prediction.of_work(work, plan, 20, stand_in())
    assert found.computed == len(computed_steps(plan.rehash, 20)) < 13
    assert 0 < found.reused < 0.01 * found.step
    assert found.denoise == pytest.approx(
        found.computed * found.step + (20 - found.computed) * found.reused
    )
    more = found.with_computed(20)
    assert more == pytest.approx(found.total + (20 - found.computed) * (found.step - found.reused))
    assert computed_steps(plan.rehash, 6) == tuple(range(6))
    keys = RehashConfig(keys=(0, 1, 2, 5, 9), steps=10)
    assert computed_steps(keys, 10) == (0, 1, 2, 5, 9)
    features = Plan("f", attention=None, rehash=RehashConfig(level="features", tail=1))
    one_block = time_prediction.of_work(work, features, 20, stand_in()).reused
    assert one_block == pytest.approx(found.step / LAYERS + found.reused)


def test_the_command_predicts_and_bad_requests_are_refused(model, work, monkeypatch, capsys):
    monkeypatch.setattr(rate_bench, "rates", lambda device, say: stand_in())
    monkeypatch.setattr(rate_bench, "measure_own", lambda *given: None)
    size = ["time", "tiny", "--size", "64x64", "--frames", "17", "--steps", "20"]
    assert main([*size, "--plan", "fast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fast"]["computed"] < found["plain"]["computed"] == 20
    assert main([*size[:-1], "9", "--plan", "fast"]) == 0
    assert "fast, " in (out := capsys.readouterr().out) and "9 steps computed" in out
    assert main([*size[:3], "64"]) == 2
    assert main([*size, "--steps", "0"]) == 2 and "--steps" in capsys.readouterr().err
    with pytest.raises(ValueError, match="width, height and frames, got 64 x 64, None frames"):
        accel.predict_time(model, SimpleNamespace(width=64, height=64, frames=None))
