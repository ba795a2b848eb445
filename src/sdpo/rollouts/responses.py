"""Judging outside of a run: a file of responses, by the judge of any environment (`sdpo judge`).

A response is a line `{"id": task id, "response": text, "truncated": false}`, any number per task,
or a line of `rollouts.jsonl` and of `sdpo eval --attempts` (`task`, `text`). Its verdict is a line
`{"id", "reward", "solved", "category", "feedback", "metrics"}`, with `sandbox` where programs are
judged, and with the judge's traceback under `error` if the category is `error`. `unjudged`: the
judge's service said "not now" to the last retry.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo.config.environments import JudgingConfig
from sdpo.envs.base import Closing, Computing, Env
from sdpo.envs.code.tasks import CodeReference, TestSplit, with_tests
from sdpo.envs.opening import open_env
from sdpo.envs.table import Line, read_lines
from sdpo.errors import ConfigError, SdpoError, TaskError
from sdpo.printable import printable_json
from sdpo.records import Rollout, Task, Verdict
from sdpo.rollouts.judging import judge_all
from sdpo.run_folder import config_of

_KEYS = ("id", "response", "truncated")
_ATTEMPT_KEYS = {"task", "text", "truncated"}
"""What a line of rollouts.jsonl is recognised by; its other keys are not about the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    task: Task
    text: str
    is_truncated: bool


def judge_file(
    *arguments: str,
    responses: str | Path,
    split: TestSplit = "private",
    out: str | Path | None = None,
    env: Env | None = None,
) -> list[Verdict | None]:
    """The verdicts on a file of responses, in order, each written as one line once it is known, to
    the file `out` or to standard output.

    `arguments` name the environment as for a run: a recipe, a run's folder, `env.type=choice`,
    `env.tasks=FILE`; `env` replaces it. `split` chooses the tests of code tasks. None stands for a
    response without a verdict.
    """
    if split not in ("public", "private"):
        raise ConfigError(f"split = {split!r}: choose public or private")
    config = config_of(arguments, has_env=env is not None)
    # A response without a verdict is one line of the output, not the end of it.
    settings = config.env.model_copy(update={"max_unjudged": 1.0})
    with ExitStack() as stack:
        if env is None:
            env = open_env(config.env)
            if isinstance(env, Closing):
                stack.callback(env.close)
        known = _tasks(env, split)
        if not Path(responses).is_file():
            raise ConfigError(
                f"responses = {str(responses)!r}: there is no such file; it has a line "
                '{"id": ..., "response": ...} for every response'
            )
        attempts = [_response(line, known) for line in read_lines(Path(responses))]
        write = _writer(out, stack)
        verdicts = []
        for attempt, verdict in zip(
            attempts, _verdicts(env, attempts, settings, stack), strict=True
        ):
            write(_line(attempt.task, verdict))
            verdicts.append(verdict)
    return verdicts


def _tasks(env: Env, split: TestSplit) -> dict[str, Task]:
    """Every task by its id; code tasks with the tests of `split`."""
    found: dict[str, Task] = {}
    problem: TaskError | None = None
    for part in ("train", "eval"):
        try:
            found |= {task.id: task for task in env.load(part)}
        except TaskError as error:  # a file may have tasks for evaluation only
            problem = error
    if problem is not None and not found:
        raise problem
    return {
        name: with_tests(task, split) if isinstance(task.reference, CodeReference) else task
        for name, task in found.items()
    }


def _verdicts(
    env: Env, attempts: Sequence[_Response], settings: JudgingConfig, stack: ExitStack
) -> Iterator[Verdict | None]:
    at_once = env.judges_at_once if isinstance(env, Computing) else settings.concurrency
    pool = stack.enter_context(ThreadPoolExecutor(max_workers=at_once))
    # If one fails, do not wait for everything that is queued behind it.
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def verdict(index: int, attempt: _Response) -> Verdict | None:
        rollout = Rollout(
            task_id=attempt.task.id,
            index=index,
            prompt_ids=(),
            completion_ids=(),
            sampler_logprobs=(),
            text=attempt.text,
            truncated=attempt.is_truncated,
            policy_version=0,
        )
        (found,) = judge_all(env, [(attempt.task, rollout)], settings)
        return found

    return pool.map(verdict, range(len(attempts)), attempts)


def _response(line: Line, known: Mapping[str, Task]) -> _Response:
    row = line.row
    if row.keys() >= _ATTEMPT_KEYS:
        row = {"id": row["task"], "response": row["text"], "truncated": row["truncated"]}
        line = replace(line, row=row)
    for key in row:
        if key not in _KEYS:
            raise line.error(key, "unknown key; a response has id, response, truncated")
    task_id, text = row.get("id"), row.get("response")
    is_truncated = row.get("truncated", False)
    if not isinstance(task_id, str) or task_id not in known:
        raise line.error("id", f"{json.dumps(task_id)} is not the id of a task")
    if not isinstance(text, str):
        raise line.error("response", "missing, or not a string; give the text of the answer")
    if not isinstance(is_truncated, bool):
        raise line.error("truncated", "expected true or false")
    return _Response(task=known[task_id], text=text, is_truncated=is_truncated)


def _line(task: Task, verdict: Verdict | None) -> str:
    if verdict is None:
        return printable_json({"id": task.id, "category": "unjudged"}) + "\n"
    row = {
        "id": task.id,
        "reward": verdict.reward,
        "solved": verdict.solved,
        "category": verdict.info.get("category"),
        "feedback": verdict.feedback,
        "metrics": dict(verdict.metrics),
    }
    row |= {key: verdict.info[key] for key in ("sandbox", "error") if key in verdict.info}
    return printable_json(row) + "\n"


def _writer(out: str | Path | None, stack: ExitStack) -> Callable[[str], None]:
    """Writes a line and flushes it: whoever is killed leaves what is known."""
    file = sys.stdout
    if out is not None:
        try:
            file = stack.enter_context(Path(out).open("w", encoding="utf-8"))  # noqa: SIM115
        except OSError as error:
            raise SdpoError(f"cannot write {out}: {error.strerror}") from error

    def write(line: str) -> None:
        file.write(line)
        file.flush()

    return write
