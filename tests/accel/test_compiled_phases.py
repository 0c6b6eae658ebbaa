"""A plan with phases under ``torch.compile``: its choices are made at run time, in one graph."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from accel import AttentionConfig, Plan, Rule
from accel.patching import patched
from accel.pipelines.load import load

pytestmark = pytest.mark.slow

STEPS, MOST_GRAPHS = 3, 3
PHASES = (  # which sites run low changes twice in the run
    Rule("full", end=1 / 3),
    Rule("int4", ("blocks.[024].attn1", "blocks.5.*"), start=1 / 3, end=2 / 3),
    Rule("int6", "blocks.[135].attn1", start=2 / 3),
)
JOB = {
    "prompt": "a crescent", "height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 32,
    "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip


def run(pipe):
    return pipe(**JOB, generator=torch.Generator().manual_seed(0)).frames


def ran(handle):
    """Calls by precision over all sites, those kept at full precision included."""
    found = Counter()
    for site in handle.report().sites:
        for how, calls in site.ran.items():
            found[how.split(" by ")[0]] += calls
        found["full"] += sum(site.kept.values())
    return found


@pytest.mark.proof
def test_a_plan_with_phases_compiles_at_most_three_graphs():
    pipe, graphs = load("tiny"), CompileCounter()
    plan = Plan("phases", AttentionConfig("int8", PHASES, impl="reference"))
    with patched(pipe, plan=plan) as handle:
        eager, wanted = run(pipe), ran(handle)
    pipe.transformer.compile(fullgraph=True, backend=graphs)
    with patched(pipe, plan=plan) as handle:
        compiled, found = run(pipe), ran(handle)
        assert 1 <= graphs.frame_count <= MOST_GRAPHS
        run(pipe)
        assert graphs.frame_count <= MOST_GRAPHS  # nor more in a second run
    assert found == wanted and set(found) == {"full", "int8", "int6", "int4"}
    assert sum(found.values()) == STEPS * 2 * 12
    torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-3)
