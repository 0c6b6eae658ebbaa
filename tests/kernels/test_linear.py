"""8-bit linear layers: native kernels against the eager specification, and that against fp64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from accel.kernels import reference_linear as reference
from accel.kernels.attention_call import DTYPES
from accel.kernels.cpu import linear as cpu
from accel.kernels.cpu.native import library
from accel.kernels.linear import linear, pack, why_not
from accel.kernels.packed_weight import MOST_INPUTS, Packed
from accel.kernels.reference_linear import LinearSpec, quantized_linear

ISAS = ["avx512vnni", "avxvnni", "avx2", "emulated", "scalar"]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "silu"]
# fp32 in the last step: a sum of K products is exact, then a few roundings of eps each.
TIGHT = 2e-6


@pytest.fixture(params=ISAS)
def isa(request):
    lib = library().lib
    if lib is None or not lib.accel_choose_isa(request.param.encode()):
        pytest.skip(f"{request.param} cannot run here")
    yield request.param
    lib.accel_choose_isa(library().isa.encode())


def layer(rows, inputs, channels, dtype=torch.float32, seed=0):
    """x, weight and bias of a layer."""
    g = torch.Generator().manual_seed(seed)
    x, b = torch.randn(rows, inputs, generator=g), torch.randn(channels, generator=g)
    w = torch.randn(channels, inputs, generator=g) / max(inputs, 1) ** 0.5
    return x.to(dtype), w.to(dtype), b.to(dtype)


def specified(isa, x, w, b=None, activation=None, *, hadamard=False, **options):
    spec = LinearSpec(grouped=isa == "avx2", hadamard=hadamard)
    return quantized_linear(x, w, b, spec, activation=activation, **options)


def size(x, w, b):
    """The magnitude of the terms of each result."""
    terms = x.double().abs() @ w.double().abs().T
    return terms + 1 if b is None else terms + b.double().abs() + 1


def assert_tight(out, expected, terms):
    eps = torch.finfo(out.dtype).eps
    bound = TIGHT * terms + (eps * expected.abs() if out.dtype != torch.float32 else 0)
    assert out.isfinite().all()
    assert bool(((out.double() - expected).abs() <= bound + 1e-7).all())


SHAPES = [
    (1, 1, 1), (2, 3, 5), (7, 4, 16), (96, 64, 32), (97, 65, 33), (13, 127, 47), (30, 200, 96),
    (200, 1028, 17), (5, 2100, 48), (385, 36, 20),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_native_kernels_compute_the_specification(isa, shape):
    x, w, b = layer(*shape)
    out = linear(x, pack(w, impl="cpu"), b)
    assert_tight(out, specified(isa, x, w, b), size(x, w, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_formats_and_activations(isa, dtype, activation):
    x, w, b = layer(101, 72, 51, dtype)
    x = x * 3  # both tails of the activations
    out = linear(x, pack(w, impl="cpu"), b, activation=activation)
    assert out.dtype == dtype
    assert_tight(out, specified(isa, x, w, b, activation), size(x, w, b))


@pytest.mark.parametrize("shape", [(50, 96, 40), (9, 35, 16), (20, 24, 3)])
@pytest.mark.parametrize("options", ["smooth", "outliers", "hadamard", "all"])
def test_options(isa, shape, options):
    x, w, b = layer(*shape)
    g = torch.Generator().manual_seed(1)
    x[:, 2] *= 300
    chosen = {
        "smooth": torch.rand(shape[1], generator=g) + 0.3,
        "outliers": torch.tensor([2, shape[1] - 1]),
        "hadamard": True,
    }
    if options != "all":
        chosen = {options: chosen[options]}
    before = [t.clone() for t in (x, w, b, *(v for v in chosen.values() if v is not True))]
    out = linear(x, pack(w, impl="cpu", **chosen), b)
    assert_tight(out, specified(isa, x, w, b, **chosen), size(x, w, b))
    after = (x, w, b, *(v for v in chosen.values() if v is not True))
    assert all(torch.equal(a, c) for a, c in zip(before, after, strict=True))


@pytest.mark.parametrize("extreme", ["largest codes", "alternating", "one sign"])
def test_no_sum_saturates(isa, extreme):
    """Every product at its largest: x at full scale against weights that are all alike."""
    x, w = torch.ones(14, 520), torch.ones(18, 520)
    if extreme == "alternating":
        w[:, ::2], x[:, ::2] = -1, -1
    if extreme == "one sign":
        x[:, 1::2], w[9:] = -1, -w[9:]
    out = linear(x, pack(w, impl="cpu"))
    assert_tight(out, specified(isa, x, w), size(x, w, None))
    # With one peak, constants are exact but for the grouping, whose code is 127 / 4 = 31.75 -> 32.
    exact = x.double() @ w.double().T
    assert float((out.double() - exact).abs().max()) <= 520 * (0.01 if isa == "avx2" else 1e-5)


@pytest.mark.parametrize("isa", ["avx2"], indirect=True)
@pytest.mark.parametrize("tail", [0, 1, 4])
def test_codes_leave_room_for_every_activation(isa, tail):
    """Of four codes that share 16 bits, positive and negative ones each sum to at most 129."""
    g = torch.Generator().manual_seed(tail)
    w = torch.randn(64, 2056, generator=g) ** (2 * tail + 1)
    codes = pack(w, impl="cpu").codes.int()  # [panels, steps, 16, 4]
    pairs = codes.unflatten(1, (-1, 2)).unflatten(-1, (2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(-2)
    for signed in (pairs.clamp_min(0), -pairs.clamp_max(0)):
        most = signed.sum(-1).amax((1, 3))  # of each channel
        assert int(most.max()) <= 32767 // (2 * 127)
    assert bool((pairs.abs().amax((1, 3, 4)) >= 32).all())  # 127 over 4 at worst


@pytest.mark.parametrize("seed", range(8))
def test_no_sum_saturates_at_random(isa, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (13, 264), generator=g) * 2.0 - 1
    w = torch.randn(33, 264, generator=g).sign() * torch.rand(33, 264, generator=g) ** (seed / 4)
    assert_tight(linear(x, pack(w, impl="cpu")), specified(isa, x, w), size(x, w, None))


def test_rounding_is_bounded():
    """The specification's distance to fp64 is at most half a step of each code."""
    for grouped in (False, True):
        x, w, _ = layer(64, 256, 80)
        spec = LinearSpec(grouped=grouped)
        codes = reference.quantize_rows(x, spec, None, None)
        weight = reference.quantize_weight(w, spec, None, None)
        exact = x.double() @ w.double().T
        distance = (reference.multiply(codes, weight, None, None) - exact).abs()
        assert bool((distance <= reference.error_bound(codes, weight) * (1 + 1e-5)).all())
        # Roundings are independent, so together they are far below the bound: on N(0, 1) a code's
        # error is a step / sqrt(12), and a step 1 / 127 of about 3 standard deviations.
        relative = float(distance.norm() / exact.norm())
        assert relative < (0.018 if grouped else 0.012)


def test_fp8_is_specified():
    x, w, b = layer(40, 96, 30)
    out = linear(x, pack(w, precision="fp8", impl="reference"), b)
    exact = x.double() @ w.double().T + b
    assert 0.005 < float((out - exact).norm() / exact.norm()) < 0.05  # three bits of fraction
    assert_tight(out, quantized_linear(x, w, b, LinearSpec("e4m3")), size(x, w, b))


def test_options_take_out_what_they_are_for():
    """A channel of x that is a thousand times louder ruins plain INT8, not with an option."""
    x, w, _ = layer(128, 256, 64)
    x[:, 7] *= 1e4
    exact = x.double() @ w.double().T - x[:, 7:8].double() * w[:, 7].double()

    def error(**options):
        y = linear(x, pack(w, impl="cpu", **options)).double()
        y = y - x[:, 7:8].double() * w[:, 7].double()
        return float((y - exact).norm() / exact.norm())

    assert error() > 0.5
    assert error(outliers=torch.tensor([7])) < 0.02
    smooth = reference.smoothing(x.abs().amax(0), w)
    assert error(smooth=smooth) < error() / 5


def test_smoothing_is_safe():
    w = torch.randn(8, 6)
    w[:, 1] = 0
    peaks = torch.tensor([1.0, 2.0, 0.0, 1e30, 1e-30, 3.0])
    divisor = reference.smoothing(peaks, w)
    assert bool((divisor > 0).all()) and bool(divisor.isfinite().all())
    assert divisor[1] == divisor[2] == 1
    assert bool((reference.smoothing(torch.zeros(6), w) == 1).all())


def test_rotation_is_orthogonal():
    for columns in (1, 6, 96, 128):
        turned = reference.rotate(torch.eye(columns))
        assert torch.allclose(turned @ turned.T, torch.eye(columns), atol=1e-5)


def test_strides(isa):
    x, w, b = layer(60, 40, 24)
    packed = pack(w, impl="cpu")
    wanted = linear(x, packed, b)
    wide = torch.zeros(60, 100)
    wide[:, ::2][:, :40] = x
    steps = torch.zeros(48)
    steps[::2] = b
    same = [
        linear(x.T.contiguous().T, packed, b),
        linear(wide[:, ::2][:, :40], packed, b),
        linear(x, pack(w.T.contiguous().T, impl="cpu"), b),
        linear(x, packed, steps[::2]),
        linear(x.view(3, 4, 5, 40), packed, b).view(60, 24),
        linear(x.view(3, 20, 40).transpose(0, 1), packed, b).transpose(0, 1).reshape(60, 24),
        linear(x[0].expand(60, 40), packed, b)[:1].expand(60, 24),
    ]
    for out in same[:-1]:
        assert torch.equal(out, wanted)
    assert torch.equal(same[-1][0], wanted[0])
    assert linear(x.view(3, 20, 40).transpose(0, 1), packed).is_contiguous()


def test_empty(isa):
    w, b = torch.randn(5, 8), torch.randn(5)
    packed = pack(w, impl="cpu")
    assert linear(torch.randn(0, 8), packed, b).shape == (0, 5)
    assert linear(torch.randn(3, 0, 8), packed, b).shape == (3, 0, 5)
    nothing = linear(torch.randn(4, 0), pack(torch.randn(5, 0), impl="cpu"), b)
    assert torch.equal(nothing, b.expand(4, 5))
    assert linear(torch.randn(2, 8), pack(torch.randn(0, 8), impl="cpu")).shape == (2, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-38, 1e30])
def test_constant_rows_and_channels(isa, value):
    x, w, b = layer(20, 48, 18)
    x[3], x[19] = value, 0
    w[5], w[17] = value, 0
    out = linear(x, pack(w, impl="cpu"), b)
    keep = [i for i in range(18) if i != 5] if value == 1e30 else list(range(18))
    terms = size(x, w, b)
    assert_tight(out[:, keep], specified(isa, x, w, b)[:, keep], terms[:, keep])
    assert torch.equal(out[19], b) or bool((out[19] - b).abs().max() < 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row_and_channel(isa, bad, dtype):
    x, w, b = layer(40, 70, 33, dtype)
    clean = linear(x, pack(w, impl="cpu"), b)
    x[11, 69], w[32, 5] = bad, bad
    for activation in ACTIVATIONS:
        out = linear(x, pack(w, impl="cpu"), b, activation=activation)
        assert bool(out[11].isnan().all()) and bool(out[:, 32].isnan().all())
    others = [i for i in range(40) if i != 11]
    out = linear(x, pack(w, impl="cpu"), b)
    assert torch.equal(out[others][:, :32], clean[others][:, :32])
    assert bool(linear(x, pack(w, impl="reference"), b)[11].isnan().all())


@pytest.mark.parametrize("options", [{}, {"hadamard": True, "outliers": torch.tensor([3])}])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_rows_are_independent_bit_for_bit(isa, impl, options):
    x, w, b = layer(205, 80, 49)
    packed = pack(w, impl=impl, **options)
    whole = linear(x, packed, b, activation="gelu")
    for rows in ([7], [204, 0], range(100, 197), range(5)):
        rows = list(rows)
        assert torch.equal(linear(x[rows], packed, b, activation="gelu"), whole[rows])


@pytest.mark.parametrize("shape", [(1, 5, 3), (97, 64, 50), (900, 40, 20), (0, 8, 4), (3, 0, 4)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_quantized_once_give_the_same_bits(isa, shape, threads, dtype):
    x, w, b = layer(*shape, dtype)
    options = {"hadamard": True}
    if shape[1] > 5:
        options["outliers"] = torch.tensor([1, 4])
    first, second = (pack(weight, impl="cpu", **options) for weight in (w, w * 2))
    before, x = torch.get_num_threads(), x.t().contiguous().t()
    torch.set_num_threads(threads)
    try:
        quantized = cpu.quantize(x, first)
        for packed in (first, second):
            out = cpu.multiply(quantized, x, packed, b, "silu")
            assert torch.equal(out, linear(x, packed, b, activation="silu"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 40, 97, 2000])
def test_threads_change_nothing(isa, rows):
    """Few rows are divided by columns too, many by rows only."""
    x, w, b = layer(rows, 36, 70)
    packed, threads = pack(w, impl="cpu"), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(linear(x, packed, b, activation="silu"))
            assert torch.equal(pack(w, impl="cpu").codes, packed.codes)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("options", [{}, {"hadamard": True, "outliers": torch.tensor([0, 5])}])
def test_the_op_is_one(options):
    x, w, b = layer(18, 24, 10)
    packed = pack(w, impl="cpu", smooth=torch.rand(24) + 0.5, **options)
    torch.library.opcheck(
        torch.ops.accel.linear.default,
        (x, packed.codes, packed.scale, packed.correction, packed.factor, packed.outliers,
         packed.outlier_weight, b, 10, "int8", packed.impl, packed.hadamard, "gelu"),
    )  # fmt: skip


@pytest.mark.slow
def test_compiled_without_a_break():
    x, w, b = layer(18, 24, 10)
    packed = pack(w, impl="cpu")

    def block(x):
        return linear(x * 2, packed, b, activation="gelu") + 1

    out = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(out, block(x))


def test_auto_falls_back_to_torch_with_a_reason(monkeypatch):
    x, w, b = layer(9, 24, 10)
    exact = F.gelu(F.linear(x, w, b))
    assert torch.equal(linear(x, w, b, precision="full", activation="gelu"), exact)
    assert torch.equal(linear(x, w, b, precision="fp8", activation="gelu"), exact)
    assert torch.equal(linear(x, pack(w, precision="full"), b, activation="gelu"), exact)
    assert "full" in why_not(x, pack(w, precision="full"), "int8")
    assert why_not(x, w, "int8") == "" and why_not(x, pack(w, impl="cpu"), "int8") == ""
    assert "GPU" in why_not(x, w, "fp8")
    assert "gradient" in why_not(x, w.clone().requires_grad_(), "int8")
    assert "float64" in why_not(x.double(), w.double(), "int8")
    assert "elements" in why_not(x[:0], w, "int8")
    assert "reference" in why_not(x, pack(w, impl="reference"), "int8")
    assert "meta" in why_not(x.to("meta"), w.to("meta"), "int8")
    wide = torch.zeros(1, MOST_INPUTS + 1)
    assert str(MOST_INPUTS) in why_not(wide, wide, "int8")
    with torch.no_grad():
        assert why_not(x, w.clone().requires_grad_(), "int8") == ""
    trained = w.clone().requires_grad_()
    linear(x, trained, b).sum().backward()  # torch's layer
    assert trained.grad is not None


STARVED = """
import resource, torch
from accel.kernels.linear import linear, pack
torch.set_num_threads(2)
packed, x = pack(torch.zeros(1, 131072), impl="cpu"), torch.zeros(1, 131072)
linear(x.expand(200, -1), packed)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20,) * 2)
try:
    linear(x.expand(3200, -1), packed)
except MemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_threads_without_memory_raise_an_error():
    """Each thread's block of codes is 12 MB here, and the process may take one more."""
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no memory for an 8-bit linear layer of (3200, 1, 131072)" in done.stdout


def test_other_instruction_sets_refuse_the_weight():
    x, w, _ = layer(4, 8, 3)
    lib = library().lib
    try:
        lib.accel_choose_isa(b"scalar")
        packed = pack(w, impl="cpu")
    finally:
        lib.accel_choose_isa(library().isa.encode())
    assert packed.impl == "cpu-scalar"
    with pytest.raises(RuntimeError, match="repack"):
        linear(x, packed)


def test_a_packed_weight_is_a_value():
    packed = pack(torch.randn(20, 16), impl="cpu", outliers=torch.tensor([3, 3, 1]))
    assert isinstance(packed, Packed) and packed.shape == (20, 16)
    assert packed.outliers.tolist() == [1, 3] and packed.device.type == "cpu"
    assert packed.nbytes == 32 * 16 + 32 * 8 + 2 * 8 + 2 * 32 * 4
    assert packed.to("cpu").codes is packed.codes
    with pytest.raises(AttributeError):
        packed.hadamard = True
    with pytest.raises(ValueError, match="pack the weight again"):
        packed.to("meta")


X, W = torch.ones(2, 4), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear(X, torch.ones(3, 5)), ValueError, "K"),
        (lambda: linear(X, W, torch.ones(4)), ValueError, "bias"),
        (lambda: linear(X, W, precision="int4"), ValueError, "int4"),
        (lambda: linear(X, W, activation="relu"), ValueError, "relu"),
        (lambda: linear(X, W, impl="cuda"), ValueError, "cuda"),
        (lambda: linear(X.double(), W), ValueError, "float64"),
        (lambda: linear(X, pack(W, impl="cpu"), impl="reference"), RuntimeError, "packed for"),
        (lambda: pack(W.int()), ValueError, "int32"),
        (lambda: pack(W, smooth=torch.zeros(4)), ValueError, "positive"),
        (lambda: pack(W, smooth=torch.ones(3)), ValueError, "smooth"),
        (lambda: pack(W, outliers=torch.tensor([4])), ValueError, "0 to 3"),
        (lambda: pack(W, outliers=torch.tensor([1.0])), ValueError, "int64"),
        (lambda: pack(W, precision="fp8", impl="cpu"), RuntimeError, "E4M3"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
