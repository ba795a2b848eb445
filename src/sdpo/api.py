"""The public functions behind `sdpo.train`, `sdpo.evaluate`, `sdpo.check`, `sdpo.discover` and `sdpo.credit`."""

from __future__ import annotations

from sdpo.config.load import load_config
from sdpo.config.schema import RunConfig
from sdpo.envs.base import Env
from sdpo.evaluation import Evaluation, evaluate_tasks
from sdpo.training.assemble import open_sampler
from sdpo.training.loop import TrainResult
from sdpo.training.loop import train as train_config


def train(*arguments: str | RunConfig, env: Env | None = None) -> TrainResult:
    """Train and return where the run ended.

    `arguments` are what the command takes: recipe names or files and `key=value` overrides, or one `RunConfig`. `env`
    replaces the recipe's environment. An interrupted run of the same settings is continued. Raises `SdpoError`.

    Example:
        sdpo.train("quickstart", "optim.lr=1e-5", env=sdpo.env(tasks, judge))
    """
    return train_config(as_config(*arguments), env=env)


def evaluate(
    *arguments: str | RunConfig, env: Env | None = None, split: str = "eval"
) -> Evaluation:
    """`eval.samples` judged attempts at every task of `split` (at most `eval.max_tasks`) by the recipe's model.

    Example:
        sdpo.evaluate("quickstart", "model.name=runs/quickstart/checkpoints/step-16").mean_at_k()
    """
    config = as_config(*arguments)
    with open_sampler(config, env) as sampler:
        tasks = list(sampler.env.load(split))[: config.eval.max_tasks or None]
        return evaluate_tasks(
            sampler.collector,
            tasks,
            samples=config.eval.samples,
            sampling=sampler.sampling(
                config, temperature=config.eval.temperature, top_p=config.eval.top_p
            ),
            seed=config.seed,
        )


def as_config(*arguments: str | RunConfig) -> RunConfig:
    """The config that recipes and overrides name, or the one given."""
    if len(arguments) == 1 and isinstance(arguments[0], RunConfig):
        return arguments[0]
    return load_config([argument for argument in arguments if isinstance(argument, str)])
