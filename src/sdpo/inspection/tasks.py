"""Whether a run can use its tasks, before anything is sampled: prompts, the frames a teacher's
context puts around them, and completions after both, against the settings and the model's
positions; and whether there are solutions where the teacher is to read them.

A task that is too long would otherwise end a run in the step that draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sdpo.config.schema import RolloutConfig, RunConfig
from sdpo.config.teacher import ContextConfig
from sdpo.envs.base import Env, reference_answers
from sdpo.errors import ConfigError, PromptTooLongError
from sdpo.models.structure import causal_lm, max_positions
from sdpo.objectives import reads_contexts
from sdpo.records import Message, Task
from sdpo.rollouts.sampler import Sampler
from sdpo.teacher.layout import frames

MAX_NAMED = 3
"""Tasks named in a message."""


def check_tasks(sampler: Sampler, config: RunConfig, *, splits: Iterable[str]) -> None:
    """Raises `PromptTooLongError` that counts the tasks of `splits` that do not fit, names the
    longest, and says which setting to raise, and `ConfigError` as `check_solutions` says."""
    for split in splits:
        tasks = sampler.env.load(split)
        check_prompts(split, tasks, sampler, config.rollout)
        if split == "train":
            check_solutions(sampler.env, tasks, config)
        if split == "train" and reads_contexts(config.objective):
            _check_frames(tasks, config, _counter(sampler), _positions(sampler))


def check_prompts(
    name: str, tasks: Sequence[Task], sampler: Sampler, rollout: RolloutConfig
) -> None:
    """Raises `PromptTooLongError` that counts the tasks, called `name`, that `rollout` or the
    model leaves no room for."""
    count, positions = _counter(sampler), _positions(sampler)
    completion = rollout.max_completion_tokens
    prompts = [(task, count(task, task.messages)) for task in tasks]
    _require(
        prompts,
        rollout.max_prompt_tokens,
        f"{name} tasks have a prompt longer than rollout.max_prompt_tokens",
        "raise it or shorten the tasks",
    )
    _require(
        prompts,
        positions - completion,
        f"{name} tasks leave no room in the model's {positions} positions for "
        f"rollout.max_completion_tokens = {completion}: their prompt is longer than",
        "lower rollout.max_completion_tokens, shorten the tasks, or take a longer model",
    )


def check_solutions(env: Env, tasks: Sequence[Task], config: RunConfig) -> None:
    """Raises `ConfigError` when the teacher is to read the solutions of `tasks` and none has one:
    no attempt would have a teacher, or only those with feedback."""
    rules = config.teacher.context
    wants = isinstance(rules, ContextConfig) and rules.demonstration == "reference"
    if not wants or not reads_contexts(config.objective):
        return
    answer = reference_answers(env)
    if not any((answer(task) or "").strip() for task in tasks):
        raise ConfigError(
            "teacher.context.demonstration = 'reference' needs tasks with solutions "
            f"(reference_answer(task) of the environment), and none of {len(tasks)} tasks has one; "
            "take 'random', which shows a solved sibling"
        )


def _check_frames(
    tasks: Sequence[Task],
    config: RunConfig,
    count: Callable[[Task, Sequence[Message]], int],
    positions: int,
) -> None:
    rules = config.teacher.context
    framed = [
        (task, max(count(task, frame) for frame in shown))
        for task in tasks
        if (shown := frames(task.messages, rules))
    ]
    _require(
        framed,
        rules.max_tokens,
        "train tasks fill the teacher's context before anything is shown in it: their frame is "
        "longer than teacher.context.max_tokens",
        "raise it",
    )
    # A context is cut to max_tokens only where it is longer than its frame.
    longest = max((tokens for _, tokens in framed), default=0)
    completion = config.rollout.max_completion_tokens
    if longest and rules.max_tokens + completion > positions:
        raise PromptTooLongError(
            f"teacher.context.max_tokens = {rules.max_tokens} and rollout.max_completion_tokens = "
            f"{completion} are more than the model's {positions} positions; lower "
            f"teacher.context.max_tokens to {positions - completion} or less (the longest frame "
            f"needs {longest})"
        )


def _require(measured: Sequence[tuple[Task, int]], limit: int, what: str, cure: str) -> None:
    long = sorted((pair for pair in measured if pair[1] > limit), key=lambda pair: -pair[1])
    if not long:
        return
    named = ", ".join(f"{task.id!r} ({tokens})" for task, tokens in long[:MAX_NAMED])
    more = f" and {len(long) - MAX_NAMED} more" if len(long) > MAX_NAMED else ""
    raise PromptTooLongError(
        f"{len(long)} of {len(measured)} {what} = {limit}: {named}{more} tokens; {cure}"
    )


def _counter(sampler: Sampler) -> Callable[[Task, Sequence[Message]], int]:
    return lambda task, messages: len(
        sampler.chat.prompt_ids(messages, what=f"task {task.id!r}: prompt")
    )


def _positions(sampler: Sampler) -> int:
    return max_positions(causal_lm(sampler.policy.model))
