"""What of a teacher's corrections a divergence can move: numbers of plain forward passes, and the
advice that follows."""

from __future__ import annotations

import pytest
import torch

from sdpo.config.load import load_config
from sdpo.evaluation import Interval
from sdpo.inspection.probe import KindResult, Probe, layout_advice
from sdpo.inspection.reach import Reach, divergence_advice, measure_reach, support_size
from sdpo.models.policy import Policy
from sdpo.parallel import Parallel
from sdpo.records import Rollout
from sdpo.testing import byte_tokenizer, tiny_model

TOP = 5


@pytest.fixture(scope="module")
def policy():
    model = tiny_model(dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform
    return Policy(model=model, tokenizer=byte_tokenizer(), name="tiny")


def an_attempt(seed):
    ids = torch.randint(97, 123, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rollout(
        task_id="t", index=seed, prompt_ids=tuple(ids[:6]), completion_ids=tuple(ids[6:]),
        sampler_logprobs=(), text="", truncated=False, policy_version=0,
    )  # fmt: skip


def test_reach_is_that_of_plain_forward_passes(policy):
    asks = [(an_attempt(n), (100, 101, 102 + n)) for n in range(3)]
    tokens = corrections = unsaid = 0
    outside = 0.0
    for rollout, teacher_prompt in asks:
        rows = {}
        for side, prompt in (("p", rollout.prompt_ids), ("q", teacher_prompt)):
            ids = torch.tensor([[*prompt, *rollout.completion_ids]])
            with torch.no_grad():
                logits = policy.model(ids).logits[0, len(prompt) - 1 : -1, : policy.vocabulary]
            rows[side] = (logits / 0.7).softmax(-1)
        for p, q, said in zip(rows["p"], rows["q"], rollout.completion_ids, strict=True):
            tokens += 1
            if int(q.argmax()) == said:
                continue
            corrections += 1
            unsaid += float(p[q.argmax()]) < 1e-3
            outside += 1 - float(q[p.topk(TOP).indices].sum())
    found = measure_reach(policy, asks, top_k=TOP, temperature=0.7, parallel=Parallel())
    assert (found.num_attempts, found.num_tokens, found.num_corrections) == (3, tokens, corrections)
    assert corrections > 10
    assert found.unsaid == unsaid / corrections
    assert found.outside == pytest.approx(outside / corrections, abs=1e-9)


def a_reach(unsaid):
    return Reach(
        num_attempts=4, num_tokens=40, num_corrections=10, top_k=20, unsaid=unsaid, outside=0.5
    )


@pytest.mark.parametrize(
    ("overrides", "wants"),
    [
        (["objective.divergence={type='jsd', top_k=20}"], "forward_kl"),
        (["objective.divergence.type=reverse_kl"], "forward_kl"),
        (["objective.divergence={type='forward_kl', top_k=20}"], "top_k='all'"),
        (["objective.divergence={type='forward_kl', top_k='all'}"], None),
        (["objective.divergence={type='forward_kl', top_k=20, support='union'}"], None),
        (["objective.type=grpo"], None),
    ],
)
def test_a_divergence_that_cannot_reach_is_named(overrides, wants):
    config = load_config(overrides)
    advice = divergence_advice(a_reach(0.4), config)
    assert (advice is None) == (wants is None)
    assert wants is None or wants in advice
    assert divergence_advice(a_reach(0.01), config) is None


def test_the_advice_is_a_setting():
    config = load_config(["objective.divergence.top_k=7"])
    advice = divergence_advice(a_reach(0.4), config)
    changed = load_config([advice.rpartition(": ")[2]])
    assert changed.objective.divergence.top_k == "all"
    assert divergence_advice(a_reach(0.4), changed) is None
    assert support_size(config) == 7
    assert support_size(changed) == 20


def a_kind(low, mean, high):
    return KindResult(
        num_tasks=8, num_attempts=30, student=0.0, teacher=mean,
        gain=Interval(mean=mean, low=low, high=high, level=0.9),
    )  # fmt: skip


@pytest.mark.parametrize(("there", "advised"), [(0.5, True), (0.25, False), (0.0, False)])
def test_the_other_layout_is_advised_where_it_is_clearly_better(there, advised):
    probe = Probe(
        num_tasks=8, num_attempts=32, num_failed=30,
        kinds={
            "recipe": a_kind(0.1, 0.2, 0.3), "other_layout": a_kind(there, there, there),
        },
    )  # fmt: skip
    advice = layout_advice(probe, load_config([]).teacher.context)
    assert (advice is not None) == advised
    assert not advised or "teacher.context.layout=turns" in advice
