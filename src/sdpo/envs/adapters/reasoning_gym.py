"""Any set of Reasoning Gym by its name: tasks made by a program, judged by the set's own rule.

The library's system message asks for `<answer>` tags; the last complete pair counts, as there. The
reward is the set's score, from 0 to 1, and full marks solve the task. The library says how good an
answer is, not why, so feedback quotes the answer and its score. Training and evaluation tasks come
from different seeds. Answers are scored in a confined process (`reasoning_gym_worker.py`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.chat import strip_thinking
from sdpo.config import schema
from sdpo.envs.base import CheckReport
from sdpo.envs.text import TRUNCATED, safe
from sdpo.envs.verdicts import failed, naming
from sdpo.envs.workers import WorkerPool, require_workers
from sdpo.errors import ConfigError
from sdpo.machine import usable_cores
from sdpo.records import Rollout, Task, Verdict

WORKER = Path(__file__).with_name("reasoning_gym_worker.py")
SEEDS = {"train": 0, "eval": 10**9}
"""Task i of a set is made from seed + i: near seeds would share their tasks."""
TIME_LIMIT_S = 10.0
"""For one answer; honest ones take milliseconds."""
MAX_ANSWER_CHARS = 10_000
TRIVIAL = "-8675309.125"

NO_ANSWER = (
    "Incorrect Format: There is no answer. Put it between an opening and a closing answer tag."
)
WRONG = "Wrong Answer: {answer} scores {score:.2g} of 1."
TOO_SLOW = "Time Limit Exceeded: The answer cannot be checked in time: {answer}"
UNREADABLE = "Incorrect Format: The answer cannot be read: {answer}"


class ReasoningGym:
    """Tasks of one or several sets of Reasoning Gym.

    Example:
        ReasoningGym(schema.ReasoningGymEnvConfig(tasks="spell_backward")).load("train")
    """

    def __init__(self, config: schema.ReasoningGymEnvConfig) -> None:
        try:
            self._library = library()
        except ImportError as error:
            raise ConfigError(
                "env.type = 'reasoning-gym' needs the library: pip install reasoning-gym"
            ) from error
        require_workers("reasoning-gym")
        self.config = config
        self._workers = WorkerPool(WORKER)
        self._lock = threading.Lock()
        self._splits: dict[str, list[Task]] = {}

    def load(self, split: str) -> Sequence[Task]:
        """`env.size` tasks of each set to train on, or `env.eval_size` to evaluate on."""
        if split not in SEEDS:
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
        with self._lock:
            if split not in self._splits:
                names = [name.strip() for name in self.config.tasks.split(",")]
                self._splits[split] = [task for name in names for task in self._tasks(name, split)]
            return self._splits[split]

    @property
    def judges_at_once(self) -> int:
        """As many as there are cores."""
        return usable_cores()

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the last answer of the attempt's text; thread-safe."""
        return self.judge_text(task, rollout.text, is_truncated=rollout.truncated)

    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer."""
        answer = last_answer(strip_thinking(text))
        if answer is None:
            return (
                failed("truncated", TRUNCATED)
                if is_truncated
                else failed("incorrect_format", NO_ANSWER)
            )
        shown = safe(answer)
        if len(answer) > MAX_ANSWER_CHARS:
            return failed("incorrect_format", UNREADABLE.format(answer=shown))
        reply = self._workers.ask([*task.reference["place"], answer], TIME_LIMIT_S)
        if reply is None:
            return failed("time_limit", TOO_SLOW.format(answer=shown))
        score = json.loads(reply)
        if score is None:
            return failed("incorrect_format", UNREADABLE.format(answer=shown))
        verdict = Verdict(
            reward=score,
            solved=score >= 1,
            feedback=None if score >= 1 else WRONG.format(answer=shown, score=score),
            info={"category": "accepted" if score >= 1 else "wrong_answer"},
        )
        return naming(verdict, answer)

    def reference_answer(self, task: Task) -> str | None:
        """The set's answer in tags; None where the set has many and names none."""
        answer = task.reference["answer"]
        return None if answer is None else f"<answer>{answer}</answer>"

    def check(self) -> CheckReport:
        """Whether every answer of a set passes its own rule, and a trivial one does not."""
        tasks = [*self.load("train"), *self.load("eval")]
        failures, num_skipped = {}, 0
        for task in tasks:
            reference = self.reference_answer(task)
            if reference is None:
                num_skipped += 1
            elif not self.judge_text(task, reference, is_truncated=False).solved:
                failures[task.id] = "the set's own answer does not get full marks"
            trivial = self.judge_text(task, f"<answer>{TRIVIAL}</answer>", is_truncated=False)
            if trivial.solved:
                failures[task.id] = "a trivial answer passes"
        return CheckReport(num_tasks=len(tasks), failures=failures, skipped=num_skipped)

    def close(self) -> None:
        """End the worker processes; a later verdict starts new ones."""
        self._workers.close()

    def _tasks(self, name: str, split: str) -> list[Task]:
        size = self.config.size if split == "train" else self.config.eval_size
        options = {**self.config.options, "seed": SEEDS[split], "size": size}
        data = self._opened(name, options)
        system = {"role": "system", "content": self._library.utils.SYSTEM_PROMPTS["default"]}
        return [
            Task(
                id=f"{name}/{split}/{index}",
                messages=(system, {"role": "user", "content": entry["question"]}),
                reference={"answer": entry["answer"], "place": (name, options, index)},
                metadata={"family": name},
            )
            for index, entry in ((index, data[index]) for index in range(size))
        ]

    def _opened(self, name: str, options: Mapping[str, Any]) -> Any:
        known = self._library.factory.DATASETS
        if name not in known:
            raise ConfigError(
                f"env.tasks: Reasoning Gym has no set {name!r}; it has {', '.join(sorted(known))}"
            )
        try:
            return self._library.create_dataset(name, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(f"env.options do not fit the set {name!r}: {error}") from error


def library() -> Any:
    """The module; raises `ImportError` where it is not installed."""
    import reasoning_gym  # ty: ignore[import-not-found]  # an extra

    return reasoning_gym


def last_answer(text: str) -> str | None:
    """What stands in the last complete pair of answer tags; None without one."""
    before, found, _ = text.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return answer.strip() if found and opened else None
