"""What a model says, and what the model it was trained from said: answers to a prompt, to tasks
that are judged, or to a person, before and after training with the same random numbers.

Everything is sampled as an evaluation samples; nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from sdpo.config.load import builtin_recipes, load_config
from sdpo.config.schema import FullWeightsConfig, RunConfig
from sdpo.engines.base import Sampling
from sdpo.envs.base import Env, env
from sdpo.errors import ConfigError
from sdpo.evaluation import attempt_tasks
from sdpo.inspection.attempt import find_task
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.rollouts.sampler import Sampler, open_sampler
from sdpo.rollouts.together import Together, open_together
from sdpo.run_folder import as_run, config_of

Moment = Literal["before", "after"]
NUM_TASKS = 3
"""Held-out tasks shown where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One of the models that answer.

    Example:
        Speaker(moment="before", config=config)
    """

    moment: Moment
    """Of a model that is not a run, `after`."""
    config: RunConfig

    @property
    def name(self) -> str:
        return self.config.model.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One attempt of one model.

    Example:
        Answer(moment="after", rollout=rollout, verdict=None)
    """

    moment: Moment
    rollout: Rollout
    verdict: Verdict | None
    """None where nobody judges."""

    @property
    def text(self) -> str:
        """All turns of the attempt, with what the environment replied between them."""
        if not self.rollout.turns:
            return self.rollout.text
        parts = []
        for turn in self.rollout.turns:
            parts.append(turn.text)
            if turn.reply is not None:
                parts += [f"[{said['role']}] {said['content']}" for said in turn.reply]
        return "\n".join(parts)


def speakers(arguments: Sequence[str], *, needs_env: bool) -> list[Speaker]:
    """Who answers: for a run the model it began with and its newest weights, for anything else one
    model. `arguments` begin with a run, a recipe or a model and may go on with `key=value`.

    `needs_env` refuses a run whose environment was given in Python. Raises `ConfigError`.
    """
    name, *overrides = arguments
    if "=" in name:
        raise ConfigError(f"{name!r}: name a run, a recipe or a model first, then key=value")
    run = None if name in builtin_recipes() else as_run(name)
    if run is None and name not in builtin_recipes() and not name.endswith(".toml"):
        return [Speaker(moment="after", config=load_config([f"model.name={name}", *overrides]))]
    after = Speaker(moment="after", config=config_of(arguments, has_env=not needs_env))
    if run is None:
        return [after]
    initial = str(run.record()["config"]["model"]["name"])
    # An adapter that has not trained is the model itself.
    model = after.config.model.model_copy(update={"name": initial, "adapter": FullWeightsConfig()})
    before = after.config.model_copy(update={"model": model})
    return [Speaker(moment="before", config=before), after]


def answers(
    speaker: Speaker, tasks: Sequence[Task] | None, *, samples: int, task: str | None = None
) -> list[tuple[Task, list[Answer]]]:
    """`samples` attempts of one model at each of `tasks`, unjudged; with None at the first held-out
    tasks of its environment, or at the one called `task`, judged."""
    own = None if tasks is None else unjudged(tasks)
    with open_together(speaker.config, own) as (sampler, together):
        asked = tasks or together.parallel.agreed(lambda: _held_out(sampler.env, task))
        found = attempt_tasks(
            sampler.collector,
            asked,
            samples=samples,
            sampling=_sampling(sampler, speaker.config),
            seed=speaker.config.seed,
            together=together,
        )
    return [
        (
            group.task,
            [
                Answer(moment=speaker.moment, rollout=rollout, verdict=None if own else verdict)
                for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
            ],
        )
        for group in found.groups
    ]


def _held_out(env: Env, task: str | None) -> Sequence[Task]:
    return env.load("eval")[:NUM_TASKS] if task is None else [find_task(env, task)]


def conversation(
    who: Sequence[Speaker], lines: Iterable[str]
) -> Generator[list[tuple[Moment, str]]]:
    """The answers of every model to each line, each going on with its own conversation."""
    with ExitStack() as stack:
        samplers = [stack.enter_context(open_sampler(one.config, unjudged(["-"]))) for one in who]
        said: list[list[Message]] = [[] for _ in who]
        for number, line in enumerate(lines):
            found: list[tuple[Moment, str]] = []
            for one, sampler, messages in zip(who, samplers, said, strict=True):
                messages.append({"role": "user", "content": line})
                task = Task(id=f"line-{number}", messages=tuple(messages))
                (group,) = attempt_tasks(
                    sampler.collector,
                    [task],
                    samples=1,
                    sampling=_sampling(sampler, one.config),
                    seed=one.config.seed,
                    together=Together(),
                ).groups
                text = group.rollouts[0].text
                messages.append({"role": "assistant", "content": text})
                found.append((one.moment, text))
            yield found


def unjudged(tasks: Sequence[Task | str]) -> Env:
    """An environment that has no opinion."""
    return env(tasks, lambda task, rollout: 0.0)


def _sampling(sampler: Sampler, config: RunConfig) -> Sampling:
    return sampler.sampling(config, temperature=config.eval.temperature, top_p=config.eval.top_p)
