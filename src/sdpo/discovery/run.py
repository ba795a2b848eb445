"""Searches over tasks, methods and repetitions, recorded so that a killed run can be continued.

Every search derives its random numbers from (run seed, method, task, repetition) alone, so neither
order nor interruption changes a result. An interrupted search starts again, except multi-turn,
whose only state is its attempts: it continues from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sdpo.config.objective import CustomObjectiveConfig, HybridConfig, SdpgConfig, SdpoConfig
from sdpo.config.schema import RunConfig, SelectConfig
from sdpo.config.teacher import ContextConfig, ProbeGateConfig
from sdpo.discovery.best_of_k import best_of_k
from sdpo.discovery.log import Tally
from sdpo.discovery.multi_turn import multi_turn
from sdpo.discovery.records import END, SearchRecords
from sdpo.discovery.result import Discovery, Method
from sdpo.discovery.self_distillation import self_distillation
from sdpo.envs.base import Discoverable, Env
from sdpo.errors import ConfigError
from sdpo.evaluation import pass_at_k
from sdpo.inspection.conditions import record_conditions
from sdpo.inspection.tasks import check_solutions
from sdpo.metrics.jsonl import JsonLines, read_rows
from sdpo.models.weights import copy_weights
from sdpo.parallel import joined
from sdpo.records import Task
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together, open_together
from sdpo.seeds import derive
from sdpo.signals import Signals
from sdpo.training.learner import make_trainable
from sdpo.training.opening import check_custom

SELECTION = "selection.jsonl"

Progress = Callable[[Sequence[Discovery], str], None]
"""Called with the finished searches and a line about the current one."""

_ALONE = Together()


def discover_tasks(
    config: RunConfig, env: Env | None = None, progress: Progress | None = None
) -> list[Discovery]:
    """Search for solutions as `config.discover` says, one method after the other; finished searches
    of the same run directory are read, not repeated.

    Writes `discovery.jsonl`, `attempts.jsonl`, `updates.jsonl`, `discovery.json`, `discovery.png`
    (with matplotlib installed) and `solutions/TASK.txt`. `env` replaces `config.env`. SIGTERM is
    raised as Ctrl-C is, as a `KeyboardInterrupt` that says what is finished; SIGUSR1 does nothing,
    since all is written as it happens. Raises `SdpoError`.
    """
    if config.seeds > 1:
        raise ConfigError(
            f"seeds = {config.seeds} is for `sdpo train`; a search repeats itself with "
            "discover.seeds"
        )
    results: list[Discovery] = []
    with Signals() as signals:
        try:
            _search_all(config, env, progress, results, signals)
        except KeyboardInterrupt as stop:
            raise type(stop)(
                f"interrupted: {len(results)} searches are finished; the same command continues"
            ) from None
    return results


def _search_all(
    config: RunConfig,
    env: Env | None,
    progress: Progress | None,
    results: list[Discovery],
    signals: Signals,
) -> None:
    """Adds to `results`, as they are read or found."""
    check_custom(config)
    with joined() as parallel, SearchRecords(config, env, parallel, results) as records:

        def say(line: str) -> None:
            if progress is not None and parallel.is_main:
                progress(results, line)

        def watch(tally: Tally) -> None:
            records.watch(tally)
            say(_line(tally))

        with open_together(config, env, signals=signals) as (sampler, together):
            for line in parallel.from_main(lambda: record_conditions(records.folder, sampler)):
                say(line)
            initial, tasks = parallel.agreed(
                lambda: (
                    _initial(sampler, config, config.discover.methods),
                    _tasks(sampler.env, config, config.discover.tasks),
                )
            )
            tasks = _hard(config, sampler, together, tasks, records.folder, say)
            for method in config.discover.methods:
                for result in searches(
                    sampler,
                    config,
                    records.wanted(tasks, method),
                    method=method,
                    initial=initial,
                    watch=watch,
                    together=together,
                ):
                    records.add(result)
                    say("")
        records.finish()


def discover_one(
    task: Task | str, config: RunConfig, env: Env | None = None, *, seed: int = 0
) -> Discovery:
    """One search by self-distillation for one task (or its id in `config.discover.split`); writes
    nothing."""
    check_custom(config)
    with open_together(config, env) as (sampler, together):
        if isinstance(task, str):
            (task,) = _tasks(sampler.env, config, [task])
        tally = Tally(task.id, "self_distillation", seed, budget=config.discover.budget)
        (result,) = searches(
            sampler,
            config,
            [(task, tally)],
            method="self_distillation",
            initial=_initial(sampler, config, ["self_distillation"]),
            together=together,
        )
        return result


def searches(
    sampler: Sampler,
    config: RunConfig,
    wanted: Sequence[tuple[Task, Tally]],
    *,
    method: Method,
    initial: Mapping[str, torch.Tensor],
    watch: Callable[[Tally], None] = lambda tally: None,
    together: Together = _ALONE,
) -> Iterator[Discovery]:
    """The searches `wanted`, all by one method, each yielded as it ends. `initial` are the weights
    `sampler` holds, needed by `self_distillation` only. Of several processes each makes a share of
    the attempts, and knows of all."""
    if method == "multi_turn":
        for tally in multi_turn(sampler, config, wanted, watch=watch, together=together):
            yield tally.result(seconds=tally.seconds)
        return
    for task, tally in wanted:
        start = time.perf_counter()
        search_seed = derive(config.seed, "discover", method, task.id, tally.key[2])
        stopped = None
        if method == "self_distillation":
            stopped = self_distillation(
                sampler,
                config,
                task,
                seed=search_seed,
                tally=tally,
                initial=initial,
                watch=watch,
                together=together,
            )
        else:
            best_of_k(
                sampler,
                config,
                task,
                seed=search_seed,
                tally=tally,
                watch=watch,
                together=together,
            )
        yield tally.result(seconds=time.perf_counter() - start, stopped=stopped)


def _line(tally: Tally) -> str:
    """The progress of a search."""
    task_id, method, seed = tally.key
    best = max((attempt.reward for attempt in tally.made), default=0.0)
    return (
        f"{task_id}, {method}, seed {seed}: {len(tally.made)}/{tally.budget} attempts, "
        f"best reward {best:.2f}"
    )


def _initial(
    sampler: Sampler, config: RunConfig, methods: Sequence[Method]
) -> dict[str, torch.Tensor]:
    """A copy of the initial weights, of a model prepared for training; empty when no method trains.
    Raises `ConfigError` for settings under which training would change nothing."""
    if "self_distillation" not in methods:
        return {}
    _check_learns(config)
    check_solutions(sampler.env, load_tasks(sampler.env, config), config)
    make_trainable(sampler.policy.model, config.optim)
    return copy_weights(sampler.policy.model)


def _check_learns(config: RunConfig) -> None:
    """Raises `ConfigError` unless the objective learns from failures alone: all attempts before the
    last batch of a search have failed."""
    learns_from_feedback = SdpoConfig | HybridConfig | SdpgConfig | CustomObjectiveConfig
    if not isinstance(config.objective, learns_from_feedback):
        raise ConfigError(
            f"objective.type={config.objective.type!r} distils an attempt only when a sibling is "
            "solved, and that ends the search; set objective.type=sdpo, which learns from feedback "
            "alone, or leave self_distillation out of discover.methods"
        )
    if isinstance(config.teacher.gate, ProbeGateConfig):
        raise ConfigError(
            "teacher.gate.type = 'probe' lets the self-teacher answer the task, which a search "
            "would have to count as attempts; set teacher.gate.type = 'none'"
        )
    if config.model.parallel in ("shard", "shard_all"):
        raise ConfigError(
            f"model.parallel = {config.model.parallel!r} spreads the weights of `sdpo train`; a "
            "search keeps them whole on every process: set model.parallel = 'auto', and with a "
            "large model an adapter"
        )
    if config.rollout.staleness:
        raise ConfigError(
            "rollout.staleness = 1 is a setting of `sdpo train`: a search learns from each batch "
            "before it samples the next; set rollout.staleness = 0"
        )
    context = config.teacher.context
    if (
        isinstance(context, ContextConfig)
        and context.feedback == "never"
        and context.control != "plain"
    ):
        raise ConfigError(
            "teacher.context.feedback='never' leaves the teacher of a search nothing to read, "
            "since no attempt is solved before the search ends; set 'always' or "
            "'without_demonstration'"
        )


def _tasks(env: Env, config: RunConfig, names: Sequence[str]) -> list[Task]:
    """The tasks called `names`, all without any, in the split's order. Raises `ConfigError`."""
    tasks = load_tasks(env, config)
    missing = sorted(set(names) - {task.id for task in tasks})
    if missing:
        raise ConfigError(
            f"discover.tasks: no task {missing[0]!r} in this split of {len(tasks)} tasks; "
            "see discover.split"
        )
    return [task for task in tasks if task.id in names] if names else tasks


def _hard(
    config: RunConfig,
    sampler: Sampler,
    together: Together,
    tasks: Sequence[Task],
    run_dir: Path,
    say: Callable[[str], None],
) -> Sequence[Task]:
    """Those of `tasks` that `discover.select` takes. Raises `ConfigError` when none is hard
    enough."""
    select = config.discover.select
    if not isinstance(select, SelectConfig):
        return tasks
    rates = measure(sampler, config, tasks, select, run_dir / SELECTION, say, together)
    hard = [task for task in tasks if rates[task.id] < select.below]
    if not hard:
        raise ConfigError(
            f"discover.select: none of {len(rates)} tasks has pass@{select.pass_at} below "
            f"{select.below}; set discover.select='off' to search all of them"
        )
    return hard


def load_tasks(env: Env, config: RunConfig) -> list[Task]:
    """The tasks of the split, as the environment poses them to a search."""
    tasks = env.load(config.discover.split)
    return (
        [env.for_discovery(task) for task in tasks] if isinstance(env, Discoverable) else [*tasks]
    )


def measure(
    sampler: Sampler,
    config: RunConfig,
    tasks: Sequence[Task],
    select: SelectConfig,
    path: Path,
    say: Callable[[str], None],
    together: Together,
) -> dict[str, float]:
    """pass@k of each task, estimated without bias from attempts of the initial model; `path`, which
    the main process alone reads and writes, keeps what was measured."""
    k, attempts = select.pass_at, select.attempts or 4 * select.pass_at
    file = JsonLines(path)
    from_main = together.parallel.from_main

    def measured() -> list[dict[str, Any]]:
        file.resume_at(END)
        return list(read_rows(path))

    rates = {
        row["task_id"]: pass_at_k(row["attempts"], row["solved"], min(k, row["attempts"]))
        for row in from_main(measured)
    }
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    try:
        for task in tasks:
            if task.id in rates:
                continue
            say(f"selecting: {len(rates)}/{len(tasks)} tasks measured")
            collected = together.collect(
                sampler.collector,
                [task],
                group_size=attempts,
                sampling=sampling,
                seed=derive(config.seed, "select"),
            )
            verdicts = collected.groups[0].verdicts
            solved = sum(verdict.solved for verdict in verdicts)
            judged = len(verdicts)
            rates[task.id] = pass_at_k(judged, solved, min(k, judged))
            row = {"step": len(rates), "task_id": task.id, "attempts": judged, "solved": solved}
            from_main(partial(file.append, [row]))
    finally:
        file.close()
    return rates
