"""The public functions behind `sdpo.train`, `sdpo.evaluate`, `sdpo.check`, `sdpo.probe`,
`sdpo.credit` and `sdpo.discover`.

In a script that `torchrun` starts, all processes call them alike: they share the work, and each
returns the whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.config.load import load_config, with_settings
from sdpo.config.schema import RunConfig
from sdpo.discovery.result import Discovery
from sdpo.discovery.run import discover_one
from sdpo.envs.base import Checking, CheckReport, Env
from sdpo.errors import ConfigError, ModelError
from sdpo.evaluation import Evaluation, attempt_tasks, summarise
from sdpo.inspection.attempt import credit
from sdpo.inspection.conditions import clock_note, prompt_facts
from sdpo.inspection.held_out import open_holdouts
from sdpo.inspection.judge import try_judge
from sdpo.inspection.model import model_findings
from sdpo.inspection.probe import Probe, choose_tasks, layout_advice, probe_tasks
from sdpo.inspection.reach import divergence_advice, measure_reach, support_size
from sdpo.inspection.tasks import check_tasks
from sdpo.models.policy import Policy, as_policy
from sdpo.objectives import check_objective
from sdpo.parallel import joined
from sdpo.records import Task
from sdpo.rollouts.sampler import open_sampler
from sdpo.rollouts.together import open_together
from sdpo.run_folder import config_of, with_model
from sdpo.runs import Result
from sdpo.training.loop import OnStep
from sdpo.training.loop import train as train_config
from sdpo.training.opening import check_custom

__all__ = ["as_config", "check", "credit", "discover", "evaluate", "probe", "train"]

Argument = str | os.PathLike[str] | RunConfig
"""A recipe's name or file, a run (its folder, a `Run`, a `Result`), a `key=value` override; or one
`RunConfig` alone."""


def train(
    *arguments: Argument,
    env: Env | None = None,
    model: Any = None,
    tokenizer: Any = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Result:
    """Train and return where the run ended, with its checkpoint, its records and its report.

    `arguments` are what the command takes: recipe names or files and `key=value` overrides, or one
    `RunConfig`. `settings` override them: `steps=3, optim={"lr": 1e-5}`. `env` replaces the
    recipe's environment. `model` is a name or a transformers model, which comes with its
    `tokenizer` and is trained in place. `on_step` is called with each row of metrics.jsonl. An
    interrupted run of the same settings is continued. Raises `SdpoError`.

    Example:
        result = sdpo.train("quickstart", env=sdpo.env(tasks, judge), steps=3, optim={"lr": 1e-5})
        model, tokenizer = result.load()
    """
    _check_env(env)
    config = with_model(as_config(*arguments, **_with_name(settings, model)))
    config, policy = _given(config, model, tokenizer)
    found = train_config(config, env=env, policy=policy, on_step=on_step)
    return Result.of(found)


def evaluate(
    *arguments: Argument,
    env: Env | None = None,
    model: Any = None,
    tokenizer: Any = None,
    split: str = "eval",
    **settings: Any,
) -> Evaluation:
    """`eval.samples` judged attempts at every task of `split` (at most `eval.max_tasks`) by the
    recipe's model, by `model` (as `train` takes it), or by the newest weights of a run in its own
    environment.

    Example:
        sdpo.evaluate("runs/quickstart").mean_at_k()
    """
    config, policy = _opened(arguments, env, model, tokenizer, settings)
    with open_together(config, env, policy) as (sampler, together):
        tasks = together.parallel.agreed(lambda: list(sampler.env.load(split)))
        groups = attempt_tasks(
            sampler.collector,
            tasks[: config.eval.max_tasks or None],
            samples=config.eval.samples,
            sampling=sampler.sampling(
                config, temperature=config.eval.temperature, top_p=config.eval.top_p
            ),
            seed=config.seed,
            together=together,
        ).groups
        found = summarise(groups, samples=config.eval.samples)
        return replace(found, model=sampler.policy.name)


def discover(
    task: Task | str,
    *arguments: Argument,
    env: Env | None = None,
    seed: int = 0,
    **settings: Any,
) -> Discovery:
    """Test-time self-distillation on one task (or its id in the environment): train on its own
    failures until one attempt solves it or `discover.budget` is spent. Writes nothing.

    Example:
        sdpo.discover(task, "hard-task", "discover.budget=64", env=env).solution
    """
    config, _ = _opened(arguments, env, None, None, settings)
    return discover_one(task, config, env, seed=seed)


def check(
    *arguments: Argument,
    env: Env | None = None,
    model: Any = None,
    tokenizer: Any = None,
    **settings: Any,
) -> CheckReport:
    """Prove that a recipe can run before it costs anything.

    Gold references pass and a trivial answer fails (where the environment can say so); every prompt
    and every frame of a teacher's context fits its budget and the model's positions; the chat
    template takes them, opens the answer and shows the whole task, and completions round-trip; the
    model can be trained, and the engine samples from it. `notes` say how. Raises `SdpoError` for
    what no run could survive.
    """
    config, policy = _opened(arguments, env, model, tokenizer, settings)
    check_objective(config)
    check_custom(config)
    with joined() as parallel:
        return parallel.from_main(lambda: _checked(config, env, policy))


def _checked(config: RunConfig, env: Env | None, policy: Policy | None) -> CheckReport:
    with open_sampler(config, env, policy) as sampler:
        notes = tuple(model_findings(sampler.policy.model, sampler.collector.engine))
        if line := clock_note(sampler.chat, prompt_facts(sampler.chat)):
            notes += (line,)
        check_tasks(sampler, config, splits=("train", "eval"))
        with open_holdouts(sampler, config, has_env=env is not None):
            pass  # Opening them finds what is wrong with them.
        for split in ("train", "eval"):
            for task in sampler.env.load(split):
                if task.messages[-1]["content"].strip() not in sampler.chat.render(task.messages):
                    raise ModelError(
                        f"the chat template of {config.model.name!r} leaves out the text of task "
                        f"{task.id!r}; take a model with a working template"
                    )
        probe = "def f(x):\n    return x"
        if sampler.chat.decode(sampler.chat.text_ids(probe)) != probe:
            raise ModelError(
                f"the tokenizer of {config.model.name!r} does not give text back as it took it"
            )
        if isinstance(sampler.env, Checking):
            report = sampler.env.check()
        else:
            report = try_judge(sampler.env, config.env)
        return replace(report, notes=(*notes, *report.notes))


def probe(
    *arguments: Argument,
    env: Env | None = None,
    model: Any = None,
    tokenizer: Any = None,
    tasks: int = 16,
    samples: int = 4,
    **settings: Any,
) -> Probe:
    """Whether the recipe's model solves what it failed at once it reads what a teacher would read:
    `samples` attempts at each of `tasks` training tasks, then the teacher's answer to every failed
    one in each kind of context. Trains nothing; the same seed gives the same numbers.

    Example:
        sdpo.probe("quickstart", tasks=6).sentence()
    """
    config, policy = _opened(arguments, env, model, tokenizer, settings)
    if samples < 1:
        raise ConfigError(f"probe: samples = {samples}; at least one attempt a task is needed")
    rules, temperature = config.teacher.context, config.rollout.temperature
    with open_together(config, env, policy) as (sampler, together):
        chosen = together.parallel.agreed(
            lambda: choose_tasks(sampler.env.load("train"), tasks, config.seed)
        )
        found = probe_tasks(
            sampler.collector,
            chosen,
            rules,
            samples=samples,
            sampling=sampler.sampling(config, temperature=temperature),
            seed=config.seed,
            reach_of=lambda asks: measure_reach(
                sampler.policy,
                asks,
                top_k=support_size(config),
                temperature=temperature,
                parallel=together.parallel,
            ),
            together=together,
        )
    assert found.reach is not None
    advice = (layout_advice(found, rules), divergence_advice(found.reach, config))
    return replace(found, advice=tuple(each for each in advice if each is not None))


def as_config(*arguments: Argument, **settings: Any) -> RunConfig:
    """The config that recipes, overrides and `settings` name, or the one given with `settings` in
    it. Raises `ConfigError` for anything else."""
    if len(arguments) == 1 and isinstance(arguments[0], RunConfig):
        return with_settings(arguments[0], settings)
    return load_config(_as_text(arguments), settings)


def _opened(
    arguments: Sequence[Argument],
    env: Env | None,
    model: Any,
    tokenizer: Any,
    settings: Mapping[str, Any],
) -> tuple[RunConfig, Policy | None]:
    """As `as_config`; a run's folder also stands for its weights and its environment."""
    _check_env(env)
    settings = _with_name(settings, model)
    if len(arguments) == 1 and isinstance(arguments[0], RunConfig):
        config = with_model(with_settings(arguments[0], settings))
    else:
        config = config_of(_as_text(arguments), settings, has_env=env is not None)
    return _given(config, model, tokenizer)


def _with_name(settings: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`settings` with what `model` sets: a name, or values of the section."""
    if isinstance(model, str | Path):
        return {**settings, "model": {"name": str(model)}}
    if isinstance(model, Mapping):
        return {**settings, "model": model}
    return dict(settings)


def _given(config: RunConfig, model: Any, tokenizer: Any) -> tuple[RunConfig, Policy | None]:
    """The policy around a model object, and `config` as it describes it; None for a name."""
    if model is None or isinstance(model, str | Path | Mapping):
        if tokenizer is not None:
            raise ConfigError(
                "tokenizer given without a model object; a model that is named brings its own"
            )
        return config, None
    policy = as_policy(model, tokenizer)
    dtype = str(policy.dtype).removeprefix("torch.")
    if config.model.dtype not in ("auto", dtype):
        raise ConfigError(
            f"model.dtype = {config.model.dtype!r}, but the model given computes in {dtype}; "
            "leave the setting out, or convert the model with .to(...)"
        )
    facts = {"name": policy.name, "dtype": dtype, "device": str(policy.device)}
    return config.model_copy(update={"model": config.model.model_copy(update=facts)}), policy


def _check_env(env: object) -> None:
    if env is not None and not isinstance(env, Env):
        what = getattr(env, "__name__", type(env).__name__)
        raise ConfigError(
            f"env = {what}: an environment has load(split) and judge(task, rollout); "
            "make one with sdpo.env(tasks, judge)"
        )


def _as_text(arguments: Sequence[Argument]) -> list[str]:
    texts = []
    for argument in arguments:
        if not isinstance(argument, str | os.PathLike):
            raise ConfigError(
                f"{type(argument).__name__} given where a recipe or key=value belongs; pass names, "
                "files and overrides, settings by name (steps=3), or one RunConfig alone "
                "(load_config makes one of several)"
            )
        texts.append(os.fspath(argument))
    return texts
