"""Opening a run: everything it needs, checked before the first attempt, and what it says first."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sdpo.config.objective import CustomDivergenceConfig, DistillingConfig
from sdpo.config.schema import LoraConfig, RunConfig
from sdpo.config.teacher import CustomContextConfig, CustomScheduleConfig
from sdpo.custom import forget_changed_files
from sdpo.envs.base import Env
from sdpo.inspection.conditions import record_conditions
from sdpo.inspection.held_out import TaskSet, open_holdouts
from sdpo.inspection.tasks import check_tasks
from sdpo.losses.check_divergence import check_divergence
from sdpo.machine import usable_cores
from sdpo.models.policy import Policy
from sdpo.models.quantized import num_weights
from sdpo.models.sharding import shards_of
from sdpo.objectives import check_objective, custom_divergence, routing_rule
from sdpo.parallel import Parallel, joined
from sdpo.provenance import check_shared, open_run_dir, own_folder, run_facts
from sdpo.rollouts.sampler import Sampler, open_sampler
from sdpo.signals import Signals
from sdpo.teacher.context import context_function
from sdpo.teacher.schedule import share_function
from sdpo.training.learner import Learner, make_trainable
from sdpo.training.run import Run
from sdpo.training.weighting import token_weighting


@contextmanager
def open_run(
    config: RunConfig,
    env: Env | None = None,
    policy: Policy | None = None,
    *,
    signals: Signals | None = None,
    is_quiet: bool = False,
) -> Generator[Run]:
    """Everything a run of `config` needs, opened and closed again. `env` and `policy` replace what
    `config` names; `signals` are those that the run heeds, none by default; `is_quiet` shows no
    steps."""
    signals = signals or Signals()
    check_objective(config)
    check_custom(config)
    run_dir = Path(config.run)
    with ExitStack() as stack:
        parallel = stack.enter_context(joined())
        if parallel.world_size > 1:
            signals.hold()

        def take_folder() -> None:
            stack.enter_context(own_folder(run_dir))
            open_run_dir(config, run_facts(config, env))

        parallel.from_main(take_folder)
        check_shared(run_dir, parallel)
        sampler, holdouts = parallel.agreed(lambda: _load(config, env, policy, parallel, stack))
        shards = shards_of(sampler.policy.model, config.model, parallel)
        learner = parallel.agreed(
            lambda: Learner(
                sampler,
                config,
                seed=config.seed,
                num_inspected=config.credit.rollouts,
                parallel=parallel,
                shards=shards,
            )
        )
        run = Run(
            config,
            run_dir,
            sampler,
            learner,
            parallel,
            signals,
            holdouts=holdouts,
            is_quiet=is_quiet,
        )
        stack.enter_context(run)
        conditions = parallel.from_main(lambda: record_conditions(run_dir, sampler))
        for line in (*(() if is_quiet else (opening_line(sampler, config),)), *conditions):
            run.say(line)
        if learner.shards is not None:
            run.say(f"{learner.shards.sharing} (model.parallel)")
        yield run


def check_custom(config: RunConfig) -> None:
    """Import every function that `config` names, and compare the derivative of a divergence with
    its value. Raises `ConfigError` before anything is loaded or sampled."""
    forget_changed_files()
    routing_rule(config.objective)
    token_weighting(config.objective)
    if isinstance(config.teacher.context, CustomContextConfig):
        context_function(config.teacher.context)
    if isinstance(config.teacher.schedule, CustomScheduleConfig):
        share_function(config.teacher.schedule)
    if not isinstance(config.objective, DistillingConfig):
        return
    divergence = config.objective.divergence
    if isinstance(divergence, CustomDivergenceConfig):
        named = f"objective.divergence.path = {divergence.path!r}"
        check_divergence(custom_divergence(divergence), named)


def _load(
    config: RunConfig, env: Env | None, policy: Policy | None, parallel: Parallel, stack: ExitStack
) -> tuple[Sampler, tuple[TaskSet, ...]]:
    """The run's model and tasks, checked; `stack` closes them."""
    sampler = stack.enter_context(open_sampler(config, env, policy, parallel=parallel))
    check_tasks(sampler, config, splits=("train", "eval"))
    holdouts = stack.enter_context(open_holdouts(sampler, config, has_env=env is not None))
    make_trainable(sampler.policy.model, config.optim)
    return sampler, holdouts


def opening_line(sampler: Sampler, config: RunConfig) -> str:
    """One line for the user, once model and tasks are there."""
    policy = sampler.policy
    parameters = num_weights(policy.model.parameters())
    dtype = str(policy.dtype).removeprefix("torch.")
    where = str(policy.device)
    if policy.device.type == "cpu":
        cores = usable_cores()
        where = f"cpu ({cores} {'core' if cores == 1 else 'cores'})"
    adapter = config.model.adapter
    lora = ""
    if isinstance(adapter, LoraConfig):
        base = "" if adapter.quantization == "none" else f" on {adapter.quantization}"
        lora = f", LoRA of rank {adapter.rank}{base}"
    num_train, num_eval = (len(sampler.env.load(split)) for split in ("train", "eval"))
    evaluated = min(num_eval, config.eval.max_tasks or num_eval)
    per_step = config.rollout.tasks_per_step * config.rollout.group_size
    return (
        f"{policy.name}: {size(parameters)} weights{lora}, {dtype}, {where}; {num_train} tasks, "
        f"{config.steps} steps of {per_step} attempts; first an evaluation: {evaluated} held-out "
        f"tasks x {config.eval.samples}"
    )


def size(count: int) -> str:
    """A number of weights as people say it: `135M`, `0.5B`, `141k`."""
    for unit, divisor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= divisor * 0.5:
            scaled = count / divisor
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return str(count)
