"""Searches over tasks, methods and repetitions, recorded so that a killed run can be continued.

Every search derives its random numbers from (run seed, method, task, repetition) alone, so neither
order nor interruption changes a result. An interrupted search starts again, except multi-turn,
whose only state is its attempts: it continues from them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from sdpo.config.objective import CustomObjectiveConfig, HybridConfig, SdpgConfig, SdpoConfig
from sdpo.config.schema import RunConfig, SelectConfig
from sdpo.config.teacher import ContextConfig, ProbeGateConfig
from sdpo.discovery.best_of_k import best_of_k
from sdpo.discovery.curves import write_summary
from sdpo.discovery.log import SOLUTIONS, SearchLog, Tally
from sdpo.discovery.multi_turn import multi_turn
from sdpo.discovery.plot import write_plot
from sdpo.discovery.result import Discovery, Method, from_row
from sdpo.discovery.self_distillation import self_distillation
from sdpo.envs.base import Discoverable, Env
from sdpo.errors import ConfigError
from sdpo.evaluation import pass_at_k
from sdpo.files import record_whole
from sdpo.inspection.conditions import record_conditions
from sdpo.inspection.tasks import check_solutions
from sdpo.lock import sole_writer
from sdpo.metrics.jsonl import JsonLines, dumps, read_rows
from sdpo.models.weights import copy_weights
from sdpo.records import Task
from sdpo.rollouts.sampler import Sampler, open_sampler
from sdpo.seeds import derive
from sdpo.signals import Signals
from sdpo.training.checkpoint import open_run_dir, run_facts
from sdpo.training.custom import check_custom
from sdpo.training.learner import make_trainable

RESULTS = "discovery.jsonl"
SELECTION = "selection.jsonl"

Progress = Callable[[Sequence[Discovery], str], None]
"""Called with the finished searches and a line about the current one."""

_END = 1 << 62


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
    with Signals(), sole_writer(Path(config.run)):
        try:
            _search_all(config, env, progress, results)
        except KeyboardInterrupt as stop:
            raise type(stop)(
                f"interrupted: {len(results)} searches are finished; the same command continues"
            ) from None
    return results


def _search_all(
    config: RunConfig, env: Env | None, progress: Progress | None, results: list[Discovery]
) -> None:
    """Adds to `results`, as they are read or found."""
    say = progress or (lambda results, line: None)
    check_custom(config)
    run_dir = open_run_dir(config, run_facts(config, env))
    file = JsonLines(run_dir / RESULTS)
    file.resume_at(_END)
    results += _to_keep(file.path, config.discover.budget)
    finished = {(r.task_id, r.method, r.seed) for r in results}
    log = SearchLog(run_dir, finished)

    def watch(tally: Tally) -> None:
        log.write(tally)
        say(results, _line(tally))

    with closing(file), closing(log), open_sampler(config, env) as sampler:
        for line in record_conditions(run_dir, sampler):
            say(results, line)
        initial = _initial(sampler, config, config.discover.methods)
        tasks = _tasks(config, sampler, run_dir, lambda line: say(results, line))
        for method in config.discover.methods:
            wanted = [
                (task, log.tally(task.id, method, seed, budget=config.discover.budget))
                for task in tasks
                for seed in range(config.discover.seeds)
                if (task.id, method, seed) not in finished
            ]
            for result in searches(
                sampler, config, wanted, method=method, initial=initial, watch=watch
            ):
                _save_solution(run_dir, result)
                results.append(result)
                file.append([result.row() | {"step": len(results)}])
                write_summary(results, run_dir)
                say(results, "")
    # Also for a process that was killed between a search's row and its summary.
    write_summary(results, run_dir)
    write_plot(results, run_dir)


def _to_keep(path: Path, budget: int) -> list[Discovery]:
    """The finished searches in `path`. One that ended without a solution at a smaller budget is
    dropped from the file, to be made again with `budget`; so is best-of-k, which samples on."""
    rows = list(read_rows(path))
    found = [from_row(row) for row in rows]
    kept = [
        replace(one, budget=budget)
        for one in found
        if one.budget >= budget
        or one.stopped is not None
        or (one.solution is not None and one.method != "best_of_k")
    ]
    if kept != found:
        with record_whole(path) as partial:
            lines = (dumps(one.row() | {"step": n}) for n, one in enumerate(kept, start=1))
            partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return kept


def discover_one(
    task: Task | str, config: RunConfig, env: Env | None = None, *, seed: int = 0
) -> Discovery:
    """One search by self-distillation for one task (or its id in `config.discover.split`); writes
    nothing."""
    check_custom(config)
    with open_sampler(config, env) as sampler:
        if isinstance(task, str):
            task = _named(load_tasks(sampler.env, config), [task])[0]
        tally = Tally(task.id, "self_distillation", seed, budget=config.discover.budget)
        (result,) = searches(
            sampler,
            config,
            [(task, tally)],
            method="self_distillation",
            initial=_initial(sampler, config, ["self_distillation"]),
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
) -> Iterator[Discovery]:
    """The searches `wanted`, all by one method, each yielded as it ends. `initial` are the weights
    `sampler` holds, needed by `self_distillation` only."""
    if method == "multi_turn":
        for tally in multi_turn(sampler, config, wanted, watch=watch):
            yield tally.result(seconds=tally.seconds)
        return
    for task, tally in wanted:
        start = time.perf_counter()
        search_seed = derive(config.seed, "discover", method, task.id, tally.key[2])
        stopped = None
        if method == "self_distillation":
            stopped = self_distillation(
                sampler, config, task, seed=search_seed, tally=tally, initial=initial, watch=watch
            )
        else:
            best_of_k(sampler, config, task, seed=search_seed, tally=tally, watch=watch)
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


def _tasks(
    config: RunConfig, sampler: Sampler, run_dir: Path, say: Callable[[str], None]
) -> list[Task]:
    """The tasks to search, in the split's order. Raises `ConfigError` for an unknown id and when
    none is hard enough."""
    tasks = load_tasks(sampler.env, config)
    if config.discover.tasks:
        tasks = _named(tasks, config.discover.tasks)
    select = config.discover.select
    if isinstance(select, SelectConfig):
        rates = measure(sampler, config, tasks, select, run_dir / SELECTION, say)
        tasks = [task for task in tasks if rates[task.id] < select.below]
        if not tasks:
            raise ConfigError(
                f"discover.select: none of {len(rates)} tasks has pass@{select.pass_at} below "
                f"{select.below}; set discover.select='off' to search all of them"
            )
    return tasks


def load_tasks(env: Env, config: RunConfig) -> list[Task]:
    """The tasks of the split, as the environment poses them to a search."""
    tasks = env.load(config.discover.split)
    return (
        [env.for_discovery(task) for task in tasks] if isinstance(env, Discoverable) else [*tasks]
    )


def _named(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    missing = sorted(set(names) - {task.id for task in tasks})
    if missing:
        raise ConfigError(
            f"discover.tasks: no task {missing[0]!r} in this split of {len(tasks)} tasks; "
            "see discover.split"
        )
    return [task for task in tasks if task.id in names]


def measure(
    sampler: Sampler,
    config: RunConfig,
    tasks: Sequence[Task],
    select: SelectConfig,
    path: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """pass@k of each task, estimated without bias from attempts of the initial model; `path` keeps
    what was measured."""
    k, attempts = select.pass_at, select.attempts or 4 * select.pass_at
    file = JsonLines(path)
    file.resume_at(_END)
    rows = list(read_rows(path))
    rates = {
        row["task_id"]: pass_at_k(row["attempts"], row["solved"], min(k, row["attempts"]))
        for row in rows
    }
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    try:
        for task in tasks:
            if task.id in rates:
                continue
            say(f"selecting: {len(rates)}/{len(tasks)} tasks measured")
            collected = sampler.collector.collect(
                [task], group_size=attempts, sampling=sampling, seed=derive(config.seed, "select")
            )
            verdicts = collected.groups[0].verdicts
            solved = sum(verdict.solved for verdict in verdicts)
            judged = len(verdicts)
            rates[task.id] = pass_at_k(judged, solved, min(k, judged))
            row = {"step": len(rates), "task_id": task.id, "attempts": judged, "solved": solved}
            file.append([row])
    finally:
        file.close()
    return rates


def _save_solution(run_dir: Path, result: Discovery) -> None:
    """Keep the first solution found of a task."""
    path = run_dir / SOLUTIONS / f"{_file_name(result.task_id)}.txt"
    if result.solution is None or path.exists():
        return
    with record_whole(path) as partial:
        partial.write_text(result.solution, encoding="utf-8", errors="backslashreplace")


def _file_name(task_id: str) -> str:
    """`task_id` where it is a file name, otherwise its safe characters and a hash."""
    safe = re.sub(r"[^\w.-]", "_", task_id, flags=re.ASCII)[:100].lstrip(".")
    if safe == task_id:
        return safe
    return f"{safe}-{hashlib.blake2b(task_id.encode(), digest_size=4).hexdigest()}"
