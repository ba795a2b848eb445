"""The environment contract: load tasks, judge rollouts, and optionally more (`Checking`,
`Discoverable`, `Describing`, `Computing`, `Recorded`, `Closing`; conversations: `episodes.py`).

An environment is plain Python over records; it never sees a model, tokenizer or tensor. `env(tasks,
judge)` makes one from a list and a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sdpo.envs.episodes import MAX_TURNS, Answer, GivenEpisode, Opening, replay
from sdpo.envs.sources import read_source
from sdpo.envs.verdicts import Judgement, as_verdict
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Rollout, Task, Turn, Verdict


@runtime_checkable
class Env(Protocol):
    """What training, evaluation and discovery need from an environment.

    `load` takes `"train"` or `"eval"`. `judge` may be `async def`, is called concurrently and must
    not depend on call order; what it raises stops the run, except for `Unjudged` and its like. What
    else an environment may offer is one protocol each: `Solving`, `Checking`, `Discoverable`,
    `Describing`, `Computing`, `Recorded`, `Closing`, and in `episodes.py` `Opening`, `Replying`,
    `Limiting`, `Equipping`; an attribute of that name is all it takes, and callers ask
    `isinstance(env, Closing)`.
    """

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of a split, in a fixed order."""
        ...

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The verdict on one rollout of `task`."""
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
class Recorded(Protocol):
    """An environment with attempts that are already written down; nothing is sampled for those."""

    def recorded(self, task: Task) -> str | None:
        """The one attempt at `task`; None where attempts are sampled as usual."""
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


Judge = Callable[[Task, Rollout], Judgement | Awaitable[Judgement]]
ReplyFunction = Callable[[Task, Sequence[Turn]], Answer | Awaitable[Answer]]
EpisodeFactory = Callable[[Task, int], Any]
"""Makes an `Episode` for the attempt of this number; its verdict may be any `Judgement`, and it
need not have `close`."""


class FunctionEnv:
    """An environment made of a list of tasks and a judging function, or an episode for each
    attempt."""

    def __init__(
        self,
        tasks: Sequence[Task],
        judge: Judge | None = None,
        *,
        eval_tasks: Sequence[Task] | None = None,
        reply: ReplyFunction | None = None,
        episode: EpisodeFactory | None = None,
        max_turns: int = MAX_TURNS,
        tools: Sequence[Any] = (),
        close: Callable[[], None] | None = None,
        solved_at: float = 1.0,
    ) -> None:
        if not tasks:
            raise TaskError("env(tasks=[]): give at least one task")
        if eval_tasks is not None and not eval_tasks:
            raise TaskError("env(eval_tasks=[]): omit it to evaluate on the training tasks")
        self._judge = _judge_of(judge, reply, episode)
        self._solved_at = solved_at
        for split in (tasks, eval_tasks or ()):
            seen: set[str] = set()
            for task in split:
                if task.id in seen:
                    raise TaskError(f"task id {task.id!r} occurs twice; make ids unique")
                seen.add(task.id)
        self._splits = {"train": tuple(tasks), "eval": tuple(eval_tasks or tasks)}
        # Callers ask for these by name, so they are there only where they were given.
        if reply is not None:
            self.reply = reply
        if episode is not None:
            self.open = partial(_open_episode, episode, solved_at)
        if reply is not None or episode is not None:
            if max_turns < 1:
                raise TaskError(f"env(max_turns={max_turns}): an attempt has at least one turn")
            self.max_turns = max_turns
        if tools:
            self.tools = tuple(tools)
        if close is not None:
            self.close = close

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`; without evaluation tasks, `eval` is `train` again."""
        if split not in self._splits:
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
        return self._splits[split]

    def reference_answer(self, task: Task) -> str | None:
        """The task's reference where it is a string."""
        return task.reference if isinstance(task.reference, str) else None

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The function's verdict as `as_verdict` reads it, awaitable where the function is; of
        episodes, the verdict of one that is told the turns of `rollout`."""
        if self._judge is None:
            assert isinstance(self, Opening)
            return replay(self, task, rollout)
        found = self._judge(task, rollout)
        if inspect.isawaitable(found):
            return self._awaited(found, task)
        return as_verdict(found, task, solved_at=self._solved_at)

    async def _awaited(self, found: Awaitable[Any], task: Task) -> Verdict:
        return as_verdict(await found, task, solved_at=self._solved_at)


Given = Path | Sequence[Task | Mapping[str, object] | str]
"""Tasks as `env` takes them."""


def _open_episode(
    factory: EpisodeFactory, solved_at: float, task: Task, attempt: int
) -> GivenEpisode | Awaitable[GivenEpisode]:
    made = factory(task, attempt)
    if not inspect.isawaitable(made):
        return GivenEpisode(made, task, solved_at)

    async def opened() -> GivenEpisode:
        return GivenEpisode(await made, task, solved_at)

    return opened()


def _judge_of(
    judge: Judge | None, reply: ReplyFunction | None, episode: EpisodeFactory | None
) -> Judge | None:
    """`judge` itself; None where episodes judge. Raises `TaskError` for what does not go
    together."""
    if episode is None:
        if not callable(judge):
            raise TaskError(f"env(judge={judge!r}): expected a function judge(task, rollout)")
        _check_arity(judge, "judge", ("task", "rollout"))
        return judge
    for name, given in (("judge", judge), ("reply", reply)):
        if given is not None:
            raise TaskError(
                f"env({name}=..., episode=...): an episode replies in step(turn) and judges in "
                f"verdict(); leave {name} out"
            )
    if not callable(episode):
        raise TaskError(
            f"env(episode={episode!r}): expected a class or function of (task, attempt)"
        )
    _check_arity(episode, "episode", ("task", "attempt"))
    return None


def _check_arity(function: Callable[..., object], what: str, arguments: Sequence[str]) -> None:
    """Raises `TaskError` unless `function` can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # A built-in callable without a signature; the call itself will show.
    try:
        signature.bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise TaskError(
            f"env({what}={name}): it is called as {name}({', '.join(arguments)}), but takes "
            f"{signature}: {error}"
        ) from error


def env(
    tasks: Given,
    judge: Judge | None = None,
    *,
    eval_tasks: Given | None = None,
    reply: ReplyFunction | None = None,
    episode: EpisodeFactory | None = None,
    max_turns: int = MAX_TURNS,
    tools: Sequence[Any] = (),
    close: Callable[[], None] | None = None,
    solved_at: float = 1.0,
) -> FunctionEnv:
    """An environment from tasks and a function `judge(task, rollout)`, plain or async, that returns
    a `Verdict`, a number, `(reward, feedback)` or a mapping with fields of a verdict.

    Where it does not say whether the task is solved, a reward from `solved_at` up means so. When it
    cannot judge now it raises `sdpo.Unjudged`; anything else it raises stops the run.

    A task may be a `Task`, a mapping with its fields (`prompt` stands for one user message) or a
    bare prompt, whose id is then `task-N`; a `Path` is a file of such mappings (`.json`, `.jsonl`,
    `.csv`, `.parquet`). `eval_tasks` are evaluated on (default: `tasks`).
    `reply(task, turns)` makes attempts conversations: it returns the messages that continue one, or
    None to end it. Where attempts have state, `episode(task, attempt)` (a class will do) makes an
    `Episode` for each, in the place of judge and reply. Either has `max_turns` turns at most.
    `tools` are shown by the chat template: JSON schemas or documented functions. `close` frees what
    all attempts share, when a run that opened the environment itself (`env.path`) ends. Raises
    `TaskError` for an empty list, a repeated id, an unknown or malformed field, and a function that
    does not take two arguments.
    """
    return FunctionEnv(
        _as_tasks(tasks, "tasks"),
        judge,
        eval_tasks=None if eval_tasks is None else _as_tasks(eval_tasks, "eval_tasks"),
        reply=reply,
        episode=episode,
        max_turns=max_turns,
        tools=tools,
        close=close,
        solved_at=solved_at,
    )


def _as_tasks(given: Given, name: str) -> list[Task]:
    """What `env(NAME=given)` means."""
    if isinstance(given, str | Mapping):
        cure = f"; write Path({given!r}) for a file" if isinstance(given, str) else ""
        raise TaskError(
            f"env({name}=...) takes a list of tasks, not a single {type(given).__name__}{cure}"
        )
    if isinstance(given, Path):
        if given.is_dir():
            raise TaskError(f"env({name}={str(given)!r}) is a folder; name a file of it")
        given = [line.row for line in read_source(str(given), setting=name)]
    return [as_task(task, index) for index, task in enumerate(given)]


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
