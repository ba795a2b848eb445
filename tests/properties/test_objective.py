"""`objective_loss` against `losses/reference.py`, and its invariances: split, order, routing and
masks.

A batch here is a list of rollouts with random hidden states; `evaluate` does what the trainer does
with it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_specs import distill, pg

from sdpo.config.objective import HybridConfig, SdpgConfig
from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.advantages import group_advantages
from sdpo.losses.objective import Denominators, ObjectiveResult, count_denominators, objective_loss
from sdpo.losses.reference import Token, reference_counts, reference_objective
from sdpo.losses.routing import Rule, grpo, hybrid, route, sdpo, srpo
from sdpo.losses.specs import KlSpec, ObjectiveSpec, RlcsdCredit, RlsdCredit
from sdpo.losses.token_batch import OldSupport, TokenBatch
from sdpo.objectives import objective_spec, routing_rule
from sdpo.records import Group, Rollout, Sample, Task, TeacherContext, Verdict

HYBRID = hybrid(0.3)
WIDTH, VOCABULARY, SUPPORT, NEGATIVES = 5, 11, 3, 2
TOKENS = 9
"""Ids that are sampled: with `vocabulary=TOKENS`, the head has rows beyond."""
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Attempt:
    """A rollout as the loss sees it: one row per trained token."""

    sample: Sample
    student: torch.Tensor
    teacher: torch.Tensor | None
    initial: torch.Tensor
    trust: torch.Tensor
    old_logprobs: torch.Tensor
    old_support: OldSupport
    negatives: torch.Tensor

    @property
    def length(self) -> int:
        return len(self.student)


class World:
    """Random heads and attempts of two tasks; deterministic in the seed."""

    def __init__(self, seed: int = 0, *, rule: Rule = HYBRID, solved=(1, 0, 0, 0, 1)) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.head = self.normal(VOCABULARY, WIDTH)
        self.teacher_head = self.normal(VOCABULARY, WIDTH)
        self.initial_head = self.normal(VOCABULARY, WIDTH)
        self.attempts = [*self.group("a", solved[:3], rule), *self.group("b", solved[3:], rule)]

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def group(self, task_id: str, solved: tuple[int, ...], rule: Rule) -> list[Attempt]:
        group = make_group(task_id, solved)
        # The first attempt of every group has nothing to be taught.
        contexts = [
            TeacherContext(messages=None if i == 0 else ({"role": "user", "content": "x"},))
            for i in range(len(solved))
        ]
        advantages = group_advantages(group.rewards)
        routes = route(replace(group, contexts=tuple(contexts)), rule)
        return [
            self.attempt(task_id, i, advantages[i], routes[i], contexts[i].messages is not None)
            for i in range(len(solved))
        ]

    def attempt(self, task_id, index, advantage, weights, has_teacher) -> Attempt:
        length = int(torch.randint(1, 5, (), generator=self.rng))
        ids = torch.randint(TOKENS, (length,), generator=self.rng)
        student = self.normal(length, WIDTH)
        logprobs = (student @ self.head.T).log_softmax(-1)[range(length), ids]
        sampler = logprobs + 0.5 * self.normal(length)
        return Attempt(
            sample=Sample(
                task_id=task_id,
                index=index,
                prompt_ids=(0,),
                completion_ids=tuple(ids.tolist()),
                loss_mask=(True,) * length,
                sampler_logprobs=tuple(sampler.tolist()),
                teacher_prompt_ids=(1, 2) if has_teacher else None,
                advantage=advantage,
                component_weights=weights,
            ),
            student=student,
            teacher=self.normal(length, WIDTH) if has_teacher else None,
            initial=self.normal(length, WIDTH),
            trust=self.normal(length, WIDTH),
            old_logprobs=logprobs + 0.3 * self.normal(length),
            negatives=-self.normal(length, NEGATIVES).abs(),
            old_support=self.old_support(length),
        )

    def old_support(self, length: int) -> OldSupport:
        top = self.normal(length, VOCABULARY).log_softmax(-1).topk(SUPPORT)
        return OldSupport(ids=top.indices, logprobs=top.values)


def make_group(task_id: str, solved: tuple[int, ...]) -> Group:
    rollouts = tuple(
        Rollout(
            task_id=task_id,
            index=i,
            prompt_ids=(0,),
            completion_ids=(1,),
            sampler_logprobs=(-1.0,),
            text="",
            truncated=False,
            policy_version=0,
        )
        for i in range(len(solved))
    )
    verdicts = tuple(Verdict(reward=float(s), solved=bool(s)) for s in solved)
    return Group(task=Task(id=task_id, messages=()), rollouts=rollouts, verdicts=verdicts)


def teacher_first(attempts: list[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda a: a.teacher is None)


def batch_of(
    attempts: list[Attempt],
    spec: ObjectiveSpec,
    *,
    off_policy: bool,
    dtype: torch.dtype = torch.float64,
) -> TokenBatch:
    """Columns of a micro-batch, as the trainer makes them."""

    def column(values) -> torch.Tensor:
        return torch.tensor(
            [v for a, v in zip(attempts, values, strict=True) for _ in range(a.length)],
            dtype=dtype,
        )

    samples = [a.sample for a in attempts]
    old_support = None
    if spec.distill is not None and spec.distill.importance == "logit":
        supports = [a.old_support for a in attempts if a.teacher is not None]
        nothing = torch.zeros(0, SUPPORT, dtype=torch.float64)
        old_support = OldSupport(
            ids=torch.cat([nothing.long(), *(s.ids for s in supports)]),
            logprobs=torch.cat([nothing, *(s.logprobs for s in supports)]),
        )
    return TokenBatch(
        num_taught=sum(a.length for a in attempts if a.teacher is not None),
        targets=torch.tensor([i for s in samples for i in s.completion_ids], dtype=torch.long),
        sampler_logprobs=torch.tensor(
            [v for s in samples for v in s.sampler_logprobs], dtype=dtype
        ),
        old_logprobs=torch.cat([a.old_logprobs for a in attempts]).to(dtype)
        if off_policy
        else None,
        advantages=column([s.advantage for s in samples]),
        distill_weights=column([s.component_weights.get("distill", 0.0) for s in samples]),
        pg_weights=column([s.component_weights.get("pg", 0.0) for s in samples]),
        sequence_ids=column(range(len(samples))).long(),
        sequence_lengths=column([a.length for a in attempts]).long(),
        negative_teacher_logprobs=torch.cat([a.negatives for a in attempts]).to(dtype),
        old_support=old_support,
    )


def rows(parts: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat(parts) if parts else None


@dataclass
class Evaluation:
    """Components, gradient per attempt and of the head, numbers per token."""

    parts: torch.Tensor
    hidden: dict[tuple[str, int], torch.Tensor]
    head: torch.Tensor
    results: list[ObjectiveResult]
    tokens: list[Token]
    """The reference's."""


def evaluate(
    world: World,
    spec: ObjectiveSpec,
    *,
    micro_batches: list[list[int]] | None = None,
    off_policy: bool = False,
    counts: Denominators | None = None,
    is_reference: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Evaluation:
    samples = [a.sample for a in world.attempts]
    counts = count_denominators(samples, spec) if counts is None else counts
    head = world.head.to(dtype).requires_grad_()
    out = Evaluation(torch.zeros(3, dtype=torch.float64), {}, torch.zeros_like(head), [], [])
    for indices in micro_batches or [list(range(len(world.attempts)))]:
        attempts = teacher_first([world.attempts[i] for i in indices])
        batch = batch_of(attempts, spec, off_policy=off_policy, dtype=math_dtype(dtype))
        hidden = torch.cat([a.student for a in attempts]).to(dtype).requires_grad_()
        has_trust = spec.trust is not None
        teacher = rows([a.teacher for a in attempts if a.teacher is not None])
        trust = rows([a.trust for a in attempts if a.teacher is not None]) if has_trust else None
        initial = rows([a.initial for a in attempts]) if spec.kl else None
        heads = (world.teacher_head.to(dtype), world.initial_head.to(dtype))
        narrow = [None if x is None else x.to(dtype) for x in (teacher, initial, trust)]
        if is_reference:
            both = zip(narrow, (heads[0], heads[1], heads[1]), strict=True)
            dense = [None if x is None else x @ own.T for x, own in both]
            named, out.tokens = reference_objective(
                hidden @ head.T,
                dense[0],
                batch,
                spec,
                reference_counts(samples, spec),
                initial_logits=dense[1],
                trust_logits=dense[2],
            )
            parts = torch.stack([named["distill"], named["pg"], named["kl"]])
            loss = parts.sum()
        else:
            result = objective_loss(
                hidden,
                head,
                narrow[0],
                heads[0],
                batch,
                spec,
                counts,
                reference_hidden=narrow[1],
                reference_head=heads[1],
                trust_hidden=narrow[2],
                chunk_tokens=4,
            )
            loss, parts = result.loss, torch.stack([result.distill, result.pg, result.kl])
            torch.testing.assert_close(loss.detach(), parts.sum())
            out.results.append(result)
        gradient, head_gradient = torch.autograd.grad(loss, (hidden, head))
        for attempt, part in zip(
            attempts, gradient.split([a.length for a in attempts]), strict=True
        ):
            out.hidden[attempt.sample.task_id, attempt.sample.index] = part
        out.head += head_gradient
        out.parts += parts.detach()
    return out


def assert_same(a: Evaluation, b: Evaluation, **tolerance: float) -> None:
    tolerance = tolerance or TIGHT
    torch.testing.assert_close(a.parts, b.parts, **tolerance)
    torch.testing.assert_close(a.head, b.head, **tolerance)
    assert a.hidden.keys() == b.hidden.keys()
    for key in a.hidden:
        torch.testing.assert_close(a.hidden[key], b.hidden[key], **tolerance)


def number(x: torch.Tensor | float | None) -> float:
    return float("nan") if x is None else float(torch.as_tensor(x).detach())


def assert_equals_reference(world: World, spec: ObjectiveSpec, *, off_policy: bool = False) -> None:
    ours = evaluate(world, spec, off_policy=off_policy)
    theirs = evaluate(world, spec, off_policy=off_policy, is_reference=True)
    assert_same(ours, theirs)
    outputs, tokens = ours.results[0].tokens, theirs.tokens

    def entropy(log_p: torch.Tensor | None) -> float:
        return number(None if log_p is None else -(log_p.exp() * log_p).sum())

    expected = {
        "student_logprob": [number(t.log_p_y) for t in tokens],
        "teacher_logprob": [t.log_q_y for t in tokens],
        "student_entropy": [entropy(t.log_p) for t in tokens],
        "teacher_entropy": [entropy(t.log_q) for t in tokens],
        "initial_kl": [number(t.initial_kl) for t in tokens],
    }
    if spec.distill is not None:
        expected["divergence"] = [number(t.divergence) for t in tokens]
    for name, values in expected.items():
        column = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(getattr(outputs, name), column, equal_nan=True, **TIGHT)


GRANULARITIES = ("logit", "token", "sequence")
OBJECTIVES = {
    "sdpo": ObjectiveSpec(distill=distill(top_k=SUPPORT)),
    "reverse_kl": ObjectiveSpec(distill=distill(divergence="reverse_kl", top_k=None)),
    "clip": ObjectiveSpec(distill=distill(divergence="reverse_kl", top_k=4, advantage_clip=0.7)),
    "teacher_support": ObjectiveSpec(
        distill=distill(divergence="forward_kl", support="teacher", top_k=SUPPORT)
    ),
    "union_hybrid_kl": ObjectiveSpec(
        distill=distill(support="union", top_k=SUPPORT, trust=0.4, advantage_clip=1.5),
        pg=pg(),
        kl=KlSpec(coefficient=0.1),
        temperature=0.8,
    ),
    "union_renormalised_kl": ObjectiveSpec(
        distill=distill(divergence="forward_kl", support="union", top_k=SUPPORT, tail=False),
        pg=pg(),
        kl=KlSpec(coefficient=0.1),
    ),
    "union_eq8_token": ObjectiveSpec(
        distill=distill(
            support="union", top_k=SUPPORT, granularity="token", sequence_estimator=0.5
        ),
        kl=KlSpec(coefficient=0.1),
    ),
    "trust": ObjectiveSpec(distill=distill(trust=0.2, ratio_cap=None)),
    "eq13": ObjectiveSpec(
        distill=distill(divergence="reverse_kl", top_k=SUPPORT, importance="logit")
    ),
    "eq13_clip": ObjectiveSpec(
        distill=distill(
            divergence="reverse_kl",
            top_k=SUPPORT,
            importance="logit",
            advantage_clip=1.0,
            tail=False,
        )
    ),
    "token": ObjectiveSpec(distill=distill(granularity="token", top_k=SUPPORT)),
    "sequence": ObjectiveSpec(distill=distill(granularity="sequence", top_k=SUPPORT)),
    "eq8": ObjectiveSpec(distill=distill(sequence_estimator=0.5)),
    "eq8_ce": ObjectiveSpec(
        distill=distill(divergence="forward_ce", top_k=None, sequence_estimator=1.0)
    ),
    "eq8_token": ObjectiveSpec(distill=distill(granularity="token", sequence_estimator=0.5)),
    "grpo": ObjectiveSpec(pg=pg()),
    "grpo_sequence": ObjectiveSpec(pg=pg(normalization="sequence")),
    "dr_grpo": ObjectiveSpec(pg=pg(normalization="fixed", fixed_length=16, ratio_cap=None)),
    "gspo": ObjectiveSpec(pg=pg(kind="gspo", normalization="sequence")),
    "cispo": ObjectiveSpec(pg=pg(kind="cispo")),
    "sft": ObjectiveSpec(pg=pg(kind="sft")),
    "kl": ObjectiveSpec(pg=pg(), kl=KlSpec(coefficient=0.3)),
    "hybrid": ObjectiveSpec(distill=distill(), pg=pg(), temperature=0.7),
    "sdpg": ObjectiveSpec(
        distill=distill(divergence="reverse_kl", top_k=None),
        pg=pg(),
        kl=KlSpec(coefficient=0.1),
        temperature=1.4,
    ),
    "hybrid_renormalised_kl": ObjectiveSpec(
        distill=distill(top_k=SUPPORT, tail=False),
        pg=pg(),
        kl=KlSpec(coefficient=0.1),
    ),
    "hybrid_gspo_kl": ObjectiveSpec(
        distill=distill(top_k=SUPPORT, sequence_estimator=0.1),
        pg=pg(kind="gspo"),
        kl=KlSpec(coefficient=0.1),
    ),
    "padded_head": ObjectiveSpec(
        distill=distill(support="union", top_k=SUPPORT, trust=0.3),
        pg=pg(),
        kl=KlSpec(coefficient=0.1),
        temperature=0.7,
        vocabulary=TOKENS,
    ),
    "hybrid_per_rollout": ObjectiveSpec(
        distill=distill(sequence_estimator=0.2), pg=pg(normalization="sequence")
    ),
    "hybrid_fixed": ObjectiveSpec(distill=distill(), pg=pg(normalization="fixed", fixed_length=9)),
    "rlsd": ObjectiveSpec(pg=pg(), credit=RlsdCredit(mix=0.5, clip=0.2)),
    "rlsd_trust": ObjectiveSpec(pg=pg(), credit=RlsdCredit(mix=0.5, clip=0.2), credit_trust=0.3),
    "rlcsd": ObjectiveSpec(pg=pg(), credit=RlcsdCredit(scale=1.0, mix=0.5, tau=0.5)),
}


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_equals_the_reference(name, off_policy):
    for seed in range(3):
        assert_equals_reference(World(seed), OBJECTIVES[name], off_policy=off_policy)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd", "forward_ce"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_product_of_the_parts_equals_the_reference(divergence, granularity):
    supports = (
        ("student", None, True),
        ("student", SUPPORT, True),
        ("student", SUPPORT, False),
        ("teacher", SUPPORT, True),
        ("union", SUPPORT, True),
        ("union", SUPPORT, False),
    )
    for (support, top_k, tail), clip, trust, estimator, kind, kl in itertools.product(
        supports,
        (None, 0.8),
        (None, 0.3),
        (0.0, 0.4),
        (None, "grpo", "gspo"),
        (None, 0.2),
    ):
        spec = ObjectiveSpec(
            distill=distill(
                divergence=divergence,
                beta=0.3,
                support=support,
                top_k=top_k,
                tail=tail,
                granularity=granularity,
                advantage_clip=clip,
                trust=trust,
                sequence_estimator=estimator,
            ),
            pg=None if kind is None else pg(kind=kind),
            kl=None if kl is None else KlSpec(coefficient=kl),
            temperature=0.6,
        )
        assert_equals_reference(World(1), spec, off_policy=True)


@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(OBJECTIVES)),
    off_policy=st.booleans(),
    data=st.data(),
)
def test_micro_batches_and_rollout_order_change_only_rounding(seed, name, off_policy, data):
    spec, world = OBJECTIVES[name], World(seed)
    order = data.draw(st.permutations(range(len(world.attempts))))
    cut = data.draw(st.integers(1, len(order) - 1))
    whole = evaluate(world, spec, off_policy=off_policy)
    split = evaluate(
        world, spec, off_policy=off_policy, micro_batches=[list(order[:cut]), list(order[cut:])]
    )
    assert_same(split, whole)


@pytest.mark.parametrize("name", ["sdpo", "grpo", "hybrid", "kl", "eq8"])
def test_a_mean_per_micro_batch_would_be_noticed(name):
    """With a count per micro-batch the same test fails, so the invariance is not vacuous."""
    world, spec = World(2), OBJECTIVES[name]
    whole = evaluate(world, spec)
    local = sum(
        evaluate(
            world,
            spec,
            micro_batches=[[i]],
            counts=count_denominators([world.attempts[i].sample], spec),
        ).parts
        for i in range(len(world.attempts))
    )
    assert not torch.allclose(local / len(world.attempts), whole.parts, rtol=1e-3)


@pytest.mark.parametrize(("mix", "same_as"), [(1.0, grpo), (0.0, sdpo)])
def test_hybrid_ends_are_grpo_and_sdpo(mix, same_as):
    both = OBJECTIVES["hybrid"]
    alone = replace(both, distill=None) if mix else replace(both, pg=None)
    assert_same(evaluate(World(rule=hybrid(mix)), both), evaluate(World(rule=same_as), alone))


def test_hybrid_is_the_mixture_of_its_ends_over_one_count():
    both = OBJECTIVES["hybrid"]
    worlds = {mix: World(rule=hybrid(mix)) for mix in (0.0, 0.25, 1.0)}
    # All rollouts are rewarded, some are taught: at mix 0 only those count.
    counts = count_denominators([a.sample for a in worlds[1.0].attempts], both)
    parts = {mix: evaluate(world, both, counts=counts).parts for mix, world in worlds.items()}
    torch.testing.assert_close(parts[0.25], 0.25 * parts[1.0] + 0.75 * parts[0.0])


@pytest.mark.parametrize("config", [HybridConfig(mix=0.9), SdpgConfig(coefficient=0.1)])
@pytest.mark.parametrize("normalization", ["token", "fixed", "sequence"])
def test_distillation_weighs_the_same_whatever_share_of_rollouts_has_a_context(
    config, normalization
):
    """Eq. 3 mixes advantages under one 1 / sum |y|: with one context in six rollouts, a count of
    its own would give distillation six times its share."""
    surrogate = config.policy_gradient.model_copy(update={"normalization": normalization})
    config = config.model_copy(update={"policy_gradient": surrogate, "kl_coefficient": 0.0})
    spec = objective_spec(config, step=0, temperature=1.0, max_completion_tokens=7, trust=None)
    spec = replace(spec, distill=replace(spec.distill, ratio_cap=None))
    world = World(3, rule=routing_rule(config))
    taught = [a for a in world.attempts if a.teacher is not None]
    assert 0 < len(taught) < len(world.attempts)
    result = evaluate(world, spec).results[0]
    share = {"hybrid": 0.1, "sdpg": 0.1}[config.type]
    expected, first = 0.0, 0
    for attempt in teacher_first(world.attempts)[: len(taught)]:
        divergences = result.tokens.divergence[first : first + attempt.length]
        first += attempt.length
        expected += share * float(
            divergences.mean() if normalization == "sequence" else divergences.sum()
        )
    count = {
        "token": sum(a.length for a in world.attempts),
        "fixed": 7 * len(world.attempts),
        "sequence": len(world.attempts),
    }[normalization]
    assert float(result.distill) == pytest.approx(expected / count, rel=1e-9)


def test_on_policy_grpo_is_exactly_minus_advantage_times_logprob_gradient():
    world = World(rule=grpo)
    spec = ObjectiveSpec(pg=pg(ratio_cap=None))
    ours = evaluate(world, spec)
    total = sum(a.length for a in world.attempts)
    for attempt in world.attempts:
        hidden = attempt.student.clone().requires_grad_()
        ids = torch.tensor(attempt.sample.completion_ids)[:, None]
        logprob = (hidden @ world.head.T).log_softmax(-1).gather(1, ids)
        (-attempt.sample.advantage * logprob.sum() / total).backward()
        key = attempt.sample.task_id, attempt.sample.index
        torch.testing.assert_close(ours.hidden[key], hidden.grad, **TIGHT)
    explicit = [replace(a, old_logprobs=_own_logprobs(world, a)) for a in world.attempts]
    world.attempts = explicit
    assert_same(evaluate(world, spec, off_policy=True), ours)


def _own_logprobs(world: World, attempt: Attempt) -> torch.Tensor:
    ids = torch.tensor(attempt.sample.completion_ids)[:, None]
    return (attempt.student @ world.head.T).log_softmax(-1).gather(1, ids)[:, 0]


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "dr_grpo"])
def test_flat_groups_have_exactly_zero_policy_gradient(name):
    world = World(rule=grpo, solved=(1, 1, 1, 0, 0))
    for off_policy in (False, True):
        out = evaluate(world, OBJECTIVES[name], off_policy=off_policy)
        assert not out.head.any()
        assert not any(part.any() for part in out.hidden.values())


@pytest.mark.parametrize("name", ["sdpo", "token", "sequence", "eq8"])
def test_only_routed_rollouts_get_a_gradient(name):
    """An attempt without a teacher, or routed nowhere, is exactly zero while its neighbours are
    not."""
    out = evaluate(World(rule=sdpo), OBJECTIVES[name])
    for (_, index), gradient in out.hidden.items():
        assert bool(gradient.any()) == (index != 0)


def test_srpo_routes_partition_and_share_one_count():
    world = World(rule=srpo, solved=(1, 0, 0, 0, 0))
    spec = OBJECTIVES["hybrid"]
    counts = count_denominators([a.sample for a in world.attempts], spec)
    assert counts.routed == sum(a.length for a in world.attempts)
    fed = [set(a.sample.component_weights) for a in world.attempts]
    assert fed == [{"pg"}, {"distill"}, {"distill"}, {"pg"}, {"pg"}]
    assert_equals_reference(world, spec)


def test_the_kl_component_acts_and_vanishes_at_the_initial_model():
    """A coefficient that is accepted and never used is a bug of other implementations."""
    world, spec = World(rule=grpo), OBJECTIVES["kl"]
    without, with_kl = evaluate(world, OBJECTIVES["grpo"]), evaluate(world, spec)
    assert float(with_kl.parts[2]) > 0.01
    assert not torch.allclose(with_kl.head, without.head)
    doubled = evaluate(world, replace(spec, kl=KlSpec(coefficient=0.6)))
    torch.testing.assert_close(doubled.parts[2], 2 * with_kl.parts[2])
    world.attempts = [replace(a, initial=a.student) for a in world.attempts]
    world.initial_head = world.head
    at_start = evaluate(world, spec)
    assert float(at_start.parts[2]) == 0.0
    torch.testing.assert_close(at_start.head, without.head)


@pytest.mark.parametrize(
    "change",
    [
        {"divergence": "reverse_kl"},
        {"beta": 0.3},
        {"support": "teacher"},
        {"support": "union"},
        {"top_k": 2},
        {"tail": False},
        {"granularity": "token"},
        {"granularity": "sequence"},
        {"advantage_clip": 0.2},
        {"trust": 0.5},
        {"ratio_cap": 1.0},
        {"ratio_cap": None},
        {"sequence_estimator": 0.1},
    ],
)
def test_every_distill_setting_changes_the_gradient(change):
    base = {"top_k": SUPPORT}
    a = evaluate(World(rule=sdpo), ObjectiveSpec(distill=distill(**base)))
    b = evaluate(World(rule=sdpo), ObjectiveSpec(distill=distill(**base | change)))
    assert not torch.allclose(a.head, b.head, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gspo"},
        {"kind": "cispo"},
        {"kind": "sft"},
        {"eps_low": 0.01},
        {"eps_high": 0.01},
        {"ratio_cap": 1.0},
        {"ratio_cap": None},
        {"normalization": "sequence"},
        {"normalization": "fixed", "fixed_length": 9},
    ],
)
def test_every_policy_gradient_setting_changes_the_gradient(change):
    a = evaluate(World(4, rule=grpo), ObjectiveSpec(pg=pg()), off_policy=True)
    b = evaluate(World(4, rule=grpo), ObjectiveSpec(pg=pg(**change)), off_policy=True)
    assert not torch.allclose(a.head, b.head, rtol=1e-4)


def test_eq13_on_policy_is_the_reverse_kl_gradient():
    world, head = World(rule=sdpo), None
    attempts = [a for a in world.attempts if a.teacher is not None]
    spec = ObjectiveSpec(distill=distill(divergence="reverse_kl", top_k=SUPPORT, ratio_cap=None))
    surrogate = ObjectiveSpec(
        distill=distill(divergence="reverse_kl", top_k=SUPPORT, importance="logit")
    )
    hidden = torch.cat([a.student for a in attempts]).requires_grad_()
    head = world.head.clone().requires_grad_()
    top = (hidden @ head.T).log_softmax(-1).detach().topk(SUPPORT)
    plain = batch_of(attempts, spec, off_policy=False)
    old = replace(plain, old_support=OldSupport(ids=top.indices, logprobs=top.values))
    teacher = torch.cat([a.teacher for a in attempts])
    found = []
    for batch, chosen in ((plain, spec), (old, surrogate)):
        counts = Denominators(len(hidden), 1)
        loss = objective_loss(hidden, head, teacher, world.teacher_head, batch, chosen, counts).loss
        found.append((loss.detach(), *torch.autograd.grad(loss, (hidden, head))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"eq13", "eq13_clip"}))
def test_no_tokens_and_no_teacher_give_zero_loss_with_a_graph(name):
    spec = OBJECTIVES[name]
    world = World()
    counts = count_denominators([a.sample for a in world.attempts], spec)
    untaught = [a for a in world.attempts if a.teacher is None]
    for attempts in ([], untaught):
        silent = [replace(a, sample=replace(a.sample, component_weights={})) for a in attempts]
        batch = batch_of(silent, spec, off_policy=False) if silent else _empty_batch()
        hidden = torch.cat([world.normal(0, WIDTH), *(a.student for a in silent)]).requires_grad_()
        head = world.head.clone().requires_grad_()
        initial = hidden.detach() if spec.kl else None
        for teacher in (None, world.normal(0, WIDTH)):
            result = objective_loss(
                hidden,
                head,
                teacher,
                world.teacher_head,
                batch,
                spec,
                counts,
                reference_hidden=initial,
                reference_head=world.head,
            )
            result.loss.backward()
            assert float(result.loss.detach()) == 0.0
            assert not hidden.grad.any()
            assert not head.grad.any()


def _empty_batch() -> TokenBatch:
    nothing = torch.zeros(0, dtype=torch.float64)
    ids = torch.zeros(0, dtype=torch.long)
    return TokenBatch(
        targets=ids,
        sampler_logprobs=nothing,
        advantages=nothing,
        distill_weights=nothing,
        pg_weights=nothing,
        sequence_ids=ids,
        sequence_lengths=ids,
        num_taught=0,
    )


def test_a_batch_nothing_is_routed_to_divides_by_nothing():
    world = World(rule=lambda group, index, has_context: {})
    out = evaluate(world, OBJECTIVES["hybrid"])
    assert out.parts.tolist() == [0.0, 0.0, 0.0]
    assert not out.head.any()


def test_top_alternatives_are_those_of_the_dense_distributions():
    world, spec = World(), OBJECTIVES["hybrid"]
    attempts = teacher_first(world.attempts)
    batch = batch_of(attempts, spec, off_policy=False)
    hidden = torch.cat([a.student for a in attempts])
    teacher = torch.cat([a.teacher for a in attempts if a.teacher is not None])
    taught = slice(0, batch.num_taught)
    result = objective_loss(
        hidden,
        world.head,
        teacher,
        world.teacher_head,
        batch,
        spec,
        Denominators(1, 1),
        top_n=3,
    )
    log_p = (hidden @ world.head.T / 0.7).log_softmax(-1)
    log_q = torch.full_like(log_p, torch.nan)
    log_q[taught] = (teacher @ world.teacher_head.T / 0.7).log_softmax(-1)
    top = result.tokens.student_top
    assert torch.equal(top.ids, log_p.topk(3).indices)
    torch.testing.assert_close(top.student_logprobs, log_p.topk(3).values)
    torch.testing.assert_close(top.teacher_logprobs, log_q.gather(1, top.ids), equal_nan=True)
    other = result.tokens.teacher_top
    assert torch.equal(other.ids[taught], log_q[taught].topk(3).indices)
    torch.testing.assert_close(other.student_logprobs[taught], log_p.gather(1, other.ids)[taught])
    assert result.tokens.has_teacher[taught].all()
    assert not result.tokens.has_teacher[batch.num_taught :].any()

    wanted = torch.arange(len(hidden)) % 3 == 1
    some = objective_loss(
        hidden, world.head, teacher, world.teacher_head, batch, spec, Denominators(1, 1),
        top_n=3, top_where=wanted, chunk_tokens=4,
    ).tokens  # fmt: skip
    for part, whole in ((some.student_top, top), (some.teacher_top, other)):
        assert torch.equal(part.ids[wanted], whole.ids[wanted])
        torch.testing.assert_close(
            part.teacher_logprobs[wanted], whole.teacher_logprobs[wanted], equal_nan=True
        )
        assert part.student_logprobs[~wanted].isnan().all()


def test_a_rollout_split_over_micro_batches_is_refused_where_it_matters():
    world = World(1, rule=grpo)
    spec = OBJECTIVES["gspo"]
    batch = batch_of(world.attempts, spec, off_policy=True)
    cut = replace(batch.part(slice(1, None)), num_taught=0)
    hidden = torch.cat([a.student for a in world.attempts])[1:]
    world_counts = Denominators(1, 1)
    assert int(batch.sequence_lengths[0]) > 1
    with pytest.raises(AssertionError, match="split over micro-batches"):
        objective_loss(hidden, world.head, None, None, cut, spec, world_counts)
    ids = torch.arange(len(hidden)) % 2
    mixed = replace(cut, sequence_ids=ids)
    with pytest.raises(AssertionError, match="not contiguous"):
        objective_loss(hidden, world.head, None, None, mixed, spec, world_counts)


def test_a_weight_without_a_teacher_is_refused():
    world = World(rule=sdpo)
    spec = OBJECTIVES["sdpo"]
    attempts = teacher_first(world.attempts)
    batch = batch_of(attempts, spec, off_policy=False)
    batch = replace(batch, distill_weights=torch.ones_like(batch.distill_weights))
    hidden = torch.cat([a.student for a in attempts])
    teacher = torch.cat([a.teacher for a in attempts if a.teacher is not None])
    with pytest.raises(AssertionError, match="without a teacher"):
        objective_loss(
            hidden, world.head, teacher, world.teacher_head, batch, spec, Denominators(1, 1)
        )


@pytest.mark.parametrize("name", ["sdpo", "reverse_kl", "grpo", "hybrid", "rlsd"])
def test_bfloat16_objective_is_close_to_float64(name):
    wide, narrow = evaluate(World(), OBJECTIVES[name]), None
    narrow = evaluate(World(), OBJECTIVES[name], dtype=torch.bfloat16)
    torch.testing.assert_close(narrow.parts, wide.parts, rtol=0.1, atol=0.03)
    error = (narrow.head.double() - wide.head).norm() / wide.head.norm()
    assert float(error) < 0.1


def test_counts_are_of_trained_tokens_of_fed_samples():
    def sample(mask, weights, taught=True):
        return Sample(
            task_id="t",
            index=0,
            prompt_ids=(0,),
            completion_ids=tuple(range(len(mask))),
            loss_mask=tuple(map(bool, mask)),
            sampler_logprobs=(0.0,) * len(mask),
            teacher_prompt_ids=(1,) if taught else None,
            advantage=1.0,
            component_weights=weights,
        )

    samples = [
        sample((1, 0, 1), {"distill": 1.0}),
        sample((1, 1, 1, 1), {"pg": 0.5}),
        sample((1,), {"distill": 1.0, "pg": 0.5}, taught=False),
        sample((0, 0), {"pg": 1.0}),
        sample((1, 1), {}),
    ]
    both = {"distill": distill(), "kl": KlSpec(coefficient=1.0)}
    cases = [
        (ObjectiveSpec(pg=pg(), **both), (7, 9)),
        (ObjectiveSpec(pg=pg(normalization="sequence"), **both), (3, 9)),
        (ObjectiveSpec(pg=pg(normalization="fixed", fixed_length=8), **both), (24, 9)),
        (ObjectiveSpec(distill=distill()), (2, 0)),
        (ObjectiveSpec(pg=pg()), (5, 0)),
    ]
    for spec, expected in cases:
        counts = count_denominators(samples, spec)
        assert (counts.routed, counts.kl) == expected
        by_definition = reference_counts(samples, spec)
        assert (by_definition["routed"], by_definition["kl"]) == (expected[0], expected[1] or 1)
