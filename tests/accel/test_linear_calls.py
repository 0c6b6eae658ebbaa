"""One layer's calls: what goes to torch and why, and the guard."""

from __future__ import annotations

import pytest
import torch
from helpers import linear_kernels
from helpers.linear_kernels import at_step, called, site
from torch._subclasses.fake_tensor import FakeTensorMode

from accel.kernels import measured


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    linear_kernels.put_in(monkeypatch, tmp_path)


@pytest.fixture
def layer():
    return torch.nn.Linear(48, 40).requires_grad_(False)


def rows(count=64, dtype=torch.float32):
    return torch.randn(2, count // 2, 48, generator=torch.Generator().manual_seed(0)).to(dtype)


# -------------------------------------------------------------------------------- what torch runs


def traced(x, function):
    return torch.jit.trace(function, (x,), check_trace=False)(x)


def tangents(x, function):
    return torch.func.jvp(function, (x,), (x,))[1]


def mapped(x, function):
    return torch.func.vmap(function)(x[None])


def negated(x, function):
    return function(torch.complex(x, x).conj().imag)


class Tagged(torch.Tensor):
    """A subclass whose memory the kernels know nothing of."""


def subclassed(x, function):
    return function(x.as_subclass(Tagged)).as_subclass(torch.Tensor)


def symbolic(x, function):
    return torch.fx.experimental.proxy_tensor.make_fx(lambda y: function(y))(x)(x)


def autocast(x, function):
    with torch.autocast("cpu", torch.bfloat16):
        return function(x)


def gradients(x, function):
    return function(x.clone().requires_grad_()).detach()


def empty(x, function):
    return function(x[:, :0])


def few(x, function):
    return function(x[0, :3])


WAYS = {
    traced: "inside torch.jit.trace",
    tangents: "inside",
    mapped: "inside a transform of torch.func",
    negated: "a tensor whose memory does not hold its values",
    subclassed: "a tensor of class Tagged",
    symbolic: "inside a dispatch mode of torch, such as make_fx",
    autocast: "under autocast",
    gradients: "needs gradients",
    empty: "a tensor without elements",
    few: "fewer than 8 rows",
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_unusual_calls_get_torchs_answer_and_a_reason(layer, way):
    at = site()
    exact = way(rows(), layer.forward)
    out = way(rows(), lambda x: called(at, layer, x))
    assert torch.equal(out, exact) and out.dtype == exact.dtype
    assert not at.record.ran and not at.weight.packs
    assert at.record.kept and all(why.startswith(WAYS[way]) for why in at.record.kept)


def test_fake_and_meta_tensors_give_a_shape(layer):
    at = site()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert called(at, layer, mode.from_tensor(rows())).shape == (2, 32, 40)
    meta = torch.nn.Linear(48, 40, device="meta")
    assert called(at, meta.requires_grad_(False), rows().to("meta")).shape == (2, 32, 40)
    assert not at.record.ran and sum(at.record.kept.values()) == 2


@pytest.mark.parametrize("bad", ["dtype", "size"])
def test_mistakes_raise_torchs_error(layer, bad):
    x = rows().double() if bad == "dtype" else rows()[..., :40]
    with pytest.raises(RuntimeError) as theirs:
        layer.forward(x)
    at = site()
    with pytest.raises(RuntimeError) as mine:
        called(at, layer, x)
    assert str(mine.value) == str(theirs.value) and not at.record.ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_near_and_of_the_inputs_dtype(dtype, bias):
    layer = torch.nn.Linear(48, 40, bias=bias, dtype=dtype).requires_grad_(False)
    x, at = rows(dtype=dtype), site()
    before = x.clone()
    for given in (x, x.transpose(0, 1), x[0], x[:, ::2]):
        out, exact = called(at, layer, given), layer(given)
        assert out.dtype == dtype and out.shape == exact.shape
        assert (out - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert torch.equal(x, before) and at.record.ran == {("int8", "reference"): 4}


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_programs_defaults_change_nothing(layer, default):
    x = rows()
    out = called(site(smooth=True, outliers=2), layer, x)
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            again = called(site(smooth=True, outliers=2), layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, again)


def test_smoothing_and_outliers_help_where_channels_differ(layer):
    x = rows()
    x[..., 7] *= 300
    error = {}
    exact = layer(x)
    for name, options in {"plain": {}, "smooth": {"smooth": True}, "out": {"outliers": 1}}.items():
        out = called(site(max_error=1.0, **options), layer, x)
        error[name] = float((out - exact).abs().sum() / exact.abs().sum())
    assert error["smooth"] < 0.7 * error["plain"] and error["out"] < 0.3 * error["plain"]


def test_a_bias_that_is_trained_has_its_gradient(layer):
    layer.bias.requires_grad_()
    at = site()
    called(at, layer, rows()).sum().backward()
    assert layer.bias.grad is not None and at.record.kept == {"needs gradients": 1}


def test_kernels_are_asked_for_what_they_will_be_given(layer, monkeypatch):
    """A packed weight, where there is one: the weight itself may be on the CPU by then."""
    asked = []
    monkeypatch.setattr(linear_kernels, "why_not", lambda x, w, *_: asked.append(type(w)) or "")
    monkeypatch.setattr(measured, "turns", lambda *a, **k: [[1.0] * 7, [2.0] * 7])
    at = site(impl="auto")
    for _ in range(2):
        called(at, layer, rows())
    called(at, layer, rows()[:, 8:])
    assert asked == [torch.nn.Parameter, linear_kernels.Packed]  # once for each kind of call
    monkeypatch.setattr(linear_kernels, "why_not", lambda *_: "no such kernel here")
    called(at, layer, rows())
    other = rows()[:, 16:]
    assert torch.equal(called(at, layer, other), layer(other))
    assert at.record.kept == {"no such kernel here": 1}


# ---------------------------------------------------------------------------------------- guard


def test_a_row_that_is_not_finite_is_what_torch_makes_of_it(layer):
    x = rows()
    x[0, 3, 5], x[1, 2, 1] = float("nan"), float("inf")
    at, exact = site(), layer(x)
    for _ in range(2):
        assert _same(called(at, layer, x), exact)
    assert set(at.record.recomputed) == {"result not finite, nor is torch's"}
    called(at, layer, rows())
    assert at.record.ran == {("int8", "reference"): 1}  # the site itself is not at fault


def _same(a, b):
    return torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5))


def test_a_kernel_that_gives_nan_is_replaced_for_the_rest_of_the_run(layer, monkeypatch):
    real, state = linear_kernels.linear, at_step()
    monkeypatch.setattr(linear_kernels, "linear", lambda *a, **k: real(*a, **k) * torch.nan)
    at, exact = site(state), layer(rows())
    assert torch.equal(called(at, layer, rows()), exact)
    assert torch.equal(called(at, layer, rows()), exact)
    assert at.record.recomputed == {"result not finite": 1}
    assert at.record.kept == {"demoted: result not finite": 1}
    monkeypatch.setattr(linear_kernels, "linear", real)
    state.refresh = lambda: 2  # the next run tries again
    called(at, layer, rows())
    assert at.record.ran == {("int8", "reference"): 1}


@pytest.mark.parametrize("name", ["linear", "pack"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_a_kernel_that_fails_leaves_the_call_to_torch(layer, monkeypatch, name, impl):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(measured, "turns", lambda *a, **k: [[1.0] * 7, [2.0] * 7])
    monkeypatch.setattr(linear_kernels, name, fail)
    at = site(impl=impl)
    if (name, impl) == ("pack", "reference"):  # a named one runs or raises
        with pytest.raises(RuntimeError, match="no memory"):
            called(at, layer, rows())
        return
    assert torch.equal(called(at, layer, rows()), layer(rows()))
    assert "failed: RuntimeError: no memory" in at.demoted_why and not at.record.ran


def test_sampled_rows_are_compared_once_in_every_quarter(layer):
    state, compared = at_step(), []
    at = site(state)
    real = at.judge
    at.judge = lambda *a: compared.append(state.step) or real(*a)
    for step in range(10):
        state.step = step
        for _ in range(2):
            called(at, layer, rows())
    assert compared == [0, 3, 5, 8] and 0 < at.record.error < 0.02 < 0.9999 < at.record.cosine


def test_a_result_that_is_too_far_off_is_computed_again(layer):
    at = site(max_error=0.001)
    assert torch.equal(called(at, layer, rows()), layer(rows()))
    (why,) = at.record.recomputed
    assert "int8 has error" in why and "over the limit of 0.001" in why
