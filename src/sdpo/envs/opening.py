"""Opens the environment that a recipe's `env` section names. Its task file is read by the first
`load`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import assert_never

from sdpo.config import schema
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
        case schema.CustomEnvConfig(path=path):
            return _custom_env(path)
        case _:
            assert_never(config)


def check_tasks(env: Env) -> None:
    """Raises `TaskError` naming the environment unless both its splits hold tasks with ids of their
    own."""
    name = type(env).__name__
    for split in ("train", "eval"):
        try:
            inspect.signature(env.load).bind(split)
        except TypeError as error:
            raise TaskError(f"{name}.load is called as load({split!r}): {error}") from error
        except ValueError:
            pass  # A built-in callable without a signature; the call itself will show.
        tasks = env.load(split)
        if not isinstance(tasks, Sequence) or isinstance(tasks, str):
            raise TaskError(
                f"{name}.load({split!r}) returned {type(tasks).__name__}; return a list of Task"
            )
        if not tasks:
            raise TaskError(f"{name}.load({split!r}) returned no task; at least one is needed")
        seen: set[str] = set()
        for task in tasks:
            if not isinstance(task, Task):
                raise TaskError(
                    f"{name}.load({split!r}) holds {type(task).__name__}; make each a "
                    "sdpo.Task(id=..., messages=...)"
                )
            if task.id in seen:
                raise TaskError(f"{name}.load({split!r}) has the id {task.id!r} twice")
            seen.add(task.id)
    try:
        inspect.signature(env.judge).bind(None, None)
    except TypeError as error:
        raise TaskError(f"{name}.judge is called as judge(task, rollout): {error}") from error
    except ValueError:
        pass


def _custom_env(path: str) -> Env:
    """The object at `package.module:Name` or `folder/file.py:Name`, or what it returns when
    called."""
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise ConfigError(f"env.path = {path!r}: write package.module:Name or folder/file.py:Name")
    module = _load_file(path, Path(source)) if source.endswith(".py") else _load(path, source)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(key for key in vars(module) if not key.startswith("_"))
            raise ConfigError(
                f"env.path = {path!r}: {source} has no {name!r}; it has {public or 'nothing'}"
            )
        found = getattr(found, part)
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


def _load(path: str, name: str) -> ModuleType:
    # Unlike `python -m`, a console script does not search the current directory, where a user's
    # module usually is. The directory stays on the path for what that module imports later.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            raise ConfigError(
                f"env.path = {path!r}: no module {missing!r} in {here} or among installed packages"
            ) from error
        raise ConfigError(
            f"env.path = {path!r}: {name} imports {missing!r}, which is not installed"
        ) from error
    except (TypeError, ValueError) as error:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"env.path = {path!r}: {name!r} is not a module name") from error
        raise


def _load_file(path: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"env.path = {path!r}: {file} does not exist in {Path.cwd()}")
    # The file may import its neighbours.
    folder = str(file.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Not under its own name: a user's `json.py` must not become everyone's `json`.
    name = f"sdpo_custom_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"env.path = {path!r}: {file} imports {error.name!r}, which is not installed"
        ) from error
    return module
