"""The tasks a run is evaluated on: its own held-out ones, and sets from elsewhere that show what it
forgets. Nothing here trains.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo.config.load import builtin_recipes, load_config
from sdpo.config.schema import EnvConfig, RunConfig
from sdpo.engines.base import Sampling
from sdpo.envs.base import Closing
from sdpo.envs.opening import open_env
from sdpo.errors import ConfigError
from sdpo.evaluation import Evaluation, attempt_tasks, summarise
from sdpo.inspection.probe import choose_tasks, probe_tasks
from sdpo.inspection.tasks import check_prompts
from sdpo.metrics import names
from sdpo.records import Group, Task
from sdpo.rollouts.collect import Collected, Collector
from sdpo.rollouts.sampler import Sampler, max_turns
from sdpo.rollouts.together import Together

OWN = "eval"
"""Split of rollouts.jsonl that a run's own evaluations have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """Tasks to evaluate on, and how.

    Example:
        TaskSet(split="holdout/mbpp", collector=collector, tasks=tasks, samples=4,
        sampling=sampling)
    """

    split: str
    """Where its rollouts and metrics stand: `eval`, or `holdout/` and the set's name."""
    collector: Collector
    tasks: Sequence[Task]
    samples: int
    """Attempts per task."""
    sampling: Sampling

    def attempts(self, *, seed: int, together: Together) -> Collected:
        """The attempts; equal seeds make equal ones."""
        return attempt_tasks(
            self.collector,
            self.tasks,
            samples=self.samples,
            sampling=self.sampling,
            seed=seed,
            together=together,
        )

    def metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """What the attempts say; of a set from elsewhere its solved rate with the
        interval over tasks."""
        found: Evaluation = summarise(groups, samples=self.samples)
        if self.split == OWN:
            return found.metrics()
        solved = found.mean_at_k()
        return {
            self.split: solved.mean,
            f"{self.split}_low": solved.low,
            f"{self.split}_high": solved.high,
        }


def own_tasks(sampler: Sampler, config: RunConfig) -> TaskSet:
    """The held-out tasks of the run's own environment."""
    return _task_set(OWN, sampler, sampler.collector, config)


@contextmanager
def open_holdouts(
    sampler: Sampler, config: RunConfig, *, has_env: bool
) -> Generator[tuple[TaskSet, ...]]:
    """The sets that `eval.holdout` names, opened and closed again. `has_env`: the run's environment
    was given in Python.

    Raises `ConfigError` for a name that is neither a recipe nor a file, or that occurs twice, and
    `PromptTooLongError` for tasks that do not fit.
    """
    named: dict[str, str] = {}
    sets = []
    with ExitStack() as stack:
        for entry in config.eval.holdout:
            name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(entry).stem)
            if name in named:
                raise ConfigError(
                    f"eval.holdout: {named[name]!r} and {entry!r} are both called {name!r} in "
                    "metrics; rename one of the files"
                )
            named[name] = entry
            other = _config_of(entry, config, has_env=has_env)
            env = open_env(other.env)
            if isinstance(env, Closing):
                stack.callback(env.close)
            collector = replace(
                sampler.collector,
                env=env,
                max_prompt_tokens=other.rollout.max_prompt_tokens,
                max_turns=max_turns(env, other.rollout.max_turns),
                judging=other.env,
            )
            found = _task_set(f"{names.HOLDOUT}{name}", sampler, collector, other)
            if not found.tasks:
                raise ConfigError(f"eval.holdout: {entry!r} has no tasks to evaluate on")
            check_prompts(f"eval.holdout = {entry!r}:", found.tasks, sampler, other.rollout)
            sets.append(found)
        yield tuple(sets)


def _config_of(entry: str, config: RunConfig, *, has_env: bool) -> RunConfig:
    """Environment and settings of a set: those of a recipe, or the run's own with another file."""
    if entry in builtin_recipes() or entry.endswith(".toml"):
        return load_config([entry])
    if not Path(entry).exists():
        raise ConfigError(
            f"eval.holdout: {entry!r} is neither a built-in recipe, nor a .toml file, nor a file "
            f"of tasks in {Path.cwd()}"
        )
    if has_env or "tasks" not in type(config.env).model_fields:
        raise ConfigError(
            f"eval.holdout: {entry!r} would be read as tasks of the run's own kind, but its "
            "environment has no files of tasks; name a .toml file with an env section"
        )
    return config.model_copy(update={"env": _with_file(config.env, entry)})


def _with_file(env: EnvConfig, path: str) -> EnvConfig:
    """`env` with all tasks of another file held out, unless the file itself splits them."""
    changes: dict[str, object] = {"tasks": path}
    if "eval_fraction" in type(env).model_fields:
        changes["eval_fraction"] = 1.0
    return env.model_copy(update=changes)


def _task_set(split: str, sampler: Sampler, collector: Collector, config: RunConfig) -> TaskSet:
    evaluation = config.eval
    return TaskSet(
        split=split,
        collector=collector,
        tasks=list(collector.env.load("eval"))[: evaluation.max_tasks or None],
        samples=evaluation.samples,
        sampling=sampler.sampling(
            config, temperature=evaluation.temperature, top_p=evaluation.top_p
        ),
    )


def probe(sampler: Sampler, config: RunConfig, together: Together) -> dict[str, float]:
    """The `probe/*` metrics on training tasks, if `eval.probe_tasks` asks for them."""
    if not config.eval.probe_tasks:
        return {}
    return probe_tasks(
        sampler.collector,
        choose_tasks(sampler.env.load("train"), config.eval.probe_tasks, config.seed),
        config.teacher.context,
        samples=config.eval.samples,
        sampling=sampler.sampling(config, temperature=config.rollout.temperature),
        seed=config.seed,
        together=together,
    ).metrics()
