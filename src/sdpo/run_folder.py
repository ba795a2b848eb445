"""A run's folder where a model or a recipe is wanted: its newest checkpoint, or that of a step
(`runs/quickstart@4`), its settings and its environment.

Only names and small files are read here; the weights are models/policy.py's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.config.load import builtin_recipes, load
from sdpo.config.schema import RunConfig
from sdpo.errors import ConfigError

CHECKPOINTS = "checkpoints"
STATE = "state.pt"
"""What a complete checkpoint has beside its weights, for exact resume."""
SEARCH = "discovery.jsonl"
_AT_STEP = re.compile(r"(?P<folder>.+)@(?P<step>\d+)")
_SEED = "seed-*/config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A run as a name gives it.

    Example:
        RunFolder(folder=Path("runs/quickstart"), step=4)
    """

    folder: Path
    step: int | None
    """None: the newest checkpoint's."""

    def checkpoint(self) -> Path:
        """The folder of the checkpoint that is meant. Raises `ConfigError` where there is none."""
        steps = checkpoint_steps(self.folder / CHECKPOINTS)
        seeds = sorted(str(path.parent) for path in self.folder.glob(_SEED))
        if seeds and not steps:
            raise ConfigError(
                f"{str(self.folder)!r} holds the runs of several seeds; name one of them: "
                f"{', '.join(seeds)}"
            )
        if not steps:
            raise ConfigError(
                f"{str(self.folder)!r} holds no checkpoint: the run has saved none, or it is a "
                "search, which keeps no weights; name the model or the recipe it began with"
            )
        step = steps[-1] if self.step is None else self.step
        if step not in steps:
            raise ConfigError(
                f"'{self.folder}@{step}': the run has no checkpoint of step {step}; it has "
                f"{', '.join(map(str, steps))} (checkpoint.keep says how many stay)"
            )
        return self.folder / CHECKPOINTS / f"step-{step}"

    def record(self) -> dict[str, Any]:
        """Its config.json: settings under `config`, and how the run was made. Raises
        `ConfigError`."""
        path = self.folder / "config.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read as a run's config.json: {error}") from error


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint in a run's `checkpoints`, ascending."""
    numbers = (path.parent.name.removeprefix("step-") for path in folder.glob(f"step-*/{STATE}"))
    return sorted(int(number) for number in numbers if number.isdigit())


def as_run(name: str) -> RunFolder | None:
    """The run that `name` stands for; None when it is anything else, as a model's folder is."""
    match = _AT_STEP.fullmatch(name)
    folder, step = (name, None) if match is None else (match["folder"], int(match["step"]))
    path = Path(folder).expanduser()
    if not (path / CHECKPOINTS).is_dir() and not _has_settings(path):
        return None
    return RunFolder(folder=path, step=step)


def config_of(
    arguments: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    has_env: bool = False,
) -> RunConfig:
    """What `arguments` and `settings` resolve to, as `load_config` says; a run among them stands
    for its weights and environment too, and `model.name` may be a run.

    Whatever a later file or a `key=value` sets wins over the run. `has_env`: an environment is
    given beside the settings. Raises `ConfigError`, also when the run's own environment was given
    in Python and none is given now.
    """
    return _resolved(arguments, settings, has_env=has_env)[0]


def search_config(arguments: Sequence[str]) -> RunConfig:
    """As `config_of`, for a search: its own folder continues it, and a search with a run's weights
    writes beside that run."""
    config, run = _resolved(arguments, None, has_env=False, searches=True)
    if run is not None and Path(config.run) == run.folder:
        return config.model_copy(update={"run": f"{run.folder}-discover"})
    return config


def with_model(config: RunConfig) -> RunConfig:
    """`config` with the checkpoint that `model.name` means, where that is a run: the record says
    which weights were taken, however long that run goes on."""
    run = as_run(config.model.name)
    return config if run is None else _with_name(config, str(run.checkpoint()))


def _resolved(
    arguments: Sequence[str],
    settings: Mapping[str, Any] | None,
    *,
    has_env: bool,
    searches: bool = False,
) -> tuple[RunConfig, RunFolder | None]:
    """The config, and the run whose weights it takes."""
    read: list[str] = []
    runs: dict[str, RunFolder] = {}
    for argument in arguments:
        is_other = "=" in argument or argument in builtin_recipes()
        run = None if is_other else as_run(argument)
        if run is None or (searches and (run.folder / SEARCH).is_file()):
            read.append(argument)
        else:
            run.checkpoint()
            read.append(str(run.folder))
            runs[read[-1]] = run
    loaded = load(read, settings)
    if not has_env:
        _check_env([runs.get(o) for key, o in loaded.origins.items() if key.startswith("env.")])
    run = runs.get(loaded.origins.get("model.name", ""))
    if run is None:
        return with_model(loaded.config), None
    return _with_name(loaded.config, str(run.checkpoint())), run


def _check_env(origins: Sequence[RunFolder | None]) -> None:
    """Raises `ConfigError` if every setting of the environment is that of a run made without it."""
    if not origins or origins[0] is None or any(origin != origins[0] for origin in origins):
        return
    env = origins[0].record().get("environment")
    if env is not None:
        raise ConfigError(
            f"{str(origins[0].folder)!r} was trained with an environment given in Python "
            f"({env['class']} of {env['tasks']} tasks): pass the same env= in Python, or name "
            "another with env.type=... and env.tasks=..."
        )


def _with_name(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def _has_settings(folder: Path) -> bool:
    if any(folder.glob(_SEED)):
        return True
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and isinstance(values.get("config"), dict)
