"""Whether self-distillation can help before it is paid for: does the model solve what it failed at
once it has read the feedback or a demonstration?

The student attempts training tasks and is judged. For every failed attempt the same weights then
sample an answer of their own in each kind of teacher context. A kind's gain is the teacher's solved
rate minus the student's on the same tasks. The student's rate comes from attempts of its own that
chose nothing: rating it by the attempts that decided which contexts exist (a demonstration needs a
solved sibling) would let luck pass for skill. The control `no_context`, a fresh attempt at the bare
task, must therefore have a gain near zero; `other_task` shows what any solved answer does.

Nothing is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sdpo.config.teacher import AnyContextConfig, ContextConfig
from sdpo.engines.base import Sampling
from sdpo.envs.base import reference_answers
from sdpo.errors import ConfigError
from sdpo.evaluation import Interval, bootstrap
from sdpo.inspection.reach import Reach
from sdpo.metrics import names
from sdpo.progress import phase
from sdpo.records import Group, Rollout, Task, TeacherContext
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.together import Together
from sdpo.seeds import derive
from sdpo.teacher.context import Reading, for_own_answers, teacher_contexts

Kind = Literal[
    "recipe", "other_layout", "demonstration", "feedback", "both", "other_task", "no_context"
]
"""What a teacher context holds: what the recipe's own rules say, the same in the other layout, a
solved sibling, the attempt's feedback, both, or, as controls, another task's solved answer and
nothing."""

_ALONE = Together()


@dataclass(frozen=True, slots=True, kw_only=True)
class KindResult:
    """What one kind of teacher context is worth on the failed attempts that can have it.

    Example:
        KindResult(num_tasks=9, num_attempts=31, student=0.10, teacher=0.42,
                   gain=Interval(mean=0.32, low=0.18, high=0.45, level=0.9))
    """

    num_tasks: int
    num_attempts: int
    """Failed attempts that have a context of this kind; the teacher answered once for each."""
    student: float
    """Solved rate of the student's second round of attempts, mean over these tasks; 0 without
    tasks."""
    teacher: float
    """Solved rate of the teacher's answers, mean over these tasks; 0 without tasks."""
    gain: Interval | None
    """teacher - student with its 90% interval over tasks; None without tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The outcome of a teacher probe.

    Example:
        Probe(num_tasks=16, num_attempts=64, num_failed=57, kinds={"recipe": result})
    """

    num_tasks: int
    num_attempts: int
    """The student's attempts of the first round."""
    num_failed: int
    kinds: Mapping[Kind, KindResult]
    reach: Reach | None = None
    """Which corrections a divergence can move; None where only the answers were asked for."""
    advice: tuple[str, ...] = ()
    """Settings that fit what was measured better than the recipe's."""

    def metrics(self) -> dict[str, float]:
        """The `probe/*` keys of metrics.jsonl: the share of attempts that failed and every kind's
        gain with its 90% interval; kinds no failed attempt can have are absent."""
        values = {names.PROBE_FAILED: self.num_failed / self.num_attempts}
        for kind, result in self.kinds.items():
            if result.gain is not None:
                name = names.probe_gain(kind)
                values[name] = result.gain.mean
                values[names.low(name)] = result.gain.low
                values[names.high(name)] = result.gain.high
        return values

    def sentence(self) -> str:
        """Whether self-distillation is likely to help here, in words."""
        if not self.num_failed:
            return "Nothing to learn here: the student solved every attempt; take harder tasks."
        recipe = self.kinds["recipe"]
        if recipe.gain is None:
            return (
                f"Self-distillation cannot help here: none of {self.num_failed} failed attempts "
                "has a teacher context in this recipe; raise rollout.group_size or let the "
                "environment write feedback."
            )
        rates = (
            f"in this recipe's contexts the teacher solves {recipe.teacher:.0%} where the student "
            f"solves {recipe.student:.0%} (gain {recipe.gain.low:+.2f} to {recipe.gain.high:+.2f})"
        )
        if recipe.gain.high <= 0:
            return f"Self-distillation is unlikely to help here: {rates}."
        if recipe.gain.low <= 0:
            return f"It is unclear whether self-distillation helps here: {rates}; probe more tasks."
        control = self.kinds["other_task"].gain
        if control is not None and control.low > 0:
            rates += (
                f", but another task's demonstration alone gives {control.mean:+.2f}, "
                "so some of it is format"
            )
        return f"Self-distillation is likely to help here: {rates}."


@phase("probe")
def probe_tasks(
    collector: Collector,
    tasks: Sequence[Task],
    rules: AnyContextConfig,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
    together: Together = _ALONE,
    reach_of: Callable[[Sequence[tuple[Rollout, tuple[int, ...]]]], Reach] | None = None,
) -> Probe:
    """Student and teachers on `tasks`, `samples` attempts each; `rules` are the recipe's.
    With `reach_of`, which measures failed attempts and their teacher prompts in the recipe's
    contexts, the other layout is asked too.

    Everything random depends on `seed`, task and attempt only, not on the number of processes, each
    of which samples its share and returns the same probe. A teacher plays an episode of its own
    after its context, so what was said about single turns stands in the context's beginning.
    """

    def student_round(which: str) -> list[Group]:
        seeds = derive(seed, "probe", which)
        return together.collect(
            collector, tasks, group_size=samples, sampling=sampling, seed=seeds
        ).groups

    groups, again = student_round("student"), student_round("student again")
    # A task counts where both rounds have a judged attempt at it.
    student = {group.task.id: group.solved_rate for group in again if group.rollouts}
    groups = [group for group in groups if group.rollouts and group.task.id in student]
    kinds = _rules(rules, both_layouts=reach_of is not None)
    asks = {kind: _failed(collector, groups, kind, rules, seed) for kind, rules in kinds}
    attempts = {
        (group.task.id, rollout.index): (group.task, rollout)
        for group in groups
        for rollout in group.rollouts
    }
    wanted = list(dict.fromkeys(ask for part in asks.values() for ask in part))
    solved = _solved(
        collector, [(a, *attempts[a.task_id, a.index]) for a in wanted], sampling, seed, together
    )
    return Probe(
        num_tasks=len(groups),
        num_attempts=sum(len(group.rollouts) for group in groups),
        num_failed=sum(not v.solved for group in groups for v in group.verdicts),
        kinds={kind: _result(part, solved, student) for kind, part in asks.items()},
        reach=None
        if reach_of is None
        else reach_of([(attempts[a.task_id, a.index][1], a.prompt_ids) for a in asks["recipe"]]),
    )


def _solved(
    collector: Collector,
    asks: Sequence[tuple[_Ask, Task, Rollout]],
    sampling: Sampling,
    seed: int,
    together: Together,
) -> dict[_Ask, bool]:
    """Whether the teacher's answer to each of `asks` is right; those that could not be judged are
    left out."""
    answers = together.answer(
        collector,
        [(task, rollout, ask.prompt_ids) for ask, task, rollout in asks],
        sampling=sampling,
        seed=derive(seed, "probe", "teacher"),
    )
    return {
        ask: answer[1].solved
        for (ask, _, _), answer in zip(asks, answers, strict=True)
        if answer is not None
    }


def layout_advice(probe: Probe, rules: AnyContextConfig) -> str | None:
    """The other layout, where the teacher's answers in it are better by more than the interval of
    the recipe's gain; None otherwise."""
    here, there = probe.kinds["recipe"], probe.kinds["other_layout"]
    if here.gain is None or there.gain is None or there.gain.mean <= here.gain.high:
        return None
    other = "turns" if rules.layout == "single_turn" else "single_turn"
    return (
        f"the teacher solves {there.teacher:.0%} with teacher.context.layout={other}, where this "
        f"recipe's layout gives {here.teacher:.0%}"
    )


def choose_tasks(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """A seeded choice of `count` of `tasks` (all when there are fewer), in their order."""
    if count < 1:
        raise ConfigError(f"probe: tasks = {count}; at least one task is needed")
    rng = random.Random(derive(seed, "probe", "tasks"))
    chosen = sorted(rng.sample(range(len(tasks)), min(count, len(tasks))))
    return [tasks[index] for index in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """One answer wanted of the teacher. Kinds that show the same context share the answer.

    Example:
        _Ask(task_id="clamp", index=2, prompt_ids=(1, 5))
    """

    task_id: str
    index: int
    """The failed attempt that is answered anew."""
    prompt_ids: tuple[int, ...]


def _rules(rules: AnyContextConfig, *, both_layouts: bool) -> list[tuple[Kind, AnyContextConfig]]:
    shown = rules
    if not isinstance(shown, ContextConfig):
        shown = ContextConfig(
            layout=rules.layout, templates=rules.templates, max_tokens=rules.max_tokens
        )

    def varied(**changes: object) -> ContextConfig:
        return shown.model_copy(update={"control": "none", **changes})

    other = "turns" if rules.layout == "single_turn" else "single_turn"
    turned: list[tuple[Kind, AnyContextConfig]] = [
        ("other_layout", rules.model_copy(update={"layout": other}))
    ]
    return [
        ("recipe", rules),
        *(turned if both_layouts else ()),
        ("demonstration", varied(demonstration="random", feedback="never")),
        ("feedback", varied(demonstration="none", feedback="always")),
        ("both", varied(demonstration="random", feedback="always")),
        ("other_task", varied(control="other_task", demonstration="random", feedback="never")),
        ("no_context", varied(control="plain")),
    ]


def _failed(
    collector: Collector, groups: Sequence[Group], kind: Kind, rules: AnyContextConfig, seed: int
) -> list[_Ask]:
    """What to ask the teacher for the failed attempts that have a context of this kind."""
    chat = collector.chat
    reference_answer = reference_answers(collector.env)
    asks = []
    for group in groups:
        # One generator per task whatever the kind, so that all kinds show the same demonstration.
        contexts = teacher_contexts(
            group,
            for_own_answers(rules),
            random.Random(derive(seed, "probe", group.task.id)),
            Reading.of(chat),
            others=groups,
            reference=reference_answer(group.task),
        )
        for rollout, context, verdict in zip(group.rollouts, contexts, group.verdicts, strict=True):
            if verdict.solved or not _is_of(kind, context):
                continue
            assert context.messages is not None
            prompt_ids = chat.prompt_ids(context.messages)
            asks.append(_Ask(task_id=group.task.id, index=rollout.index, prompt_ids=prompt_ids))
    return asks


def _is_of(kind: Kind, context: TeacherContext) -> bool:
    if kind == "both":
        return context.demonstration is not None and context.feedback_used
    return context.messages is not None


def _result(
    asks: Sequence[_Ask], solved: Mapping[_Ask, bool], student: Mapping[str, float]
) -> KindResult:
    by_task: dict[str, list[bool]] = {}
    # An answer that could not be judged is left out.
    asks = [ask for ask in asks if ask in solved]
    for ask in asks:
        by_task.setdefault(ask.task_id, []).append(solved[ask])
    teacher = {task: fmean(answers) for task, answers in by_task.items()}
    gains = [rate - student[task] for task, rate in teacher.items()]
    return KindResult(
        num_tasks=len(by_task),
        num_attempts=len(asks),
        student=fmean(student[task] for task in by_task) if by_task else 0.0,
        teacher=fmean(teacher.values()) if by_task else 0.0,
        gain=bootstrap(gains) if gains else None,
    )
