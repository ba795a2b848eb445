"""The whole objective on one page: dense logits, autograd, loops over rollouts and tokens, float64.
Slow, and obvious on purpose.

Read this file to know what is optimised; equations and tables are those of arXiv 2601.20802.
`objective.py` and `head/` compute the same numbers without ever holding logits, and
tests/properties compares the two: value, gradients and numbers per token. No code is shared with
them, only the records of `specs.py` and `token_batch.py`. Not for training: [T, V] is held in
float64, several times.

Which rollout feeds what is `routing.py`, how strongly a token counts is `weighting.py`; both arrive
here as the weights of a token.

Notation: p student, q teacher (a constant), y the sampled token, mu the sampler, old the policy at
the start of the step, A the advantage from rewards. Legend: T tokens, R tokens with a teacher (the
first ones), V vocabulary, E entries of a support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from sdpo.losses.specs import (
    CustomDivergence,
    DistillSpec,
    Divergence,
    ObjectiveSpec,
    PolicyGradientSpec,
    RlcsdCredit,
    RlsdCredit,
)
from sdpo.losses.token_batch import TokenBatch
from sdpo.records import Sample


def reference_objective(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    batch: TokenBatch,
    spec: ObjectiveSpec,
    counts: dict[str, float],
    *,
    initial_logits: Tensor | None = None,
    trust_logits: Tensor | None = None,
) -> tuple[dict[str, Tensor], list[Token]]:
    """The parts `distill`, `pg` and `kl` of the loss, with a graph to `student_logits` [T, V], and
    what is known of every token.

    `teacher_logits` [R, V] and `trust_logits` [R, V] (the initial model that the target mixes in)
    belong to the first R = `batch.num_taught` tokens; `initial_logits` [T, V] is the initial model
    in the student's prompt. `counts` are `reference_counts` of the whole optimizer batch.
    """

    def log_softmax(logits: Tensor) -> Tensor:
        # At the sampling temperature, over the tokens: a head may have rows that belong to none.
        return (logits[:, : spec.vocabulary].double() / spec.temperature).log_softmax(-1)

    log_p_TV = log_softmax(student_logits)
    log_q_RV = None
    if teacher_logits is not None:
        log_q_RV = log_softmax(teacher_logits).detach()
        if spec.trust is not None:  # q ~ initial^(1-trust) teacher^trust            (Eq. 10, 16)
            assert trust_logits is not None
            initial_RV = log_softmax(trust_logits).detach()
            log_q_RV = ((1 - spec.trust) * initial_RV + spec.trust * log_q_RV).log_softmax(-1)
    log_r_TV = None if initial_logits is None else log_softmax(initial_logits)

    parts = dict.fromkeys(("distill", "pg", "kl"), student_logits.double().sum() * 0)
    tokens = [Token.of(t, log_p_TV, log_q_RV, log_r_TV, batch) for t in range(len(log_p_TV))]
    for rollout in rollouts(tokens, batch):
        # A mean per rollout where that is the normalization, else plain sums over tokens.
        is_mean = spec.pg is not None and spec.pg.normalization == "sequence"
        over = len(rollout) if is_mean else 1
        if spec.distill is not None and rollout[0].log_q is not None:
            parts["distill"] = parts["distill"] + distillation(rollout, spec.distill) / over
        if spec.pg is not None:
            parts["pg"] = parts["pg"] + policy_gradient(rollout, spec) / over
        if spec.kl is not None:  # KL(p | r) = sum_v p_v log(p_v / r_v), over the whole vocabulary
            for token in rollout:
                assert token.log_r is not None
                token.initial_kl = (token.log_p.exp() * (token.log_p - token.log_r)).sum()
                parts["kl"] = parts["kl"] + spec.kl.coefficient * token.initial_kl
    # The one division. Rewards and teacher are mixed per token under one 1 / sum |y| (Eq. 3, 12):
    # what distillation weighs must not depend on how many rollouts have a teacher.
    parts["distill"], parts["pg"] = (parts[name] / counts["routed"] for name in ("distill", "pg"))
    return parts | {"kl": parts["kl"] / counts["kl"]}, tokens


def reference_counts(samples: Sequence[Sample], spec: ObjectiveSpec) -> dict[str, float]:
    """What the parts are divided by: counts over all samples of an optimizer update, on all ranks
    and in all micro-batches, whatever their tokens contribute. A count of nothing is 1."""
    routed = kl = 0.0
    for sample in samples:
        length = sum(sample.loss_mask)
        weights = sample.component_weights
        is_distilled = weights.get("distill") and sample.teacher_prompt_ids is not None
        is_rewarded = weights.get("pg")
        if spec.pg and sample.is_flat and not spec.pg.counts_flat_groups:
            is_rewarded = None  # All advantages are 0; the paper's code counts these tokens too.
        if length and ((spec.distill and is_distilled) or (spec.pg and is_rewarded)):
            if spec.pg is None or spec.pg.normalization == "token":  # tokens (Eq. 12)
                routed += length
            elif spec.pg.normalization == "sequence":  # rollouts, each the mean of its tokens
                routed += 1
            elif spec.pg.fixed_length is not None:  # rollouts x a constant length (Dr.GRPO)
                routed += spec.pg.fixed_length
        if spec.kl is not None:
            kl += length
    return {"routed": routed or 1.0, "kl": kl or 1.0}


@dataclass(slots=True, kw_only=True)
class Token:
    """One sampled token: the distributions at its place, and what `TokenBatch` says about it."""

    log_p: Tensor
    log_q: Tensor | None
    log_r: Tensor | None
    """[V] each: student, teacher, initial model in the student's prompt."""
    log_p_y: Tensor
    """With a graph; everything else that is known of y is a constant."""
    log_q_y: float
    log_mu_y: float
    log_old_y: float
    advantage: float
    verdict: float
    """+1 in a solved rollout, -1 in a failed one; NaN where nobody reads it."""
    distill_weight: float
    pg_weight: float
    negatives: list[float]
    """log q_n(y) under wrong demonstrations."""
    old_ids: Tensor | None
    old_logprobs: Tensor | None
    """The old policy's support [K]."""
    divergence: Tensor | None = None
    initial_kl: Tensor | None = None

    @classmethod
    def of(
        cls, t: int, log_p: Tensor, log_q: Tensor | None, log_r: Tensor | None, batch: TokenBatch
    ) -> Token:
        y, old, support = int(batch.targets[t]), batch.old_logprobs, batch.old_support
        is_taught = log_q is not None and t < batch.num_taught
        negatives = batch.negative_teacher_logprobs
        return cls(
            log_p=log_p[t],
            log_q=log_q[t] if log_q is not None and is_taught else None,
            log_r=None if log_r is None else log_r[t],
            log_p_y=log_p[t, y],
            log_q_y=float(log_q[t, y]) if log_q is not None and is_taught else math.nan,
            log_mu_y=_known(batch.sampler_logprobs[t], log_p[t, y]),
            log_old_y=float(log_p[t, y].detach() if old is None else old[t]),
            advantage=float(batch.advantages[t]),
            verdict=math.nan if batch.verdicts is None else float(batch.verdicts[t]),
            distill_weight=float(batch.distill_weights[t]),
            pg_weight=float(batch.pg_weights[t]),
            negatives=[]
            if negatives is None
            else [x for x in negatives[t].tolist() if not math.isnan(x)],
            old_ids=support.ids[t] if support is not None and is_taught else None,
            old_logprobs=support.logprobs[t].double()
            if support is not None and is_taught
            else None,
        )


def rollouts(tokens: Sequence[Token], batch: TokenBatch) -> list[list[Token]]:
    """The tokens of each rollout, in order."""
    ids = batch.sequence_ids.tolist()
    return [[tokens[t] for t, i in enumerate(ids) if i == rollout] for rollout in sorted(set(ids))]


# --- distillation


def distillation(rollout: Sequence[Token], d: DistillSpec) -> Tensor:
    """sum_t w_t D(p_t, q_t) (Eq. 1), or credit for the sampled token only (Fig. 10)."""
    total = torch.zeros((), dtype=torch.float64)
    gaps = [bounded(t.log_q_y - float(t.log_p_y.detach()), d.advantage_clip) for t in rollout]
    for place, (token, gap) in enumerate(zip(rollout, gaps, strict=True)):
        token.divergence = divergence(token, d)
        weight = token.distill_weight
        if d.importance == "token" and d.ratio_cap is not None:  # min(p(y) / mu(y), cap)    (A.4)
            weight *= min(math.exp(float(token.log_p_y.detach()) - token.log_mu_y), d.ratio_cap)
        if d.sign_gate is not None:  # does the teacher move it as the verdict would?    (SG-OPD)
            moved = [token] if d.sign_gate.per == "token" else rollout
            up = sum(t.log_q_y - float(t.log_p_y.detach()) for t in moved)
            weight *= d.sign_gate.agree if up * token.verdict > 0 else d.sign_gate.differ
        if d.granularity == "logit":
            total = total + weight * token.divergence
        else:  # a policy gradient on log p(y) whose advantage is the gap log q(y) - log p(y)
            credit = gap if d.granularity == "token" else sum(gaps) / len(gaps)
            total = total - weight * credit * one_with_gradient_of(token.log_p_y)
        if d.sequence_estimator:  # D_t also judges how the rollout came here: log Pi(s_t)  (Eq. 8)
            before = sum((earlier.log_p_y for earlier in rollout[:place]), torch.zeros(()).double())
            total = total + d.sequence_estimator * weight * token.divergence.detach() * before
    return total


def divergence(token: Token, d: DistillSpec) -> Tensor:
    """D(p, q) over the entries of the support."""
    assert token.log_q is not None
    if d.importance == "logit":
        return logit_surrogate(token, d)
    ids = support(token, d)
    lp, lq = log_masses(token.log_p, ids, d.tail), log_masses(token.log_q, ids, d.tail)
    if d.advantage_clip is not None:
        return clipped_distance(d.distance, lp, lq)
    return distance(d.distance, lp, lq)


def distance(d: Divergence, lp: Tensor, lq: Tensor) -> Tensor:
    """D(p, q) from log-masses [E] of a support's entries (Table 12)."""
    p, q = lp.exp(), lq.exp()
    if isinstance(d.kind, CustomDivergence):  # of the user's own: D, or D and p dD/dp
        result = d.kind.function(lp[None], lq[None])
        if not isinstance(result, tuple):
            return result[0]
        value, weighted = (part[0].detach() for part in result)
        return value + (weighted * (lp - lp.detach())).sum()
    match d.kind:
        case "reverse_kl":  # KL(p | q)
            return (p * (lp - lq)).sum()
        case "forward_kl":  # KL(q | p)
            return (q * (lq - lp)).sum()
        case "forward_ce":  # cross-entropy: KL(q | p) + the teacher's entropy
            return -(q * lp).sum()
        case "jsd":  # with the mixture m = (1 - beta) p + beta q
            assert d.beta is not None
            lm = torch.logaddexp(lp + math.log(1 - d.beta), lq + math.log(d.beta))
            return (1 - d.beta) * (p * (lp - lm)).sum() + d.beta * (q * (lq - lm)).sum()
        case _:
            assert_never(d.kind)


def support(token: Token, d: DistillSpec) -> list[int] | None:
    """Ids of the tokens that have an entry of their own; None: all of them."""
    if d.top_k is None or d.top_k >= len(token.log_p):
        return None
    assert token.log_q is not None
    student = token.log_p.topk(d.top_k).indices.tolist()
    teacher = token.log_q.topk(d.top_k).indices.tolist()
    return {"student": student, "teacher": teacher, "union": sorted({*student, *teacher})}[
        d.support
    ]


def log_masses(log_p: Tensor, ids: Sequence[int] | None, tail: bool) -> Tensor:
    """Log-masses [E] of the entries: the tokens of the support, then one tail with all the rest
    (Eq. 11); without a tail, the support alone, renormalised."""
    if ids is None:
        return log_p
    if not tail:
        return log_p[list(ids)].log_softmax(-1)
    outside = [v for v in range(len(log_p)) if v not in set(ids)]
    rest = [log_p[outside].logsumexp(-1, keepdim=True)] if outside else []
    return torch.cat([log_p[list(ids)], *rest])


def clipped_distance(d: Divergence, lp: Tensor, lq: Tensor) -> Tensor:
    """The same with log q - log p clipped (Table 12, test time) and held constant: a policy
    gradient with one bounded advantage per entry (Prop. 2.1)."""
    p, q = lp.exp(), lq.exp()
    assert d.clip is not None
    gap = (lq - lp).detach().clamp(-d.clip, d.clip)
    assert not isinstance(d.kind, CustomDivergence), "it has no clip"
    match d.kind:
        case "reverse_kl":
            value, slope = -(p * gap).sum(), -gap
        case "forward_kl":
            value, slope = (q * gap).sum(), -gap.exp()
        case "forward_ce":
            value, slope = -(q * lp).sum(), -gap.exp()
        case "jsd":
            assert d.beta is not None
            shift = ((1 - d.beta) + d.beta * gap.exp()).log()  # log m / p
            value = -(1 - d.beta) * (p * shift).sum() + d.beta * (q * (gap - shift)).sum()
            slope = -(1 - d.beta) * shift
        case _:
            assert_never(d.kind)
    return value.detach() + (slope * (p - p.detach())).sum()  # dD/dp = slope, held constant


def logit_surrogate(token: Token, d: DistillSpec) -> Tensor:
    """-sum_v old_v min(w_v A_v, clip(w_v) A_v), w = p / old, A = log q - log p (Eq. 13), over what
    is remembered of the old policy; mu is taken equal to old."""
    assert token.log_q is not None
    assert token.old_ids is not None
    assert token.old_logprobs is not None
    ids = token.old_ids.tolist()
    lp, lq = log_masses(token.log_p, ids, d.tail), log_masses(token.log_q, ids, d.tail)
    old = token.old_logprobs
    old = torch.cat([old, (1 - old.exp().sum(-1, keepdim=True)).log()]) if d.tail else old
    old = old if d.tail else old.log_softmax(-1)
    gap = (lq - lp).detach()
    if d.advantage_clip is not None:
        gap = gap.clamp(-d.advantage_clip, d.advantage_clip)
    ratio = (lp - old).exp()
    return -(old.exp() * torch.minimum(ratio * gap, clipped(ratio, d) * gap)).sum()


# --- rewards


def policy_gradient(rollout: Sequence[Token], spec: ObjectiveSpec) -> Tensor:
    """-sum_t min(old/mu, cap) min(w A, clip(w) A), w = p(y) / old(y) (Eq. 12), and relatives."""
    pg = spec.pg
    assert pg is not None
    total = torch.zeros((), dtype=torch.float64)
    mean_log_ratio = sum(t.log_p_y - t.log_old_y for t in rollout) / len(rollout)
    for token in rollout:
        advantage = credited(token, spec)
        weight = token.pg_weight
        if pg.ratio_cap is not None:  # truncated importance sampling: min(old(y) / mu(y), cap)
            weight *= min(math.exp(token.log_old_y - token.log_mu_y), pg.ratio_cap)
        log_ratio = mean_log_ratio if pg.kind == "gspo" else token.log_p_y - token.log_old_y
        ratio = torch.as_tensor(log_ratio).exp()
        match pg.kind:
            case "sft":  # likelihood of what the self-teacher solved (Table 5)
                loss = -token.log_p_y
            case "cispo":  # the clipped ratio is a constant: no token loses its gradient
                loss = -clipped(ratio, pg).detach() * advantage * token.log_p_y
            case "grpo" | "gspo":  # per token, or one geometric mean for the rollout
                loss = -torch.minimum(ratio * advantage, clipped(ratio, pg) * advantage)
            case _:
                assert_never(pg.kind)
        total = total + weight * loss
    return total


def credited(token: Token, spec: ObjectiveSpec) -> float:
    """The advantage of one token: the rollout's, r - mean(r) of its group (`advantages.py`), as the
    teacher modulates it. Its sign never changes."""
    a, gap = token.advantage, token.log_q_y - float(token.log_p_y.detach())
    match spec.credit:
        case RlsdCredit(mix=mix, clip=clip) if not math.isnan(gap):  # RLSD
            factor = math.exp(math.copysign(1.0, a) * gap) if a else 1.0
            return a * ((1 - mix) + mix * min(max(factor, 1 - clip), 1 + clip))
        case RlcsdCredit() as c if token.negatives and not math.isnan(gap):  # RLCSD
            wrong = sum(math.exp(x) for x in token.negatives) / len(token.negatives)
            bonus = c.scale * c.mix * math.tanh((token.log_q_y - math.log(wrong)) / c.tau)
            bonus = bounded(bonus, c.bound) if abs(bonus) > c.threshold else 0.0
            return a + bonus if (a + bonus) * a > 0 else 0.0
        case _:
            return a


# --- arithmetic


def clipped(ratio: Tensor, clip: PolicyGradientSpec | DistillSpec) -> Tensor:
    """`ratio` within [1 - eps_low, 1 + eps_high], each side where it has a bound."""
    if clip.eps_low is not None:
        ratio = ratio.clamp(min=1 - clip.eps_low)
    return ratio if clip.eps_high is None else ratio.clamp(max=1 + clip.eps_high)


def bounded(value: float, bound: float | None) -> float:
    """`value` within +-bound."""
    return value if bound is None else min(max(value, -bound), bound)


def one_with_gradient_of(log_p: Tensor) -> Tensor:
    """1, whose gradient is that of `log_p`."""
    return (log_p - log_p.detach()).exp()


def _known(log_mu_y: Tensor, log_p_y: Tensor) -> float:
    """The sampler's log-prob, or the student's where it is not known (NaN): ratio 1."""
    return float(log_p_y.detach() if bool(log_mu_y.isnan()) else log_mu_y)
