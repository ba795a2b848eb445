"""Opens the environment that a recipe's `env` section names. Its task file is read by the first
`load`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import assert_never

from sdpo.config import schema
from sdpo.custom import forget_changed_files, load_object
from sdpo.envs.base import Env
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Task


def open_env(config: schema.EnvConfig) -> Env:
    """The environment that `config` names. Raises `ConfigError` if a custom one cannot be
    opened."""
    match config:
        case schema.CodeEnvConfig():
            from sdpo.envs.code import CodeEnv

            return CodeEnv(config)
        case schema.ChoiceEnvConfig():
            from sdpo.envs.choice import Choice

            return Choice(config)
        case schema.ToolsEnvConfig():
            from sdpo.envs.tools import Tools

            return Tools(config)
        case schema.MathEnvConfig():
            from sdpo.envs.math import Math

            return Math(config)
        case schema.SqlEnvConfig():
            from sdpo.envs.sql import SqlEnv

            return SqlEnv(config)
        case schema.LlmJudgeEnvConfig():
            from sdpo.envs.adapters.llm_judge import LlmJudge

            return LlmJudge(config)
        case schema.ReasoningGymEnvConfig():
            from sdpo.envs.adapters.reasoning_gym import ReasoningGym

            return ReasoningGym(config)
        case schema.CustomEnvConfig(path=path):
            return _custom_env(path)
        case _:
            assert_never(config)


def check_env(env: Env) -> None:
    """Raises `TaskError` naming the environment unless its splits hold tasks with ids of their own.
    One that says itself that it has nothing to train on may still be evaluated and searched."""
    name = type(env).__name__
    for split in ("train", "eval"):
        try:
            inspect.signature(env.load).bind(split)
        except TypeError as error:
            raise TaskError(f"{name}.load is called as load({split!r}): {error}") from error
        except ValueError:
            pass  # A built-in callable without a signature; the call itself will show.
        try:
            tasks = env.load(split)
        except TaskError:
            if split == "train":
                continue
            raise
        if not isinstance(tasks, Sequence) or isinstance(tasks, str):
            raise TaskError(
                f"{name}.load({split!r}) returned {type(tasks).__name__}; return a list of Task"
            )
        _check_split(f"{name}.load({split!r})", tasks)
    try:
        inspect.signature(env.judge).bind(None, None)
    except TypeError as error:
        raise TaskError(f"{name}.judge is called as judge(task, rollout): {error}") from error
    except ValueError:
        pass


def _check_split(named: str, tasks: Sequence[object]) -> None:
    if not tasks:
        raise TaskError(f"{named} returned no task; at least one is needed")
    seen: set[str] = set()
    for task in tasks:
        if not isinstance(task, Task):
            raise TaskError(
                f"{named} holds {type(task).__name__}; make each a sdpo.Task(id=..., messages=...)"
            )
        if task.id in seen:
            raise TaskError(f"{named} has the id {task.id!r} twice")
        seen.add(task.id)


def _custom_env(path: str) -> Env:
    """The object at `package.module:Name` or `folder/file.py:Name`, or what it returns when
    called."""
    forget_changed_files()
    found = load_object("env.path", path)
    # A class has `load` and `judge` too, so it would pass for an instance.
    if inspect.isclass(found) or (callable(found) and not isinstance(found, Env)):
        _refuse_arguments(path, found)
        found = found()
    if not isinstance(found, Env):
        raise ConfigError(
            f"env.path = {path!r} has the type {type(found).__name__}, which is not an "
            "environment; an environment has load(split) and judge(task, rollout), and "
            "sdpo.env(tasks, judge) makes one"
        )
    return found


def _refuse_arguments(path: str, factory: object) -> None:
    assert callable(factory)
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConfigError(
            f"env.path = {path!r} must be callable without arguments: {error}"
        ) from error
    except ValueError:
        return  # A built-in callable without a signature; the call itself will show.
