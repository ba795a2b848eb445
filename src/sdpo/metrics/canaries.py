"""Canaries: rules that say, from the metrics of a run alone, that it is destroying its model.

Pure: one step's metrics in, alerts out. Thresholds are relative to the run's own start (the median
of the first good values of a metric), because entropies and lengths differ by factors between
models and tasks. What an alert leads to is up to the training loop: `warn` says it, `stop` ends the
run, `rollback` restores a checkpoint no newer than `alert.good`, freezes the teacher and halves the
learning rate.

A rule whose metric is absent or NaN in a step is not evaluated in that step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sdpo.metrics import names

Action = Literal["warn", "stop", "rollback"]

BASELINE_STEPS = 3
"""Steps whose median is "the start". The first shows the untouched model; a later one counts only
if it is good compared with those before it, or a collapse within three steps would become its own
baseline."""
BASELINE_EVALS = 1
"""An evaluation averages over the whole split and the first one comes before any update."""
WINDOW = 5
"""Steps averaged before a noisy rate is compared: a step of 64 attempts at other tasks alone moves
it by +-0.1."""

ENTROPY_COLLAPSE = 0.1
"""Sharpening to a third or a fifth of the first entropy is normal for RL; a tenth leaves one answer
per prompt."""
ENTROPY_EXPLOSION = 2.5
"""Entropy rarely rises under RL; a policy drifting into noise passes this on its way to
log(vocabulary)."""
ENTROPY_RISE = 0.3
"""Nats by which an explosion must also exceed the start: 0.02 -> 0.06 is not one."""
LENGTH_GROWTH = 1.6
"""The p90 grows first when a model starts to ramble; gated schedules already refuse 1.2."""
LENGTH_RISE = 16.0
"""Tokens by which length must also grow: answers of three tokens may double."""
TRUNCATION_RISE = 0.3
"""Share of attempts: cut attempts are never judged on what they would have said."""
REPETITION_RISE = 0.15
"""Share of repeated n-grams. Code repeats itself at 0.05-0.2 from the start; loops reach 0.5 and
more."""
FORMAT_RISE = 0.3
"""Share of attempts that cannot be judged at all: the teacher's format has drifted away from the
task's."""
FLAT_FAILED = 0.95
"""Share of groups without one success and without reward differences: nothing in rewards is left to
learn from."""
FLAT_FAILED_RISE = 0.2
"""Hard task sets start near the top; only a rise is a sign."""
TEACHER_JS_COLLAPSE = 0.05
"""Learning shrinks the divergence two- to fivefold; a twentieth means the teacher says what the
student says."""
PASS_AT_K_DROP = 0.3
"""Relative fall of pass@k while mean@k may still rise: diversity is being lost."""
PASS_AT_K_FALL = 0.1
"""The fall must also be this large in absolute terms, about 1.5 standard errors of 40 tasks."""
KL_LIMIT = 1.0
"""Nats per token from the initial model; healthy runs end at 0.01-0.3. Absolute, since every run
starts at 0."""
SAMPLER_GAP_LIMIT = 0.5
"""Nats per token, far above what rounding explains (hundredths in bfloat16)."""
SOLVED_COLLAPSE = 0.4
"""Share of the best windowed solved rate; collapses go to zero within tens of steps (tool use in
public reproductions)."""
SMALLEST_GRADIENT = 1e-30
"""Norms below it are zeros: float32 has nothing smaller that an update could use."""
SOLVED_BEST = 0.1
"""Best solved rate from which a fall can be told from noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A canary that fired.

    Example:
        Alert(canary="entropy_collapse", step=31, since=29, good=27, value=0.02, baseline=0.41,
              action="stop", message="policy/entropy 0.02, below 0.041 (start 0.41)")
    """

    canary: str
    step: int
    """Step at which patience ran out."""
    since: int
    """First step of the bad streak."""
    good: int
    """Newest step after which the weights were still seen to be good. The attempts of step N show
    the weights after step N - 1, an evaluation at step N those after step N."""
    value: float
    baseline: float
    """The run's own start, or its best for rates that should not fall back; 0 for absolute
    limits."""
    action: Action
    message: str
    restored: int | None = None
    """Checkpoint that a rollback went back to."""

    def row(self) -> dict[str, Any]:
        """The alert as one line of alerts.jsonl."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class _Memory:
    """What one canary remembers between steps; plain data, so that it resumes exactly."""

    start: list[float] = field(default_factory=list)
    """First good observations; their median is the baseline."""
    recent: list[float] = field(default_factory=list)
    """Last `WINDOW` observations."""
    best: float = -math.inf
    """Largest windowed value."""
    streak: int = 0
    """Consecutive bad observations."""
    since: int = 0
    good: int | None = None
    """As in `Alert`; None until the metric first appears."""
    fired: bool = False
    """Set from firing until the metric is good again: one alert per streak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One canary: a metric and the bound it must not cross, as a function of its baseline."""

    name: str
    metric: str
    """Exact name; a trailing `*` takes the largest name with that prefix (`eval/pass@*`)."""
    below: bool = False
    """Bad when the value is below the bound; otherwise when above."""
    factor: float = 1.0
    offset: float = 0.0
    """bound = factor x baseline + offset, and at least `floor` for upper bounds."""
    offset_only_if_larger: bool = False
    """Both must be crossed: factor x baseline and baseline + offset."""
    floor: float = -math.inf
    from_best: bool = False
    """Compare the windowed value with the best windowed value instead of the start."""
    absolute: bool = False
    """No baseline: the bound is `offset`."""
    is_eval: bool = False
    only_warns: bool = False
    """Says nothing about the weights: never stops a run nor takes it back."""
    meaning: str
    """What it says about the run, for the message."""

    @property
    def delay(self) -> int:
        """Steps between the oldest weights that a value shows and the step it is observed at."""
        if self.is_eval:
            return 0
        return WINDOW if self.from_best else 1

    def bound(self, baseline: float) -> float:
        if self.absolute:
            return self.offset
        if self.offset_only_if_larger:
            pair = (self.factor * baseline, baseline + self.offset)
            return min(pair) if self.below else max(pair)
        return max(self.factor * baseline + self.offset, self.floor)


RULES = (
    _Rule(
        name="entropy_collapse", metric=names.POLICY_ENTROPY, below=True, factor=ENTROPY_COLLAPSE,
        meaning="the policy gives one answer per prompt",
    ),
    _Rule(
        name="entropy_explosion", metric=names.POLICY_ENTROPY, factor=ENTROPY_EXPLOSION,
        offset=ENTROPY_RISE, offset_only_if_larger=True, meaning="the policy drifts into noise",
    ),
    _Rule(
        name="length_growth", metric=names.rollouts_length(90, ""), factor=LENGTH_GROWTH,
        offset=LENGTH_RISE, offset_only_if_larger=True, meaning="attempts start to ramble",
    ),
    _Rule(
        name="truncation", metric=names.TRAIN_TRUNCATED, offset=TRUNCATION_RISE,
        meaning="attempts no longer end",
    ),
    _Rule(
        name="repetition", metric=names.ROLLOUTS_REPEATED_NGRAMS, offset=REPETITION_RISE,
        meaning="attempts loop",
    ),
    _Rule(
        name="format_errors", metric=names.ROLLOUTS_FORMAT_ERRORS, offset=FORMAT_RISE,
        meaning="attempts lose the form the judge needs",
    ),
    _Rule(
        name="flat_groups", metric=names.ROLLOUTS_FLAT_FAILED, offset=FLAT_FAILED_RISE,
        floor=FLAT_FAILED, meaning="hardly any group has a success to learn from",
    ),
    _Rule(
        name="teacher_collapse", metric=names.POLICY_TEACHER_JS, below=True,
        factor=TEACHER_JS_COLLAPSE, meaning="the teacher has nothing left to say",
    ),
    _Rule(
        name="teacher_harms", metric=names.high(names.probe_gain("recipe")), below=True,
        absolute=True, is_eval=True,
        meaning="the student solves more without what its teacher reads",
    ),
    _Rule(
        name="pass_at_k", metric=names.EVAL_PASS_AT + "*", below=True, factor=1 - PASS_AT_K_DROP,
        offset=-PASS_AT_K_FALL, offset_only_if_larger=True, is_eval=True,
        meaning="held-out tasks that were solvable no longer are",
    ),
    _Rule(
        name="initial_kl", metric=names.POLICY_INITIAL_KL, offset=KL_LIMIT, absolute=True,
        meaning="the policy has left the initial model behind",
    ),
    _Rule(
        name="sampler_gap", metric=names.POLICY_SAMPLER_GAP, offset=SAMPLER_GAP_LIMIT,
        absolute=True,
        meaning="sampler and trainer disagree about the same weights; run `sdpo check`, or take "
        "rollout.engine.type=local",
    ),
    _Rule(
        name="solved_collapse", metric=names.TRAIN_SOLVED, below=True, factor=SOLVED_COLLAPSE,
        from_best=True, meaning="what was solved no longer is",
    ),
    _Rule(
        name="nothing_learnt", metric=names.OPTIM_GRAD_NORM, below=True, absolute=True,
        offset=SMALLEST_GRADIENT, only_warns=True,
        meaning="nothing is learnt, since rewards are equal within every group and no attempt has "
        "a teacher that is distilled; take objective.type=sdpo or hybrid with a judge that writes "
        "feedback, tasks that are solved sometimes, or a larger rollout.group_size",
    ),
)  # fmt: skip


class Canaries:
    """Watches one run.

    Example:
        canaries = Canaries(action="stop", patience=3)
        alerts = canaries.observe(12, {"policy/entropy": 0.02})
    """

    def __init__(self, action: Action = "warn", patience: int = 3) -> None:
        self.action: Action = action
        self.patience = patience
        self._memory = {rule.name: _Memory() for rule in RULES}

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alert]:
        """Alerts that fire at `step`: canaries bad for `patience` observations in a row, each once
        per streak."""
        alerts = []
        for rule in RULES:
            value = _value(rule.metric, metrics)
            if value is None or math.isnan(value):
                continue
            alert = self._observe(rule, self._memory[rule.name], step, value)
            if alert is not None:
                alerts.append(alert)
        return alerts

    def good(self, step: int) -> int:
        """Newest step up to `step` after which no canary has doubts about the weights."""
        seen = [self._memory[rule.name].good for rule in RULES if not rule.only_warns]
        return min([step, *(good for good in seen if good is not None)])

    def fired(self) -> list[str]:
        """Names of the canaries that can end a run, have fired, and whose metric has not been good
        since."""
        return [r.name for r in RULES if self._memory[r.name].fired and not r.only_warns]

    def restart(self, step: int) -> None:
        """Forget streaks after a rollback at `step`; baselines stay, since the restored model is
        the run's own past."""
        for memory in self._memory.values():
            memory.streak, memory.fired, memory.recent = 0, False, []
            memory.good = None if memory.good is None else step

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {name: asdict(memory) for name, memory in self._memory.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; canaries it does not know start fresh."""
        for rule in RULES:
            self._memory[rule.name] = _Memory(**state.get(rule.name, {}))

    def _observe(self, rule: _Rule, memory: _Memory, step: int, value: float) -> Alert | None:
        needed = BASELINE_EVALS if rule.is_eval else BASELINE_STEPS
        memory.recent = [*memory.recent, value][-WINDOW:]
        is_first = not memory.start
        if is_first:
            memory.start.append(value)
        compared = statistics.fmean(memory.recent) if rule.from_best else value
        baseline = self._baseline(rule, memory, compared)
        bound = rule.bound(baseline)
        is_bad = compared < bound if rule.below else compared > bound
        if not is_bad:
            if not is_first and len(memory.start) < needed:
                memory.start.append(value)
            memory.streak, memory.fired = 0, False
            memory.good = max(memory.good or 0, step - rule.delay)
            return None
        memory.since = step if memory.streak == 0 else memory.since
        memory.streak += 1
        # An evaluation is an average over the whole split, and waiting for three of them costs tens
        # of steps.
        patience = min(self.patience, 2) if rule.is_eval else self.patience
        if memory.fired or memory.streak < patience:
            return None
        memory.fired = True
        return Alert(
            canary=rule.name,
            step=step,
            since=memory.since,
            good=memory.good or 0,
            value=compared,
            baseline=baseline,
            action="warn" if rule.only_warns else self.action,
            message=_message(rule, compared, baseline, bound),
        )

    def _baseline(self, rule: _Rule, memory: _Memory, compared: float) -> float:
        """What a value is compared with; NaN, compared with which nothing is bad, while unknown."""
        if rule.absolute:
            return 0.0
        if not rule.from_best:
            return statistics.median(memory.start)
        if len(memory.recent) < WINDOW:
            return math.nan
        memory.best = max(memory.best, compared)
        return memory.best if memory.best >= SOLVED_BEST else math.nan


def _value(metric: str, metrics: Mapping[str, float]) -> float | None:
    if not metric.endswith("*"):
        return metrics.get(metric)
    found: Sequence[str] = [name for name in metrics if name.startswith(metric[:-1])]
    # pass@16 after pass@4: the largest k, not the last in the alphabet.
    return metrics[max(found, key=lambda name: (len(name), name))] if found else None


def _message(rule: _Rule, value: float, baseline: float, bound: float) -> str:
    metric = rule.metric.replace("*", "k")
    side = "below" if rule.below else "above"
    origin = "" if rule.absolute else f" ({'best' if rule.from_best else 'start'} {baseline:.3g})"
    return f"{metric} is {value:.3g}, {side} {bound:.3g}{origin}: {rule.meaning}"
