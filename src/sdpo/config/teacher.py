"""What the self-teacher reads and whose weights it has."""

from __future__ import annotations

import string
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sdpo.config.base import Config
from sdpo.config.custom import CustomConfig
from sdpo.config.objective import Fraction, NonNegative


class TemplatesConfig(Config):
    """The wording of teacher contexts; `{...}` is where the text goes, `{{` is a brace. The paper
    finds results insensitive to it (Table 2); the order of sections is the paper's."""

    demonstration: str = "Here is a correct solution:\n\n{demonstration}"
    """Section of the single-turn layout that shows a correct answer."""
    feedback: str = (
        "An earlier attempt failed. This is what the environment said about it:\n\n{feedback}"
    )
    """Section that shows what the environment said, in either layout."""
    turn_feedback: str = (
        "This is what the environment said about an earlier answer at this point:\n\n{feedback}"
    )
    """Said before the turn that the feedback is about, with `turn_feedback = "before_turn"`."""
    attempt: str = "This is the earlier attempt:\n\n{attempt}"
    """Section of the single-turn layout that shows the attempt itself."""
    solve: str = "Now solve the original task yourself."
    """Last line after sections; makes clear that an answer is due, not a comment on them."""
    correct: str = "This answer is correct."
    """`turns`: said of a demonstration shown as an earlier answer."""
    wrong: str = "This answer is wrong."
    """`turns`: said of the attempt shown as an earlier answer."""
    again: str = "Answer the same task again:\n\n{task}"
    """`turns`: the task in its original words, so that the format is asked for once more."""

    @field_validator("*", mode="after")
    @classmethod
    def _has_its_placeholder(cls, value: str, info: ValidationInfo) -> str:
        name = str(info.field_name)
        wanted = {"again": {"task"}, "turn_feedback": {"feedback"}}.get(
            name, {name} if name in ("demonstration", "feedback", "attempt") else set()
        )
        try:
            found = {
                field for _, field, _, _ in string.Formatter().parse(value) if field is not None
            }
        except ValueError as error:
            raise ValueError(f"{error}; write a literal brace as {{{{ or }}}}") from error
        if found != wanted:
            shown = "".join(f"{{{each}}}" for each in sorted(wanted)) or "no placeholder"
            raise ValueError(f"needs {shown}; found {sorted(found) or 'none'} in {value!r}")
        return value


class _ShownConfig(Config):
    layout: Literal["single_turn", "turns"] = "single_turn"
    """Everything in one user turn (the paper), or the demonstration as an earlier answer in the
    chat. Feedback without an answer beside it follows the question in both: placed before it, a
    0.5B teacher solved 0 of 16 attempts where it solves 9 after it."""
    templates: TemplatesConfig = TemplatesConfig()
    """Wording of the sections."""
    max_tokens: PositiveInt = 1024
    """Budget of the teacher's prompt; feedback and demonstration are cut in the middle to fit, the
    frame never."""


class ContextConfig(_ShownConfig):
    type: Literal["rules"] = "rules"
    """Demonstration and feedback by the rules below (Table 2)."""
    demonstration: Literal["random", "majority", "reference", "none"] = "random"
    """Correct answer shown to the teacher: a random solved sibling (the paper), a sibling that
    gives the answer most attempts agree on (U-OPSD, 2608.06296; needs an environment that names an
    attempt's answer), or the task's own reference solution (OPSD, SDFT; needs an environment that
    has one)."""
    own_demonstration: bool = False
    """Whether a solved attempt may be its own demonstration when no sibling solved. Released code
    of the paper: false."""
    feedback: Literal["always", "without_demonstration", "never"] = "without_demonstration"
    """When the attempt's own feedback is shown. Paper: without_demonstration."""
    turn_feedback: Literal["before_turn", "at_start", "never"] = "before_turn"
    """In conversations, where feedback about single turns stands, if the attempt's feedback is
    shown: each before its turn, in the attempt that the teacher re-reads; all of it in the section
    of the attempt's feedback; or nowhere."""
    experience: bool = False
    """Show one note for each task family instead of the attempt's own feedback: the distinct lines
    of feedback to this step's failed attempts at tasks of equal `metadata["family"]`."""
    attempt: bool = False
    """Whether the attempt itself is shown next to its feedback (Table 6: lowers entropy and
    accuracy). Paper: false."""
    control: Literal["none", "plain", "other_task"] = "none"
    """For experiments: the teacher reads the bare task (`plain`), or another task's solved attempt
    as its demonstration (`other_task`). Paper: none."""

    @model_validator(mode="after")
    def _controls_stand_alone(self) -> Self:
        if self.control == "other_task" and self.demonstration != "random":
            raise ValueError(
                "control = 'other_task' takes the place of the demonstration, which is "
                f"{self.demonstration!r}; leave it at 'random'"
            )
        if self.experience and self.feedback == "never":
            raise ValueError("experience = true shows feedback, and feedback = 'never' shows none")
        return self


class CustomContextConfig(_ShownConfig, CustomConfig):
    type: Literal["custom"] = "custom"
    """`function(group, index, others, rng, **options)`: what the teacher of that rollout is shown,
    as {"demonstration": ..., "feedback": ..., "attempt": ...}, each a string or one of the
    `Rollout`s and each optional, and "turn_feedback", a string or None for each of its turns; None:
    it has no teacher. `others` are the step's groups."""


AnyContextConfig = Annotated[ContextConfig | CustomContextConfig, Field(discriminator="type")]


class LiveConfig(Config):
    type: Literal["live"] = "live"
    """The student's own current weights. No extra memory."""


class FrozenConfig(Config):
    type: Literal["frozen"] = "frozen"
    """The initial weights. One copy of the weights."""


class EmaConfig(Config):
    type: Literal["ema"] = "ema"
    """teacher <- (1 - rate) teacher + rate student after every step, as in the paper's code: once,
    however many updates the step has. A float32 copy, plus one in the compute type if that is not
    float32."""
    rate: Fraction = 0.05
    """Paper: 0.05 without rich feedback, 0.01 with it."""


class SnapshotConfig(Config):
    type: Literal["snapshot"] = "snapshot"
    """The student as it was at the last multiple of `every` steps. One copy of the weights."""
    every: PositiveInt = 10
    """Steps between refreshes. RLCSD: 10."""


class GatedConfig(Config):
    type: Literal["gated"] = "gated"
    """Frozen, refreshed only when reward rose since the last refresh and the length tail is safe
    (2606.03532). One copy."""
    every: PositiveInt = 10
    """Steps between the decisions, and the window both averages are taken over."""
    min_gain: NonNegative = 0.0
    """Rise of the mean reward that a refresh needs."""
    max_tail_growth: PositiveFloat = 1.2
    """A refresh needs the p90 of completion lengths below this factor times that of the last
    refresh."""


class TrustRegionConfig(Config):
    type: Literal["trust_region"] = "trust_region"
    """target ~ initial^(1-mix) x student^mix, both in the teacher's context (Eq. 10, 16). One copy,
    two teacher passes."""
    mix: Fraction = 0.01
    """Share of the current student in the geometric mean. Paper: 0.01."""


class CustomScheduleConfig(CustomConfig):
    type: Literal["custom"] = "custom"
    """`function(metrics, state, **options)` after every step: the share of the student in
    teacher <- (1 - share) teacher + share student; 0 leaves the teacher, 1 replaces it. `state` is
    a dict of plain values that the function may change and checkpoints keep. Memory as `ema`."""


ScheduleConfig = Annotated[
    LiveConfig
    | FrozenConfig
    | EmaConfig
    | SnapshotConfig
    | GatedConfig
    | TrustRegionConfig
    | CustomScheduleConfig,
    Field(discriminator="type"),
]


class NoGateConfig(Config):
    type: Literal["none"] = "none"
    """Every task is distilled."""


class ProbeGateConfig(Config):
    type: Literal["probe"] = "probe"
    """In every step the self-teacher answers each task first, in contexts that would be distilled;
    the environment judges. A task whose teacher does not solve enough is not distilled
    (TGOPD, 2609.02998); where the objective has rewards, it learns from them alone."""
    attempts: PositiveInt = 3
    """The teacher's answers a task; they cost as much as attempts and are not counted as such.
    TGOPD: 3."""
    min_solved: Fraction = 2 / 3
    """Share of them that must be solved. TGOPD: 2/3."""
    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """How much that share must exceed the task's own attempts' of this step; negative: how much it
    may fall short. TGOPD compares with no student: -1."""


GateConfig = Annotated[NoGateConfig | ProbeGateConfig, Field(discriminator="type")]


class TeacherConfig(Config):
    context: AnyContextConfig = ContextConfig()
    """What the teacher sees."""
    schedule: ScheduleConfig = EmaConfig()
    """Whose weights it has."""
    gate: GateConfig = NoGateConfig()
    """Which tasks it may teach."""

    @field_validator("context", mode="before")
    @classmethod
    def _follows_rules_unless_it_says_otherwise(cls, value: object) -> object:
        return {"type": "rules", **value} if isinstance(value, dict) else value
