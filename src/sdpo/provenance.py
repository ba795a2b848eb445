"""A run's folder as it is opened: who may write in it, whether all processes see it, and what it
says about how the run was made."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdpo._version import __version__
from sdpo.config.custom import CustomConfig
from sdpo.config.environments import JUDGING_KEYS
from sdpo.config.load import dump
from sdpo.config.objective import DistillingConfig
from sdpo.config.schema import CustomEnvConfig, RunConfig
from sdpo.custom import source_of
from sdpo.envs.base import Env
from sdpo.envs.opening import check_env
from sdpo.errors import ConfigError
from sdpo.files import atomic_write, marker
from sdpo.lock import LOCK, sole_writer
from sdpo.machine import usable_cores
from sdpo.parallel import Parallel
from sdpo.run_folder import SEARCH

_BEFORE_THE_FIRST_ROW = {"config.json", LOCK}
SEEN_S = 10.0
"""How soon every process must see a file that one has written; NFS takes up to a few seconds."""
_LOOK_S = 0.05


@contextmanager
def own_folder(run_dir: Path) -> Generator[None]:
    """Holds `run_dir` for the block, as `sole_writer` does, and removes it if it was made for the
    block and an error has left it without a single row. Raises `ConfigError`, also for the folder
    of a search."""
    if (run_dir / SEARCH).is_file():
        raise ConfigError(
            f"run = {str(run_dir)!r} holds a search; `sdpo discover {run_dir}` continues it, and "
            "training needs another folder: run=..."
        )
    was_there = run_dir.exists()
    try:
        with sole_writer(run_dir):
            yield
    except Exception:
        left = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
        if not was_there and left <= _BEFORE_THE_FIRST_ROW:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def check_shared(run_dir: Path, parallel: Parallel) -> None:
    """Raises `ConfigError` on every rank unless all of them see `run_dir`, which the main one has
    made: of machines with a folder each, one alone would continue from a checkpoint."""
    if parallel.world_size == 1:
        return
    token, writer = parallel.gather((secrets.token_hex(8), platform.node()))[0]
    path = marker(run_dir, token)
    parallel.from_main(path.touch)
    try:
        parallel.agreed(lambda: _look(path, parallel.rank, writer))
    finally:
        if parallel.is_main:
            path.unlink(missing_ok=True)


def _look(path: Path, rank: int, writer: str) -> None:
    end = time.monotonic() + SEEN_S
    while not path.exists():
        if time.monotonic() > end:
            raise ConfigError(
                f"run = {str(path.parent)!r}: process {rank} on {platform.node()} (in "
                f"{Path.cwd()}) does not see what process 0 on {writer} writes there; give a "
                "folder that all machines share: run=/shared/NAME"
            )
        time.sleep(_LOOK_S)


def open_run_dir(config: RunConfig, facts: Mapping[str, Any]) -> Path:
    """The run's directory with its config.json. A directory that already holds results must have
    the same config and environment; only `steps` and `discover.budget` may have grown, which
    continues the run.

    Raises `ConfigError` when the directory belongs to another run or cannot be written.
    """
    run_dir = Path(config.run)
    path = run_dir / "config.json"
    try:
        if path.exists() and _has_begun(run_dir):
            recorded = check_same_run(config, path)
            _check_same_env(config, recorded.get("environment"), facts.get("environment"))
            _check_same_sources(config, recorded.get("custom"), facts.get("custom"))
            if not _grown(recorded["config"], config):
                return run_dir
            facts = {name: value for name, value in recorded.items() if name != "config"}
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {"config": dump(config), **facts}
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run = {config.run!r}: cannot write there ({error.strerror}); "
            "choose another directory with run=..."
        ) from error
    return run_dir


def _has_begun(run_dir: Path) -> bool:
    """Whether there is anything to continue; a run that failed before its first row left
    nothing."""
    names = ("metrics.jsonl", "discovery.jsonl", "selection.jsonl")
    files = [run_dir / name for name in names]
    return any(f.is_file() and f.stat().st_size for f in files) or any(
        run_dir.glob("checkpoints/step-*")
    )


def _check_same_env(config: RunConfig, recorded: Any, given: Any) -> None:
    if recorded == given:
        return
    before, now = (
        "that of its config" if env is None else f"env={env['class']} of {env['tasks']} tasks"
        for env in (recorded, given)
    )
    raise ConfigError(
        f"run = {config.run!r} was made with another environment ({before}, now {now}); "
        "pass the same env= or choose another directory with run=..."
    )


def _check_same_sources(config: RunConfig, recorded: Any, given: Any) -> None:
    """A judge may be repaired and the run continued; anything else makes another run of it."""
    for key, source in (given or {}).items():
        before = (recorded or {}).get(key, {}).get("sha256")
        if key != "env" and before != source["sha256"]:
            raise ConfigError(
                f"{key}.path = {source['path']!r}: {source['file']} has changed since run = "
                f"{config.run!r} began (SHA-256 {str(before)[:12]}, now {source['sha256'][:12]}); "
                "bring it back as it was, or choose another directory with run=..."
            )


def check_same_run(config: RunConfig, path: Path) -> dict[str, Any]:
    """The record at `path`. Raises `ConfigError` naming the keys that differ from `config`; `steps`
    and `discover.budget` may be larger than recorded."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        before = recorded["config"]
        grown = _grown(before, config)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged or not a run's config.json ({error}); delete that file and repeat "
            "the command with the settings the run began with to continue it, or choose another "
            "directory with run=..."
        ) from None
    different = set(_differences(before, dump(config)))
    # How judges are called changes no verdict; a run whose judge failed may need another way.
    different -= JUDGING_KEYS
    # Compared by what they make of prompts: a clock may have to be pinned to go on.
    different = {k for k in different if not k.startswith("model.chat_template_kwargs")}
    # Who holds which part of the weights changes rounding only.
    different -= {"model.parallel"}
    # Where numbers are shown besides changes none of them.
    different -= {"log.backends", "log.project", "log.name", "log.tags"}
    different -= grown
    if different:
        raise ConfigError(
            f"run = {config.run!r} already holds a run with other settings "
            f"({', '.join(sorted(different))}); "
            "choose another directory with run=..., or delete that one"
        )
    return recorded


def _grown(before: Mapping[str, Any], config: RunConfig) -> set[str]:
    """What is larger in `config` than in a recorded one, of the settings that only say when to
    stop."""
    sizes = {
        "steps": (before["steps"], config.steps),
        "discover.budget": (before["discover"]["budget"], config.discover.budget),
    }
    return {key for key, (old, new) in sizes.items() if old < new}


def _differences(left: Any, right: Any, key: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = []
        for name in left.keys() | right.keys():
            keys += _differences(left.get(name), right.get(name), f"{key}.{name}" if key else name)
        return keys
    return [] if left == right else [key]


def run_facts(config: RunConfig, env: Env | None = None) -> dict[str, Any]:
    """What it takes to repeat the run besides its config: versions, git commit and diff, command,
    host, the files of the functions that `config` names, and the environment passed instead of the
    config's."""
    return {
        "environment": None if env is None else _fingerprint(env),
        "custom": _custom_sources(config),
        "versions": {
            "python": platform.python_version(),
            "sdpo": __version__,
            **{name: _version(name) for name in ("torch", "transformers", "numpy", "tokenizers")},
        },
        "git": _git_state(),
        "host": {
            "name": platform.node(),
            "machine": platform.machine(),
            "cores": usable_cores(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "command": sys.argv,
    }


@functools.cache
def _version(package: str) -> str:
    """Of an installed package; to read its metadata takes a hundredth of a second."""
    return importlib.metadata.version(package)


def _fingerprint(env: Env) -> dict[str, Any]:
    check_env(env)
    tasks = env.load("train")
    text = json.dumps([[task.id, task.messages] for task in tasks], default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return {"class": type(env).__name__, "tasks": len(tasks), "digest": digest}


def _git_state() -> dict[str, str]:
    """Commit and uncommitted diff of the code that runs; empty outside a checkout or without
    git."""
    source = Path(__file__).parent
    state = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for key, command in (("commit", ["rev-parse", "HEAD"]), ("diff", ["diff", "HEAD"])):
            result = subprocess.run(
                ["git", *command],
                cwd=source,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=10,
                check=True,
            )
            state[key] = result.stdout.strip()
    return state


def _custom_sources(config: RunConfig) -> dict[str, dict[str, str]]:
    """Path, file and hash of every function that `config` names, by its section."""
    sections: dict[str, object] = {
        "env": config.env,
        "objective": config.objective,
        "teacher.context": config.teacher.context,
        "teacher.schedule": config.teacher.schedule,
    }
    if isinstance(config.objective, DistillingConfig):
        sections["objective.divergence"] = config.objective.divergence
        sections["objective.weighting"] = config.objective.weighting
    return {
        key: source_of(f"{key}.path", section.path)
        for key, section in sections.items()
        if isinstance(section, CustomConfig | CustomEnvConfig)
    }
