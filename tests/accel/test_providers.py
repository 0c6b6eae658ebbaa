"""Who computes attention: the fastest that is accurate enough, never worse than the user's own.

Stand-ins for packages run below diffusers' own backends (``tests/helpers/stand_ins.py``).
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch as dispatch
from helpers import stand_ins
from helpers.families import FAMILIES
from helpers.runs import forward
from helpers.stand_ins import StandIn

import accel
from accel import AttentionConfig, Plan, Rule
from accel.attention import trial
from accel.attention.providers import candidates, claim_of
from accel.attention.site import Site
from accel.core.diffusers_providers import backend, backends

TORCHS = F.scaled_dot_product_attention
INT8 = Plan("t", AttentionConfig("int8"))


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Put stand-ins in by the names of their backends."""

    def put(ours=stand_ins.OURS, native=stand_ins.NATIVE, **by_name):
        stand_ins.costs(monkeypatch, ours, native)
        stand_ins.put_in(monkeypatch, tmp_path, by_name)
        return by_name

    return put


def wide(heads=2, tokens=160):
    """Return a Wan transformer whose blocks attend to 160 tokens, and its inputs."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=32, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 1, 2 * 10, 2 * tokens // 10),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 12, 16),
    }
    return module, inputs


def call(site, mask=None, causal=False, scale=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, 160, 64, generator=generator) for _ in range(3))
    return site.attend(q, k, v, mask, causal, scale, False)


def site(**config):
    now = SimpleNamespace(step=3, steps=10, sigma=0.5, refresh=lambda: 0)
    return Site("blocks.0.attn1", AttentionConfig(**{"precision": "int8", **config}), now)


MASK = torch.ones(1, 1, 160, 160, dtype=torch.bool).tril()
MEMORY = {"fault": "memory"}
# Situation: config of the site, stand-ins, costs, arguments of the call, who computes it, and
# parts of the reasons why others do not.
SITUATIONS = {
    "the fastest wins": ({}, {"sage": {}, "flash": {"ms": 2}}, {}, {}, "sage", {}),
    "ours wins": ({}, {"sage": {"ms": 8}}, {}, {}, "cpu", {}),
    "torch wins": (
        {}, {"sage": {"ms": 20}}, {"ours": 12}, {}, "torch",
        {"sage": "measured 0.50x", "accel": "measured 0.83x"},
    ),
    "a gain below a twentieth is none": (
        {}, {"sage": {"ms": 9.7}}, {"ours": 30}, {}, "torch", {"sage": "measured 1.03x"}
    ),
    "an exact one may win": ({}, {"_flash_3": {"ms": 2}}, {}, {}, "_flash_3", {}),
    "it raises": ({}, {"sage": {"fault": "raises"}}, {}, {}, "cpu",
                  {"sage": "failed: RuntimeError: CUDA error: no kernel image"}),
    "it gives NaN": ({}, {"sage": {"fault": "nan"}}, {}, {}, "cpu", {"sage": "not finite"}),
    "it is too far off": ({}, {"sage": {"noise": 0.5}}, {}, {}, "cpu", {"sage": "over the limit"}),
    "it claims to be exact and is not": (
        {}, {"flash": {"noise": 0.02}}, {}, {}, "flash", {}
    ),
    "it gives another shape": ({}, {"sage": {"fault": "shape"}}, {}, {}, "cpu",
                               {"sage": "gave no tensor of shape"}),
    "it gives another dtype": ({}, {"sage": {"fault": "dtype"}}, {}, {}, "cpu",
                               {"sage": "its result is float64"}),
    "it writes over its inputs": ({}, {"sage": {"fault": "writes"}}, {}, {}, "cpu",
                                  {"sage": "it changes the key"}),
    "it takes too much memory": ({}, {"sage": MEMORY}, {}, {}, "cpu", {"sage": "MiB of scratch"}),
    "it takes no mask": ({}, {"sage": {}}, {}, {"mask": MASK}, "cpu",
                         {"sage": "`attn_mask` is not supported"}),
    "it takes no scale": ({"providers": ("sage_blackwell_hub", "accel"), "precision": "int4"},
                          {"sage_blackwell_hub": {}}, {}, {"scale": 0.3}, "cpu",
                          {"sage_blackwell_hub": "custom `scale` is not supported"}),
    "four bits are not asked for": ({"providers": ("sage_blackwell_hub", "accel")},
                                    {"sage_blackwell_hub": {}}, {}, {}, "cpu",
                                    {"sage_blackwell_hub": "int4, which the plan does not allow"}),
    "four bits are asked for": ({"providers": ("sage_blackwell_hub",), "precision": "int4"},
                                {"sage_blackwell_hub": {"noise": 0.2}}, {}, {},
                                "sage_blackwell_hub", {"accel": "the plan does not name it"}),
    "from a hub and not named": ({}, {"sage_hub": {}}, {}, {}, "cpu",
                                 {"sage_hub": "from a hub, and the plan does not name it"}),
    "from a hub and named": ({"providers": ("sage_hub",)}, {"sage_hub": {}}, {}, {}, "sage_hub",
                             {}),
    "not installed": ({"providers": ("xformers", "accel")}, {}, {}, {}, "cpu",
                      {"xformers": "not usable because of missing package"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_who_computes_a_call_and_why_not_others(put, name):
    config, faults, costs, arguments, winner, reasons = SITUATIONS[name]
    put(**costs, **{backend: StandIn(**how) for backend, how in faults.items()})
    at = site(**config)
    exact = call(site(precision="full"), **arguments)
    for _ in range(3):
        out = call(at, **arguments)
        assert (out - exact).abs().sum() < 0.3 * exact.abs().sum()
    (verdict,) = at.verdicts.values()
    if winner == "torch":
        assert sum(at.record.kept.values()) == 3 and torch.equal(out, exact)
    else:
        assert {impl: n for (_, impl), n in at.record.ran.items()} == {winner: 3}
    for other, part in reasons.items():
        assert part in verdict.why_not[other]
    assert verdict.baseline == "native"


def test_what_ran_has_the_precision_that_was_measured(put):
    put(flash=StandIn(noise=0.02), _flash_3=StandIn(ms=2))
    at = site()
    call(at)
    assert dict(at.record.ran) == {("int8", "flash"): 1}
    at = site(providers=("_flash_3",))
    call(at)
    assert dict(at.record.ran) == {("full", "_flash_3"): 1}


def test_a_provider_that_raises_midway_loses_nothing(put):
    faults = put(sage=StandIn(), flash=StandIn(ms=2, noise=0.01))
    at = site()
    exact = call(site(precision="full"))
    call(at)
    faults["sage"].fault = "raises"
    out = call(at)
    assert torch.allclose(out, exact, atol=0.1)
    ((why, calls),) = at.record.instead.items()
    assert calls == 1 and why.startswith("int8 by sage failed: RuntimeError: CUDA error")
    assert why.endswith("flash computed it") and at.record.ran[("int8", "flash")] == 1
    asked = faults["sage"].calls
    faults["flash"].fault = "nan"
    assert torch.allclose(call(at), exact, atol=0.1)  # the next in order is ours
    assert at.record.ran[("int8", "cpu")] == 1 and faults["sage"].calls == asked
    at.config = AttentionConfig("int8", providers=("sage", "flash"))
    at.verdicts.clear()
    faults["flash"].fault = ""
    faults["flash"].ms = 50  # too slow now, and sage still raises: nobody is left
    assert torch.equal(call(at), exact)


def test_who_won_is_kept_for_later_processes(put, monkeypatch, tmp_path):
    faults = put(sage=StandIn())
    call(site())
    (file,) = tmp_path.rglob("attention-*.json")
    (known,) = json.loads(file.read_text()).values()
    assert known["order"] == ["sage", "accel", "native"] and known["milliseconds"]["sage"] == 1.0
    monkeypatch.setattr(trial, "_known", {})  # another process
    before = faults["sage"].calls
    at = site()
    call(at)
    assert at.record.ran == {("int8", "sage"): 1} and faults["sage"].calls == before + 1
    monkeypatch.setattr(trial, "_known", {})
    file.write_text(json.dumps({key: {"order": 3} for key in json.loads(file.read_text())}))
    call(site())
    assert faults["sage"].calls > before + 3  # what cannot be read is measured again


def test_options_count_in_the_choice(put):
    put(ours=5)
    one, other = site(), site(smooth_q=True, hadamard=True)
    call(one)
    call(other)
    kinds = [v.kind for at in (one, other) for v in at.verdicts.values()]
    assert kinds[0] != kinds[1] and "smooth_q smooth_v hadamard" in kinds[1]


def test_a_backend_of_the_user_is_honored_and_comes_back(put):
    faults = put(flash=StandIn(ms=8), ours=20)
    module, inputs = wide()
    module.set_attention_backend("flash")
    plain, alone = forward(module, inputs), faults["flash"].calls
    plan = Plan("t", AttentionConfig("int8", (Rule("full", "blocks.0.*"),)))
    with accel.patched(module, plan=plan) as handle:
        out = forward(module, inputs)
        again = forward(module, inputs)
    assert torch.equal(out, plain) and torch.equal(again, plain)
    report = handle.report()
    for one in report.sites:
        assert "full precision here is flash" in one.note and sum(one.kept.values()) == 2
    assert {p.baseline for p in report.providers} == {"flash"}
    before = faults["flash"].calls
    assert torch.equal(forward(module, inputs), plain)
    assert faults["flash"].calls - before == alone == 4
    chosen = module.blocks[0].attn1.processor._attention_backend
    assert chosen == dispatch.AttentionBackendName.FLASH


def test_a_backend_that_is_chosen_while_patched_is_honored(put):
    faults = put(flash=StandIn(ms=8), sage=StandIn(ms=9), ours=20)
    module, inputs = wide()
    handle = accel.patch(module, plan=Plan("t", AttentionConfig("full")))
    for name in ("flash", "sage", "native"):
        module.set_attention_backend(name)
        before = {n: one.calls for n, one in faults.items()}
        forward(module, inputs)
        ran = {n: one.calls - before[n] for n, one in faults.items()}
        assert ran == {n: 4 if n == name else 0 for n in faults}
    module.set_attention_backend("sage")
    forward(module, inputs)
    handle.unpatch()
    chosen = module.blocks[0].attn1.processor._attention_backend
    assert chosen == dispatch.AttentionBackendName.SAGE


def test_a_backend_of_a_context_is_honored(put):
    faults = put(flash=StandIn(ms=8), ours=20)
    module, inputs = wide()
    handle = accel.patch(module, plan=Plan("t", AttentionConfig("full")))
    with dispatch.attention_backend("flash"):
        forward(module, inputs)
        assert faults["flash"].calls == 4
    forward(module, inputs)
    assert faults["flash"].calls == 4
    handle.unpatch()
    assert "_attention_backend" not in vars(module.blocks[0].attn1.processor)


def test_what_a_users_backend_does_not_take_goes_to_torch_and_is_said(put):
    faults = put(sage=StandIn(ms=8), ours=20)
    module, inputs = FAMILIES["ltx"]()  # its text has a mask, which diffusers refuses for sage
    module.set_attention_backend("sage")
    with pytest.raises(ValueError, match="not supported for sage"):
        forward(module, inputs)
    with accel.patched(module, plan=Plan("t", AttentionConfig("full"))) as handle:
        forward(module, inputs)
    text = str(handle.report())
    assert "sage did not take a call, torch computed it (ValueError: `attn_mask`" in text
    assert faults["sage"].calls


def test_unknown_providers_are_refused_before_anything_changes():
    module, _ = wide()
    with pytest.raises(ValueError, match=r"\['sagee'\] are not known; known: \['native', 'accel'"):
        accel.patch(module, plan=Plan("t", AttentionConfig("int8", providers=("sagee",))))
    assert F.scaled_dot_product_attention is TORCHS and not accel.is_patched(module)
    with pytest.raises(ValueError, match="must be a list of names"):
        AttentionConfig("int8", providers="sage")


def test_a_new_backend_of_the_registry_takes_part(put, monkeypatch):
    put(sage=StandIn(ms=8))
    registry, member = dispatch._AttentionBackendRegistry, dispatch.AttentionBackendName._NATIVE_NPU
    monkeypatch.setattr(dispatch, "_CAN_USE_NPU_ATTN", True)

    def newest(query, key, value, is_causal=False):
        stand_ins.clock.spent += 1.0
        heads = (x.transpose(1, 2) for x in (query, key, value))
        return TORCHS(*heads, is_causal=is_causal).transpose(1, 2)

    for table, value in (
        (registry._backends, newest),
        (registry._constraints, []),
        (registry._supported_arg_names, {"query", "key", "value", "is_causal"}),
    ):
        monkeypatch.setitem(table, member, value)
    at = site()
    call(at)
    assert at.record.ran == {("full", "_native_npu"): 1}
    at = site()
    call(at, scale=0.3)
    (verdict,) = at.verdicts.values()
    assert verdict.why_not["_native_npu"] == "it has no argument scale"


def test_the_registry_is_read_as_it_stands():
    known = {name: backend(name) for name in backends()}
    assert {"native", "flash", "sage", "sage_blackwell_hub", "xformers"} <= set(known)
    assert backend("nobody's") is None
    assert known["sage_hub"].remote and not known["sage"].remote
    assert not known["native"].missing() and "sageattention" in known["sage"].missing()
    assert claim_of("sage_blackwell_hub") == "int4" and claim_of("_sage_x") == "int8"
    found, out = candidates((), "native", torch.device("cpu"))
    assert [one.name for one in found] == [] and out["sage"] == "not installed"
    found, _ = candidates((), "native", torch.device("cuda"))
    assert {one.name for one in found} == {"_native_cudnn", "_native_efficient", "_native_flash"}


def test_without_measuring_our_kernel_runs_by_fixed_rules(put, monkeypatch):
    faults = put(sage=StandIn())
    monkeypatch.setenv("ACCEL_MEASURE", "0")
    at = site()
    call(at)
    assert at.record.ran == {("int8", "cpu"): 1} and not faults["sage"].calls


def test_the_report_says_who_won_and_why_not_others(put):
    put(sage=StandIn(ms=2), flash=StandIn(fault="raises"))
    module, inputs = wide()
    with accel.patched(module, plan=INT8) as handle:
        forward(module, inputs)
    text = str(handle.report())
    assert "sage 2 ms, 5.00x native, error" in text
    assert "not flash: failed: RuntimeError: CUDA error: no kernel image" in text
    assert "not installed: " in text and "xformers" in text
    (kind, *_) = [p for p in handle.report().providers if p.winner == "sage"]
    assert kind.gain == 5.0 and kind.milliseconds["accel"] == stand_ins.OURS
    json.dumps(handle.report().to_dict())


def test_another_limit_or_package_is_measured_anew(put, monkeypatch):
    faults = put(sage=StandIn(noise=0.03))
    loose, strict = site(), site(max_error=0.001)
    call(loose)
    assert loose.record.ran == {("int8", "sage"): 1}
    call(strict)
    (verdict,) = strict.verdicts.values()
    assert "over the limit" in verdict.why_not["sage"] and "error 0.001" in verdict.kind
    before = trial._file(torch.device("cpu"), 1)
    monkeypatch.setattr(trial, "version", lambda name: "9.9")
    trial._file.cache_clear()
    assert trial._file(torch.device("cpu"), 1) != before
    asked = faults["sage"].calls
    call(site())
    assert faults["sage"].calls > asked + 3
