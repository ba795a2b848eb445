"""What a named objective resolves to, in words: the lines that `sdpo config show` puts above the
values.

It calls the functions that training calls (`objective_spec`, the routing rule), so the text cannot
differ from what is computed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import assert_never

from sdpo.config.objective import (
    CustomObjectiveConfig,
    CustomWeightingConfig,
    DistillingConfig,
    EntropyWeightingConfig,
    NoWeightingConfig,
    PositionWeightingConfig,
    RlcsdConfig,
    ScSdpoConfig,
    SignWeightingConfig,
)
from sdpo.config.schema import RunConfig
from sdpo.config.teacher import ProbeGateConfig, TrustRegionConfig
from sdpo.losses.routing import Rule
from sdpo.losses.specs import (
    CustomDivergence,
    DistillSpec,
    ObjectiveSpec,
    PolicyGradientSpec,
    RlcsdCredit,
    RlsdCredit,
)
from sdpo.objectives import divides_by_std, objective_spec, reads_contexts, routing_rule
from sdpo.records import Group, Rollout, Task, Verdict

DIVERGENCES = {
    "reverse_kl": "KL(student | teacher)",
    "forward_kl": "KL(teacher | student)",
    "forward_ce": "cross-entropy of the student under the teacher",
    "jsd": "JSD",
}
INDENT = " " * 10
SITUATIONS = (
    # (description, solved?, a sibling solved?, a teacher context?)
    ("solved, with a teacher context", True, True, True),
    ("solved, without", True, False, False),
    ("failed, a sibling solved", False, True, True),
    ("failed, feedback only", False, False, True),
    ("failed, without a teacher context", False, False, False),
)


def describe_objective(config: RunConfig) -> list[str]:
    """One line per part: routing, each component with its denominator, weighting, teacher."""
    schedule = config.teacher.schedule
    spec = objective_spec(
        config.objective,
        step=0,
        temperature=config.rollout.temperature,
        max_completion_tokens=config.rollout.max_completion_tokens,
        trust=schedule.mix if isinstance(schedule, TrustRegionConfig) else None,
    )
    lines = [f"objective {config.objective.type}, as it resolves:"]
    rule = routing_rule(config.objective)
    if isinstance(config.objective, CustomObjectiveConfig):
        # Its rule may look at what only real attempts have.
        lines.append(f"routing   as {config.objective.path} says")
    else:
        lines += _routing(rule)
    if spec.distill is not None:
        lines += _distill(spec.distill, config, spec)
    if spec.pg is not None:
        lines += _policy_gradient(spec.pg, config, spec)
    if spec.kl is not None:
        lines += [
            f"kl        {spec.kl.coefficient:g} x KL(student | initial model), whole vocabulary",
            "          / trained tokens of the whole batch",
        ]
    if reads_contexts(config.objective):
        lines.append(f"teacher   {_teacher(config)}")
    lines.append(f"all at temperature {spec.temperature:g}")
    return lines


def _routing(rule: Rule) -> Iterator[str]:
    for situation, is_solved, sibling_solved, has_context in SITUATIONS:
        factors = rule(_probe(is_solved, sibling_solved), 0, has_context)
        fed = [f"{name} x {factor:g}" for name, factor in sorted(factors.items()) if factor]
        yield f"routing   {situation}: {', '.join(fed) or 'nothing'}"


def _probe(*solved: bool) -> Group:
    """A group with one rollout per argument."""
    task = Task(id="probe", messages=())
    return Group(
        task=task,
        rollouts=tuple(Rollout.written(task, "", index=i) for i in range(len(solved))),
        verdicts=tuple(Verdict(reward=float(s), solved=s) for s in solved),
    )


def _distill(distill: DistillSpec, config: RunConfig, spec: ObjectiveSpec) -> Iterator[str]:
    is_custom = isinstance(distill.divergence, CustomDivergence)
    name = distill.divergence.name if is_custom else DIVERGENCES[distill.divergence]
    if distill.beta is not None:
        name += f", teacher's weight {distill.beta:g}"
    match distill.granularity:
        case "logit":
            yield f"distill   {name}, per logit"
            yield f"          support: {_support(distill)}"
        case "token":
            yield "distill   log teacher - log student of the sampled token is its advantage"
        case "sequence":
            yield "distill   the mean of log teacher - log student is the rollout's advantage"
        case _:
            assert_never(distill.granularity)
    yield from textwrap.wrap(_reach(distill), 88, initial_indent=INDENT, subsequent_indent=INDENT)
    if distill.trust is not None and distill.trust_prompt == "student":
        yield (
            f"          target: teacher^{distill.trust:g} x (initial model in the student's prompt)"
            f"^{1 - distill.trust:g}"
        )
    if distill.advantage_clip is not None:
        yield f"          |log teacher - log student| at most {distill.advantage_clip:g}"
    if distill.importance == "logit":
        yield f"          off-policy: surrogate per logit (Eq. 13), ratios {_range(distill)}"
    else:
        yield f"          off-policy: student / sampler per token, at most {distill.ratio_cap:g}"
    if distill.sequence_estimator:
        yield f"          + {distill.sequence_estimator:g} x sequence-level term (Eq. 8) of {name}"
    yield f"          weighting: {_weighting(config)}"
    yield f"          / {_divisor(spec)} of the whole batch"


def _range(clip: DistillSpec | PolicyGradientSpec) -> str:
    low = "0" if clip.eps_low is None else f"{1 - clip.eps_low:g}"
    high = "inf" if clip.eps_high is None else f"{1 + clip.eps_high:g}"
    return f"within [{low}, {high}]"


def _support(distill: DistillSpec) -> str:
    if distill.top_k is None:
        return "the whole vocabulary"
    whose = {
        "student": f"the student's top {distill.top_k}",
        "teacher": f"the teacher's top {distill.top_k}",
        "union": f"the top {distill.top_k} of student and teacher together",
    }[distill.support]
    return f"{whose}, {'the rest as one entry' if distill.tail else 'renormalised'}"


def _reach(distill: DistillSpec) -> str:
    """Whether a token that the student practically never says can be raised: the gradients of
    docs/algorithm.md, in one sentence."""
    if distill.granularity != "logit":
        return "raises no token that the student does not sample"
    if isinstance(distill.divergence, CustomDivergence):
        return "its function decides whether a token that the student does not propose is raised"
    if distill.divergence in ("reverse_kl", "jsd"):
        return (
            "hardly raises a token that the student does not propose: the gradient on a token is "
            "proportional to the student's probability of it (with forward_kl it need not be)"
        )
    if distill.advantage_clip is not None:
        return (
            "hardly raises a token that the student does not propose: clipped, the gradient is at "
            f"most e^{distill.advantage_clip:g} times the student's probability of it"
        )
    if distill.top_k is None or distill.support != "student":
        which = "any token" if distill.top_k is None else "a token of the teacher's top-K"
        return f"raises {which} that the student does not propose: teacher's less student's mass"
    if distill.tail:
        return (
            "hardly raises a token outside the student's top-K: what the teacher gives the tail is "
            "shared out by the student's own probabilities (support = 'teacher' would raise it)"
        )
    return "raises no token outside the student's top-K: it is left out of the comparison"


def _weighting(config: RunConfig) -> str:
    parts = []
    objective = config.objective
    weighting = objective.weighting if isinstance(objective, DistillingConfig) else None
    match weighting:
        case None | NoWeightingConfig():
            pass
        case PositionWeightingConfig(w_min=w_min, tau=tau, s=s):
            parts.append(f"{w_min:g} + {1 - w_min:g} sigmoid((t/T - {tau:g}) / {s:g})")
        case EntropyWeightingConfig(beta=beta):
            parts.append(f"exp(-{beta:g} H(teacher)) over its mean in the batch")
        case SignWeightingConfig(agree=agree, differ=differ, per=per):
            where = f"where the teacher moves a {per} as the verdict would"
            parts.append(f"{agree:g} {where}, else {differ:g}")
        case CustomWeightingConfig(path=path, relative=relative):
            parts.append(f"{path}{' over its mean in the batch' if relative else ''}")
        case _:
            assert_never(weighting)
    if isinstance(config.objective, ScSdpoConfig):
        parts.append("sqrt(p(1-p)) of the task's solved rate over its mean in the batch")
    return ", times ".join(parts) or "all tokens equal"


def _divisor(spec: ObjectiveSpec) -> str:
    """What distillation and policy gradient are divided by; one count for both."""
    components = {"distill": spec.distill, "pg": spec.pg}
    routed = " or ".join(name for name, part in components.items() if part is not None)
    if spec.pg is None:
        return f"tokens routed to {routed}"
    if not spec.pg.counts_flat_groups:
        routed += ", without those that only a flat group's rewards could teach,"
    return {
        "token": f"tokens routed to {routed}",
        "sequence": f"rollouts routed to {routed}, each the mean of its tokens,",
        "fixed": f"rollouts routed to {routed} x {spec.pg.fixed_length}",
    }[spec.pg.normalization]


def _policy_gradient(pg: PolicyGradientSpec, config: RunConfig, spec: ObjectiveSpec) -> list[str]:
    over = f"          / {_divisor(spec)} of the whole batch"
    if pg.kind == "sft":
        likelihood = "likelihood of the self-teacher's attempts after the task's own prompt"
        return [f"pg        {likelihood}", over]
    std = divides_by_std(config.objective)
    cap = f"; old / sampler at most {pg.ratio_cap:g}"
    lines = [
        f"pg        {pg.kind}, ratios {_range(pg)}{cap}",
        f"          advantage: reward - group's mean{', over its deviation' if std else ''}",
    ]
    match spec.credit:
        case None:
            pass
        case RlsdCredit(mix=mix, clip=clip):
            lines.append(
                f"          x (1 - {mix:g}) + {mix:g} exp(sign x gap), "
                f"the exponential within [{1 - clip:g}, {1 + clip:g}]"
            )
        case RlcsdCredit(scale=scale, mix=mix, tau=tau):
            assert isinstance(config.objective, RlcsdConfig)
            lines.append(
                f"          + contrast with {config.objective.num_negatives} wrong demonstrations, "
                f"scale {scale:g}, share {mix:g}, temperature {tau:g}"
            )
        case _:
            assert_never(spec.credit)
    return [*lines, over]


def _teacher(config: RunConfig) -> str:
    settings = config.teacher.schedule.model_dump(exclude={"type"})
    values = ", ".join(
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in settings.items()
        if value != {}
    )
    kind = config.teacher.schedule.type
    said = f"{kind} ({values})" if values else kind
    gate = config.teacher.gate
    if isinstance(gate, ProbeGateConfig):
        said += (
            f"; only tasks of which it solves {gate.min_solved:.2g} of {gate.attempts} answers and "
            f"{gate.min_gain:+g} against the attempts"
        )
    return said
