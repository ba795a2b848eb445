"""The environment contract: load tasks, judge rollouts, and optionally more (`Replying`,
`Checking`, `Discoverable`, `Describing`, `Computing`, `Closing`).

An environment is plain Python over records; it never sees a model, tokenizer or tensor. `env(tasks,
judge)` makes one from a list and a function.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from sdpo.errors import ConfigError, JudgeError, TaskError
from sdpo.records import Message, Rollout, Task, Turn, Verdict


@runtime_checkable
class Env(Protocol):
    """What training, evaluation and discovery need from an environment.

    `load` takes `"train"` or `"eval"`. `judge` may be `async def`, is called concurrently and must
    not depend on call order; what it raises stops the run, except for `Unjudged` and its like. What
    else an environment may offer is one protocol each: `Replying`, `Solving`, `Checking`,
    `Discoverable`, `Describing`, `Computing`, `Closing`; an attribute of that name is all it takes,
    and callers ask `isinstance(env, Replying)`.
    """

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of a split, in a fixed order."""
        ...

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The verdict on one rollout of `task`."""
        ...


@runtime_checkable
class Replying(Protocol):
    """An environment whose attempts are conversations; asked when `rollout.max_turns` > 1."""

    def reply(self, task: Task, turns: Sequence[Turn]) -> Message | None:
        """The message that continues the conversation after `turns`; None ends it."""
        ...


@runtime_checkable
class Solving(Protocol):
    """An environment that holds solutions; needed for `teacher.context.demonstration =
    "reference"`."""

    def reference_answer(self, task: Task) -> str | None:
        """A completion that solves `task`, in the form an attempt would have; None without one."""
        ...


def reference_answers(env: Env) -> Callable[[Task], str | None]:
    """The environment's solutions; None for every task where it holds none."""
    return env.reference_answer if isinstance(env, Solving) else lambda task: None


@runtime_checkable
class Checking(Protocol):
    """An environment that can prove its own tasks."""

    def check(self) -> CheckReport:
        """Whether every reference passes and a trivial answer fails."""
        ...


@runtime_checkable
class Discoverable(Protocol):
    """An environment that poses its tasks differently to `sdpo discover`."""

    def for_discovery(self, task: Task) -> Task:
        """`task` as a search judges it, where judging for evaluation would reveal too little."""
        ...


@runtime_checkable
class Describing(Protocol):
    """An environment whose verdicts depend on the machine."""

    def facts(self) -> Mapping[str, str]:
        """What the record of a run should say about judging on this machine, such as the sandbox's
        level."""
        ...


@runtime_checkable
class Computing(Protocol):
    """An environment that computes verdicts on this machine, where more calls at once than it has
    workers would only wait for one another, and for their time limit."""

    @property
    def judges_at_once(self) -> int:
        """Judge calls that make sense at once."""
        ...


@runtime_checkable
class Closing(Protocol):
    """An environment that holds processes or files."""

    def close(self) -> None:
        """Free them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Outcome of an environment's self-check.

    Example:
        CheckReport(num_tasks=160, failures={"clamp": "reference fails test 2"}, skipped=0)
    """

    num_tasks: int
    failures: Mapping[str, str]
    """Task id to what is wrong with the task."""
    skipped: int
    """Tasks without a reference to check."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Task id to why it may be that nobody can solve the task, or that a wrong answer passes."""
    notes: tuple[str, ...] = ()
    """What was found out besides, one line each."""


Judgement = Verdict | float | tuple[float, str | None] | Mapping[str, Any]
"""What a judging function may return: a verdict, a reward, reward and feedback, or a mapping with
fields of a verdict."""
Judge = Callable[[Task, Rollout], Judgement | Awaitable[Judgement]]
Reply = Callable[[Task, Sequence[Turn]], Message | None]


class FunctionEnv:
    """An environment made of a list of tasks and a judging function."""

    def __init__(
        self,
        tasks: Sequence[Task],
        judge: Judge,
        *,
        eval_tasks: Sequence[Task] | None = None,
        reply: Reply | None = None,
        solved_at: float = 1.0,
    ) -> None:
        if not tasks:
            raise TaskError("env(tasks=[]): give at least one task")
        if eval_tasks is not None and not eval_tasks:
            raise TaskError("env(eval_tasks=[]): omit it to evaluate on the training tasks")
        if not callable(judge):
            raise TaskError(f"env(judge={judge!r}): expected a function judge(task, rollout)")
        _check_arity(judge)
        for split in (tasks, eval_tasks or ()):
            seen: set[str] = set()
            for task in split:
                if task.id in seen:
                    raise TaskError(f"task id {task.id!r} occurs twice; make ids unique")
                seen.add(task.id)
        self._splits = {"train": tuple(tasks), "eval": tuple(eval_tasks or tasks)}
        self._judge = judge
        self._solved_at = solved_at
        if reply is not None:
            self.reply = reply

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`; without evaluation tasks, `eval` is `train` again."""
        if split not in self._splits:
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
        return self._splits[split]

    def reference_answer(self, task: Task) -> str | None:
        """The task's reference where it is a string."""
        return task.reference if isinstance(task.reference, str) else None

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The function's verdict as `as_verdict` reads it; awaitable where the function is."""
        found = self._judge(task, rollout)
        if inspect.isawaitable(found):
            return self._awaited(found, task)
        return as_verdict(found, task, solved_at=self._solved_at)

    async def _awaited(self, found: Awaitable[Any], task: Task) -> Verdict:
        return as_verdict(await found, task, solved_at=self._solved_at)


def _check_arity(judge: Callable[..., object]) -> None:
    """Raises `TaskError` unless `judge` can be called with a task and a rollout."""
    try:
        signature = inspect.signature(judge)
    except ValueError:
        return  # A built-in callable without a signature; the call itself will show.
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(judge, "__name__", type(judge).__name__)
        raise TaskError(
            f"env(judge={name}): it is called as {name}(task, rollout), but takes {signature}: "
            f"{error}"
        ) from error


def as_verdict(found: Any, task: Task, *, solved_at: float = 1.0) -> Verdict:
    """The verdict that a judge's answer stands for: a `Verdict`, a number or bool r (numpy's too;
    solved from `solved_at` up), `(r, feedback)`, or a mapping with fields of a verdict, of which
    `solved` may be missing. Raises `JudgeError` for anything else."""
    if isinstance(found, Verdict):
        return found
    fields: dict[str, Any] = {"reward": found}
    if isinstance(found, Mapping):
        fields = {str(name): value for name, value in found.items()}
    elif isinstance(found, tuple | list) and len(found) == 2:
        fields = {"reward": found[0], "feedback": found[1]}
    if hasattr(fields.get("reward"), "item"):
        # An array of several numbers has no item and is refused below.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            fields["reward"] = fields["reward"].item()
    unknown = fields.keys() - set(Verdict.__slots__)
    if unknown or not isinstance(fields.get("reward"), Real):
        what = f"a mapping with {sorted(map(str, found))}" if isinstance(found, Mapping) else ""
        raise JudgeError(
            f"judging task {task.id!r} returned {what or _shown(found)}; return a Verdict, a "
            "number, (reward, feedback), or a mapping with reward and, if wanted, solved, feedback,"
            " metrics, info"
        )
    fields["reward"] = float(fields["reward"])
    solved = fields.setdefault("solved", fields["reward"] >= solved_at)
    if hasattr(solved, "item"):
        fields["solved"] = bool(solved)
    return Verdict(**fields)


def _shown(found: object) -> str:
    text = repr(found)
    return f"{type(found).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def env(
    tasks: Sequence[Task | Mapping[str, object] | str],
    judge: Judge,
    *,
    eval_tasks: Sequence[Task | Mapping[str, object] | str] | None = None,
    reply: Reply | None = None,
    solved_at: float = 1.0,
) -> FunctionEnv:
    """An environment from tasks and a function `judge(task, rollout)`, plain or async, that returns
    a `Verdict`, a number, `(reward, feedback)` or a mapping with fields of a verdict.

    Where it does not say whether the task is solved, a reward from `solved_at` up means so. When it
    cannot judge now it raises `sdpo.Unjudged`; anything else it raises stops the run.

    A task may be a `Task`, a mapping with its fields (`prompt` stands for one user message) or a
    bare prompt, whose id is then `task-N`. `eval_tasks` are evaluated on (default: `tasks`).
    `reply(task, turns)` returns the message that continues a conversation, or None to end it; it is
    called only if `rollout.max_turns` > 1. Raises `TaskError` for an empty list, a repeated id, an
    unknown or malformed field, and a judge that does not take two arguments.
    """
    for name, given in (("tasks", tasks), ("eval_tasks", eval_tasks)):
        if isinstance(given, str | Mapping):
            raise TaskError(
                f"env({name}=...) takes a list of tasks, not a single {type(given).__name__}"
            )
    return FunctionEnv(
        [as_task(task, index) for index, task in enumerate(tasks)],
        judge,
        eval_tasks=None
        if eval_tasks is None
        else [as_task(task, index) for index, task in enumerate(eval_tasks)],
        reply=reply,
        solved_at=solved_at,
    )


def as_task(task: Task | Mapping[str, object] | str, index: int) -> Task:
    """The `Task` that a mapping or a bare prompt denotes; `index` gives it an id if it has none."""
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        task = {"prompt": task}
    fields = dict(task)
    if "prompt" in fields and "messages" in fields:
        raise TaskError(f"task {fields.get('id', index)!r}: give prompt or messages, not both")
    if "prompt" in fields:
        prompt = fields.pop("prompt")
        # Data sets call a conversation a prompt, too.
        is_conversation = isinstance(prompt, list | tuple)
        fields["messages"] = prompt if is_conversation else ({"role": "user", "content": prompt},)
    fields.setdefault("id", f"task-{index}")
    unknown = set(fields) - {"id", "messages", "reference", "metadata"}
    if unknown or "messages" not in fields:
        raise TaskError(
            f"task {fields['id']!r}: "
            + (f"unknown fields {sorted(unknown)}" if unknown else "no prompt")
            + "; a task has id, prompt or messages, reference, metadata"
        )
    if not isinstance(fields["id"], str):
        raise TaskError(f"task {fields['id']!r}: an id is a string; write id={str(fields['id'])!r}")
    fields["messages"] = tuple(fields["messages"])  # ty: ignore[invalid-argument-type]
    for message in fields["messages"]:
        is_mapping = isinstance(message, Mapping)
        parts = [message.get(key) for key in ("role", "content")] if is_mapping else [None]
        if not all(isinstance(part, str) for part in parts):
            raise TaskError(
                f"task {fields['id']!r}: message {message!r} needs role and content, both strings"
            )
    return Task(**fields)  # ty: ignore[invalid-argument-type]
