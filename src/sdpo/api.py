"""The public functions behind `sdpo.train`, `sdpo.evaluate`, `sdpo.check`, `sdpo.probe`,
`sdpo.credit` and `sdpo.discover`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdpo.config.load import load_config
from sdpo.config.schema import RunConfig
from sdpo.discovery.result import Discovery
from sdpo.discovery.run import discover_one
from sdpo.envs.base import Checking, CheckReport, Env
from sdpo.errors import ConfigError, ModelError
from sdpo.evaluation import Evaluation, attempt_tasks, summarise
from sdpo.inspection.attempt import credit
from sdpo.inspection.model import model_findings
from sdpo.inspection.probe import Probe, choose_tasks, layout_advice, probe_tasks
from sdpo.inspection.reach import divergence_advice, measure_reach, support_size
from sdpo.parallel import Parallel
from sdpo.records import Task
from sdpo.rollouts.sampler import open_sampler
from sdpo.run_folder import config_of, with_model
from sdpo.training.custom import check_custom
from sdpo.training.held_out import open_holdouts
from sdpo.training.loop import OnStep, TrainResult
from sdpo.training.loop import train as train_config
from sdpo.training.objectives import check_objective
from sdpo.training.prompts import clock_note, prompt_facts
from sdpo.training.tasks import check_tasks

__all__ = ["as_config", "check", "credit", "discover", "evaluate", "probe", "train"]


def train(
    *arguments: str | Path | RunConfig, env: Env | None = None, on_step: OnStep | None = None
) -> TrainResult:
    """Train and return where the run ended.

    `arguments` are what the command takes: recipe names or files and `key=value` overrides, or one
    `RunConfig`. `env` replaces the recipe's environment; `on_step` is called with each row of
    metrics.jsonl. An interrupted run of the same settings is
    continued. Raises `SdpoError`.

    Example:
        sdpo.train("quickstart", "optim.lr=1e-5", env=sdpo.env(tasks, judge))
    """
    return train_config(with_model(as_config(*arguments)), env=env, on_step=on_step)


def evaluate(
    *arguments: str | Path | RunConfig, env: Env | None = None, split: str = "eval"
) -> Evaluation:
    """`eval.samples` judged attempts at every task of `split` (at most `eval.max_tasks`) by the
    recipe's model, or by the newest weights of a run in its own environment.

    Example:
        sdpo.evaluate("runs/quickstart").mean_at_k()
    """
    config = _with_weights(arguments, env)
    with open_sampler(config, env) as sampler:
        tasks = list(sampler.env.load(split))[: config.eval.max_tasks or None]
        groups = attempt_tasks(
            sampler.collector,
            tasks,
            samples=config.eval.samples,
            sampling=sampler.sampling(
                config, temperature=config.eval.temperature, top_p=config.eval.top_p
            ),
            seed=config.seed,
            parallel=Parallel(),
        ).groups
        found = summarise(groups, samples=config.eval.samples)
        return replace(found, model=sampler.policy.name)


def discover(
    task: Task | str, *arguments: str | Path | RunConfig, env: Env | None = None, seed: int = 0
) -> Discovery:
    """Test-time self-distillation on one task (or its id in the environment): train on its own
    failures until one attempt solves it or `discover.budget` is spent. Writes nothing.

    Example:
        sdpo.discover(task, "hard-task", "discover.budget=64", env=env).solution
    """
    return discover_one(task, _with_weights(arguments, env), env, seed=seed)


def check(*arguments: str | Path | RunConfig, env: Env | None = None) -> CheckReport:
    """Prove that a recipe can run before it costs anything.

    Gold references pass and a trivial answer fails (where the environment can say so); every prompt
    and every frame of a teacher's context fits its budget and the model's positions; the chat
    template takes them, opens the answer and shows the whole task, and completions round-trip; the
    model can be trained, and the engine samples from it. `notes` say how. Raises `SdpoError` for
    what no run could survive.
    """
    config = _with_weights(arguments, env)
    check_objective(config)
    check_custom(config)
    with open_sampler(config, env) as sampler:
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
            return replace(report, notes=(*notes, *report.notes))
        tasks = len(sampler.env.load("train"))
        return CheckReport(num_tasks=tasks, failures={}, skipped=tasks, notes=notes)


def probe(
    *arguments: str | Path | RunConfig, env: Env | None = None, tasks: int = 16, samples: int = 4
) -> Probe:
    """Whether the recipe's model solves what it failed at once it reads what a teacher would read:
    `samples` attempts at each of `tasks` training tasks, then the teacher's answer to every failed
    one in each kind of context. Trains nothing; the same seed gives the same numbers.

    Example:
        sdpo.probe("quickstart", tasks=6).sentence()
    """
    config = _with_weights(arguments, env)
    if samples < 1:
        raise ConfigError(f"probe: samples = {samples}; at least one attempt a task is needed")
    rules, temperature = config.teacher.context, config.rollout.temperature
    with open_sampler(config, env) as sampler:
        found = probe_tasks(
            sampler.collector,
            choose_tasks(sampler.env.load("train"), tasks, config.seed),
            rules,
            samples=samples,
            sampling=sampler.sampling(config, temperature=temperature),
            seed=config.seed,
            reach_of=lambda asks: measure_reach(
                sampler.policy, asks, top_k=support_size(config), temperature=temperature
            ),
        )
    assert found.reach is not None
    advice = (layout_advice(found, rules), divergence_advice(found.reach, config))
    return replace(found, advice=tuple(each for each in advice if each is not None))


def _with_weights(arguments: tuple[str | Path | RunConfig, ...], env: Env | None) -> RunConfig:
    """As `as_config`; a run's folder also stands for its weights and its environment."""
    if len(arguments) == 1 and isinstance(arguments[0], RunConfig):
        return with_model(arguments[0])
    return config_of(_as_text(arguments), has_env=env is not None)


def as_config(*arguments: str | Path | RunConfig) -> RunConfig:
    """The config that recipes and overrides name, or the one given. Raises `ConfigError` for
    anything else."""
    if len(arguments) == 1 and isinstance(arguments[0], RunConfig):
        return arguments[0]
    return load_config(_as_text(arguments))


def _as_text(arguments: tuple[str | Path | RunConfig, ...]) -> list[str]:
    texts = []
    for argument in arguments:
        if not isinstance(argument, str | Path):
            raise ConfigError(
                f"{type(argument).__name__} given where a recipe or key=value belongs; pass names, "
                "files and overrides, or one RunConfig alone (load_config makes one of several)"
            )
        texts.append(str(argument))
    return texts
