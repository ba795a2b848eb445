"""The objective written naively: dense logits, autograd, loops over rollouts, float64. Slow, and
obvious on purpose.

Shares no code with `sdpo.losses`; reads its spec records as plain data. Legend: T tokens, V
vocabulary, K support, B buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpo.losses.head.support import OldSupport
from sdpo.losses.objective import Denominators
from sdpo.losses.specs import ObjectiveSpec
from sdpo.losses.token_batch import TokenBatch


def log_softmax(logits_TV: Tensor) -> Tensor:
    return logits_TV - logits_TV.exp().sum(-1, keepdim=True).log()


def buckets(log_p_TV: Tensor, ids_TK: Tensor | None, tail: bool) -> Tensor:
    """Masses [T, B]."""
    p = log_p_TV.exp()
    if ids_TK is None:
        return p
    inside = p.gather(1, ids_TK)
    if not tail:
        return inside / inside.sum(-1, keepdim=True)
    # Summed, not 1 - inside: that is negative by rounding when the support holds all the mass.
    return torch.cat([inside, p.scatter(1, ids_TK, 0.0).sum(-1, keepdim=True)], 1)


def distance(kind: str, beta: float, p: Tensor, q: Tensor) -> Tensor:
    """D(p, q) [T] from masses, by the definitions."""
    if kind == "reverse_kl":
        return (p * (p / q).log()).sum(-1)
    if kind == "forward_kl":
        return (q * (q / p).log()).sum(-1)
    if kind == "forward_ce":
        return -(q * p.log()).sum(-1)
    m = (1 - beta) * p + beta * q
    return (1 - beta) * (p * (p / m).log()).sum(-1) + beta * (q * (q / m).log()).sum(-1)


def clipped_distance(kind: str, beta: float, clip: float, p: Tensor, q: Tensor) -> Tensor:
    """The same with the log-ratio log q - log p clipped and held constant: a policy gradient per
    logit with bounded credit."""
    d = (q / p).log().clamp(-clip, clip).detach()
    s = ((1 - beta) + beta * d.exp()).log()
    credit = {  # dD/dp up to a constant
        "reverse_kl": -d,
        "forward_kl": -d.exp(),
        "forward_ce": -d.exp(),
        "jsd": -(1 - beta) * s,
    }[kind]
    value = {
        "reverse_kl": -(p * d).sum(-1),
        "forward_kl": (q * d).sum(-1),
        "forward_ce": -(q * p.log()).sum(-1),
        "jsd": -(1 - beta) * (p * s).sum(-1) + beta * (q * (d - s)).sum(-1),
    }[kind]
    surrogate = (p * credit).sum(-1)
    return value.detach() + surrogate - surrogate.detach()


@dataclass
class Dense:
    """Inputs as `objective_loss` takes them, with every row's teacher row or None."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor | None
    teacher_head: Tensor | None
    batch: TokenBatch
    reference_hidden: Tensor | None = None
    reference_head: Tensor | None = None
    trust_hidden: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)


def dense_objective(
    x: Dense, spec: ObjectiveSpec, counts: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    """Components [distill, pg, kl] with a graph to the student's tensors, and per-token outputs."""
    t = spec.temperature
    batch = x.batch
    log_p = log_softmax(x.student_hidden @ x.student_head.T / t)
    log_q = torch.full_like(log_p, math.nan)
    rows = batch.teacher_rows
    if x.teacher_hidden is not None:
        rows = torch.arange(len(log_p)) if rows is None else rows
        logits = x.teacher_hidden @ x.teacher_head.T / t
        teacher = log_softmax(logits)
        if spec.trust is not None:
            reference = log_softmax(x.trust_hidden @ x.reference_head.T / t)
            mixed = reference.exp() ** (1 - spec.trust) * teacher.exp() ** spec.trust
            teacher = (mixed / mixed.sum(-1, keepdim=True)).log()
        log_q[rows] = teacher.detach()
    logp_y = log_p.gather(1, batch.targets[:, None])[:, 0]
    logq_y = log_q.gather(1, batch.targets[:, None])[:, 0]
    out = {
        "student_logprob": logp_y.detach(),
        "teacher_logprob": logq_y,
        "student_entropy": -(log_p.exp() * log_p).sum(-1).detach(),
        "teacher_entropy": -(log_q.exp() * log_q).sum(-1),
    }
    distill = pg = kl = log_p.sum() * 0
    if spec.distill is not None and rows is not None:
        divergence = torch.full_like(logp_y, math.nan)
        divergence[rows] = _divergence(spec, log_p[rows], log_q[rows], batch.old_support, rows)
        out["divergence"] = divergence.detach()
        distill = _distill(spec, batch, divergence, logp_y, logq_y, rows) / (counts.distill or 1)
    if spec.pg is not None:
        pg = _policy_gradient(spec, batch, logp_y, logq_y) / (counts.pg or 1)
    if spec.kl is not None:
        log_r = log_softmax(x.reference_hidden @ x.reference_head.T / t)
        per_token = (log_p.exp() * (log_p - log_r)).sum(-1)
        out["initial_kl"] = per_token.detach()
        kl = spec.kl.coefficient * per_token.sum() / (counts.kl or 1)
    return torch.stack([distill, pg, kl]), out


def _divergence(
    spec: ObjectiveSpec, log_p: Tensor, log_q: Tensor, old: OldSupport | None, rows: Tensor
) -> Tensor:
    d = spec.distill
    if d.importance == "logit":
        ids = old.ids[rows]
        p, q = buckets(log_p, ids, d.tail), buckets(log_q, ids, d.tail)
        b = _remembered(old.logprobs[rows], d.tail)
        mass = b
        if old.sampler_logprobs is not None and d.ratio_cap is not None:
            mass = torch.minimum(b, d.ratio_cap * _remembered(old.sampler_logprobs[rows], d.tail))
        advantage = (q / p).log().detach()
        if d.advantage_clip is not None:
            advantage = advantage.clamp(-d.advantage_clip, d.advantage_clip)
        w = p / b
        gain = torch.minimum(w * advantage, w.clamp(1 - d.eps_low, 1 + d.eps_high) * advantage)
        return -(mass * gain).sum(-1)
    k = None if d.top_k is None or d.top_k >= log_p.shape[1] else d.top_k
    ids = None if k is None else log_p.detach().topk(k).indices
    p, q = buckets(log_p, ids, d.tail), buckets(log_q, ids, d.tail)
    if d.advantage_clip is not None:
        return clipped_distance(d.divergence, d.beta, d.advantage_clip, p, q)
    return distance(d.divergence, d.beta, p, q)


def _remembered(logprobs_TK: Tensor, tail: bool) -> Tensor:
    inside = logprobs_TK.exp()
    if not tail:
        return inside / inside.sum(-1, keepdim=True)
    return torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], 1)


def sequences(batch: TokenBatch) -> list[Tensor]:
    """Row indices of each rollout."""
    ids = batch.sequence_ids
    return [(ids == i).nonzero()[:, 0] for i in ids.unique()]


def _distill(
    spec: ObjectiveSpec,
    batch: TokenBatch,
    divergence: Tensor,
    logp_y: Tensor,
    logq_y: Tensor,
    rows: Tensor,
) -> Tensor:
    d = spec.distill
    is_taught = torch.zeros(len(logp_y), dtype=torch.bool)
    is_taught[rows] = True
    weight = batch.distill_weights.clone()
    if d.importance == "token" and d.ratio_cap is not None:
        weight = weight * (logp_y.detach() - batch.sampler_logprobs).exp().clamp(max=d.ratio_cap)
    gap = (logq_y - logp_y).detach()
    if d.advantage_clip is not None:
        gap = gap.clamp(-d.advantage_clip, d.advantage_clip)
    total = logp_y.sum() * 0
    for index in sequences(batch):
        if not bool(is_taught[index].all()):
            assert not bool(is_taught[index].any())
            continue
        w = weight[index]
        ratio = (logp_y[index] - logp_y[index].detach()).exp()  # 1, with the gradient of log p
        if d.granularity == "logit":
            total = total + (w * divergence[index]).sum()
        elif d.granularity == "token":
            total = total - (w * gap[index] * ratio).sum()
        else:
            total = total - (w * gap[index].mean() * ratio).sum()
        if d.sequence_estimator:
            for t in range(len(index)):
                prefix = logp_y[index[:t]].sum()
                total = total + d.sequence_estimator * w[t] * divergence[index[t]].detach() * prefix
    return total


def _policy_gradient(
    spec: ObjectiveSpec, batch: TokenBatch, logp_y: Tensor, logq_y: Tensor
) -> Tensor:
    g = spec.pg
    total = logp_y.sum() * 0
    advantages = batch.advantages
    old = logp_y.detach() if batch.old_logprobs is None else batch.old_logprobs
    for index in sequences(batch):
        rollout = logp_y.sum() * 0
        sequence_ratio = (logp_y[index] - old[index]).mean().exp()
        for t in index.tolist():
            a = float(advantages[t])
            gap = float((logq_y[t] - logp_y[t]).detach())
            if spec.credit is not None and not math.isnan(gap):
                a = _credited(spec.credit, a, gap, float(logq_y[t]), batch, t)
            tis = 1.0
            if g.ratio_cap is not None and g.kind != "sft":
                tis = min(math.exp(float(old[t] - batch.sampler_logprobs[t])), g.ratio_cap)
            ratio = sequence_ratio if g.kind == "gspo" else (logp_y[t] - old[t]).exp()
            bounded = ratio.clamp(1 - g.eps_low, 1 + g.eps_high)
            if g.kind == "sft":
                loss = -logp_y[t]
            elif g.kind == "cispo":
                loss = -bounded.detach() * a * logp_y[t]
            else:
                loss = -torch.minimum(ratio * a, bounded * a)
            rollout = rollout + float(batch.pg_weights[t]) * tis * loss
        total = total + (rollout / len(index) if g.normalization == "sequence" else rollout)
    return total


def _credited(
    credit: object, a: float, gap: float, logq: float, batch: TokenBatch, t: int
) -> float:
    if type(credit).__name__ == "RlsdCredit":
        factor = math.exp(math.copysign(1.0, a) * gap) if a else 1.0
        factor = min(max(factor, 1 - credit.clip), 1 + credit.clip)
        return a * ((1 - credit.mix) + credit.mix * factor)
    negatives = [math.exp(v) for v in batch.negative_teacher_logprobs[t].tolist() if v == v]
    if not negatives:
        return a
    e = logq - math.log(sum(negatives) / len(negatives))
    r = credit.scale * credit.mix * math.tanh(e / credit.tau)
    r = min(max(r, -credit.bound), credit.bound)
    if abs(r) <= credit.threshold:
        r = 0.0
    return a + r if (a + r) * a > 0 else 0.0
