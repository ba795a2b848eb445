"""The nouns every layer shares: tasks, turns, rollouts, verdicts, groups, teacher contexts,
samples.

Plain frozen data without tensors, so that environments, engines and tools can be written, tested
and read without torch. User files are validated by the loaders, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Literal

Message = Mapping[str, Any]
"""One chat message: `{"role": "system" | "user" | "assistant" | "tool", "content": str}`."""

Component = Literal["distill", "pg"]
"""A summand of the objective that a rollout can feed."""

GATED = "teacher_gate"
"""Reason of a context that `teacher.gate` keeps from being distilled."""

Key = tuple[str, int]
"""Task id and index within the group: names a rollout, or the sample made of it, within a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem with what is needed to judge it.

    Example:
        Task(id="clamp", messages=({"role": "user", "content": "Write clamp(x, lo, hi)."},),
        reference={"tests": [...]})
    """

    id: str
    """Stable and unique within its split; seeds and records refer to it."""
    messages: tuple[Message, ...]
    """The conversation the policy continues: optional system turn, earlier turns, a last user
    turn."""
    reference: Any = None
    """What the judge needs (tests, gold answer). The policy never sees it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Free-form facts for reports and curricula; nothing depends on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One policy completion and, in multi-turn environments, what the environment replied to it.

    Example:
        Turn(prompt_ids=(1, 5), completion_ids=(9, 2), sampler_logprobs=(-0.1, -0.3), text="4",
        truncated=False)
    """

    prompt_ids: tuple[int, ...]
    """Every token the policy saw before this turn's completion, earlier turns included."""
    completion_ids: tuple[int, ...]
    """Sampled tokens, the end-of-turn token included when it was sampled."""
    sampler_logprobs: tuple[float, ...]
    """Log-probability of each completion token under the distribution that sampled it (temperature
    applied), nats; NaN where nobody knows what that was."""
    text: str
    """Decoded completion without the end-of-turn token."""
    truncated: bool
    """True when the completion stopped at the token limit instead of an end-of-turn token."""
    reply: tuple[Message, ...] = ()
    """What the environment answered, as it wrote it; empty after the last turn."""
    reward: float | None = None
    """What the environment gave for this turn, for the record; None where it gives none."""
    feedback: str | None = None
    """What the environment said about this turn. The policy never sees it; the teacher reads it as
    `teacher.context.turn_feedback` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an environment answers to one turn.

    Example:
        Reply(messages=({"role": "tool", "content": "no such table: staff"},),
              feedback="The table is called employees.")
    """

    messages: tuple[Message, ...] = ()
    """What the policy reads before its next turn (roles `user` and `tool`); without any, the
    conversation is over."""
    reward: float | None = None
    feedback: str | None = None
    """About this turn, for the teacher alone; None when there is nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled attempt at a task. The top-level fields describe the last turn; `turns` holds all
    of them.

    Example:
        Rollout(task_id="clamp", index=3, prompt_ids=(1, 5), completion_ids=(9, 2),
        sampler_logprobs=(-0.1, -0.3),
                text="4", truncated=False, policy_version=12)
    """

    task_id: str
    index: int
    """Number of the attempt at its task, 0-based; with seed, step and task it fixes the random
    numbers of the attempt. Attempts that could not be judged are missing from a group."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    text: str
    truncated: bool
    """True when the attempt was ended by its token limit: in a completion, or because the
    environment's reply left no room for another one."""
    policy_version: int
    """Counter of published weights that sampled this rollout."""
    turns: tuple[Turn, ...] = ()
    """All turns of a multi-turn attempt, first to last; empty for a single turn."""

    @classmethod
    def written(cls, task: Task, text: str, *, index: int = 0) -> Rollout:
        """An attempt at `task` that says `text`, made by hand and without tokens: what a judge is
        tested with.

        Example:
            assert env.judge(task, sdpo.Rollout.written(task, "4")).solved
        """
        return cls(
            task_id=task.id,
            index=index,
            prompt_ids=(),
            completion_ids=(),
            sampler_logprobs=(),
            text=text,
            truncated=False,
            policy_version=0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The environment's judgement of one rollout.

    Example:
        Verdict(reward=0.0, solved=False, feedback="Runtime Error\\nNameError: ...",
        info={"category": "runtime_error"})
    """

    reward: float
    solved: bool
    """Set by the environment; never derived from the reward."""
    feedback: str | None = None
    """Text about *this* attempt; None when there is nothing to say."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers averaged into `env/NAME` metrics."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the record (`category`, per-test outcomes); never shown to a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherContext:
    """What the self-teacher reads instead of the prompt when it re-scores one rollout.

    Example:
        TeacherContext(messages=({"role": "user", "content": "... Correct solution: ..."},),
        demonstration=2,
                       feedback_used=False, reason=None)
    """

    messages: tuple[Message, ...] | None
    """The conversation up to where the assistant's turn begins; None when this rollout has no
    teacher."""
    demonstration: int | None = None
    """Place among the group's rollouts of the one shown as the demonstration. Not its `index`: an
    attempt that could not be judged leaves a gap there."""
    feedback_used: bool = False
    sources: tuple[str, ...] = ()
    """What it shows besides the task: `sibling`, `own`, `reference` or `other_task` (the
    demonstration), `feedback` or `experience`, `turn_feedback`, `attempt`; `plain` for the
    control."""
    before_turns: tuple[str | None, ...] = ()
    """For the attempt's own turns in order, what the teacher reads at the end of the reply before
    each; None for the first turn and where nothing is said. Empty where nothing stands there."""
    reason: str | None = None
    """Why there is no context (`"solved_alone"`, `"nothing_to_say"`, ...), or what was cut to fit;
    None otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one task in one step, in index order, each with its verdict and with what the
    self-teacher reads for it.

    Example:
        Group(task=task, rollouts=(r0, r1), verdicts=(v0, v1))
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]
    contexts: tuple[TeacherContext, ...] = ()
    """One per rollout once they are built; empty before that and in evaluations."""

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(verdict.reward for verdict in self.verdicts)

    @property
    def solved_rate(self) -> float:
        return sum(verdict.solved for verdict in self.verdicts) / len(self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout ready for the loss: token ids for student and teacher, what it feeds and how
    strongly.

    Example:
        Sample(task_id="clamp", index=0, prompt_ids=(1, 5), completion_ids=(9, 2), loss_mask=(True,
        True),
               sampler_logprobs=(-0.1, -0.3), teacher_prompt_ids=(1, 7, 5), advantage=0.5,
               component_weights={"distill": 1.0})
    """

    task_id: str
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """Everything after the first prompt; in a multi-turn rollout the environment's tokens too
    (loss_mask False there)."""
    loss_mask: tuple[bool, ...]
    """Which completion tokens train. Never used as an attention mask."""
    sampler_logprobs: tuple[float, ...]
    teacher_prompt_ids: tuple[int, ...] | None
    """The teacher's context as tokens; None when nothing is distilled into this rollout."""
    teacher_completion: tuple[tuple[int, ...], tuple[bool, ...]] | None = None
    """`completion_ids` and `loss_mask` as the teacher reads them, where feedback stands between
    turns: other tokens of the environment, the same that train. None: as the student does."""
    negative_prompt_ids: tuple[tuple[int, ...], ...] = ()
    """Contexts with wrong demonstrations, for objectives that contrast them (RLCSD)."""
    advantage: float
    """Group-relative credit from rewards, 0 for a flat group."""
    is_solved: bool = False
    is_flat: bool = False
    """Whether all rewards of its group are equal."""
    solved_rate: float = 0.0
    """Share of its group that solved the task."""
    component_weights: Mapping[str, float]
    """Routing: factor of this rollout in each component (`distill`, `pg`); absent means it does not
    feed it."""

    @property
    def key(self) -> Key:
        return self.task_id, self.index

    @property
    def num_trained(self) -> int:
        """Completion tokens that train."""
        return sum(self.loss_mask)

    @property
    def trained_ids(self) -> tuple[int, ...]:
        """The completion tokens that train, in order."""
        return tuple(compress(self.completion_ids, self.loss_mask))

    @property
    def as_taught(self) -> Sample:
        """The sample with the completion that the teacher reads."""
        if self.teacher_completion is None:
            return self
        completion_ids, loss_mask = self.teacher_completion
        return replace(self, completion_ids=completion_ids, loss_mask=loss_mask)

    @property
    def is_distilled(self) -> bool:
        """Routed to distillation, with a teacher context to be distilled from."""
        return bool(self.component_weights.get("distill")) and self.teacher_prompt_ids is not None

    @property
    def is_rewarded(self) -> bool:
        """Routed to the policy gradient, whatever its advantage."""
        return bool(self.component_weights.get("pg"))
