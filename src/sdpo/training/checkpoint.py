"""Checkpoints that appear whole or not at all, and what a run directory says about how it was made.

`checkpoints/step-N/` is an ordinary Hugging Face folder plus `state.pt` for exact resume, and of
sharded weights a folder that all processes write (`shard_files.py`). An interrupted or failed write
leaves the older checkpoints alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import pickle
import platform
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo._version import __version__
from sdpo.config.environments import JUDGING_KEYS
from sdpo.config.load import dump
from sdpo.config.schema import RunConfig
from sdpo.envs.base import Env
from sdpo.envs.opening import check_env
from sdpo.errors import CheckpointError, ConfigError
from sdpo.files import atomic_write, delete_folder
from sdpo.machine import usable_cores
from sdpo.models.adapters import adapter_weights, save_model
from sdpo.models.weights import reshard, set_weight, trainable
from sdpo.parallel import Parallel
from sdpo.run_folder import CHECKPOINTS, STATE, checkpoint_steps
from sdpo.training.custom import custom_sources
from sdpo.training.shard_files import (
    SHARDS,
    Layout,
    in_format,
    own_parts,
    read_shards,
    write_shards,
)

WEIGHTS = "trainable.safetensors"
"""Trained weights under the model's own names, kept apart only where the Hugging Face files have
other names: for mixtures whose experts transformers fuses in memory."""
_UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What a disk that is full, read-only or damaged raises."""
_ALONE = Parallel()


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        run_dir: Path,
        *,
        keep: int,
        parallel: Parallel = _ALONE,
        layout: Layout | None = None,
    ) -> None:
        """`layout` says which tensors of a state are this process's parts of weights that all
        processes share; without it the first process writes everything."""
        self.folder = run_dir / CHECKPOINTS
        self._keep = keep
        self._parallel = parallel
        self._layout = layout

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return checkpoint_steps(self.folder)

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        state: Mapping[str, Any],
        *,
        protect: int | None = None,
    ) -> Path:
        """Write `step-N`, then delete all but the newest `keep` (and `protect`). `model` holds
        whole weights. Collective: every process calls it, and sharded states are written by all.

        Raises `CheckpointError` when the disk is full or read-only; nothing older is lost and no
        partial folder remains.
        """
        final = self.folder / f"step-{step}"
        if self._layout is not None:
            self._write_together(final, model, tokenizer, state, self._layout)
        elif self._parallel.is_main:
            with self._explained(final), atomic_write(final) as partial:
                partial.mkdir()
                _write(partial, model, tokenizer, state)
        for old in self.steps()[: -self._keep] if self._parallel.is_main else ():
            if old not in (protect, step):
                delete_folder(self.folder / f"step-{old}")
        return final

    def _write_together(
        self,
        final: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        state: Mapping[str, Any],
        layout: Layout,
    ) -> None:
        """The first process makes the folder, all write their parts into it, and it takes its place
        once the first has added the rest. What fails on one is raised on all."""
        with ExitStack() as stack:

            def begin() -> str:
                if not self._parallel.is_main:
                    return ""
                with self._explained(final):
                    partial = stack.enter_context(atomic_write(final))
                    partial.mkdir()
                    return str(partial)

            def end() -> bool:
                with self._explained(final):
                    if self._parallel.is_main:
                        _write(partial, model, tokenizer, rest)
                    stack.close()
                return True

            partial = Path(self._parallel.gather(self._parallel.agreed(begin))[0])
            with self._explained(final):
                rest = write_shards(state, partial / SHARDS, layout)
            self._parallel.agreed(end)

    @contextlib.contextmanager
    def _explained(self, final: Path) -> Generator[None]:
        """What a disk does to a checkpoint as `CheckpointError`."""
        try:
            yield
        except (*_UNWRITTEN, CheckpointException) as error:
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error}; "
                "free space or choose another `run` directory. "
                f"Complete checkpoints: {self.steps() or 'none'}"
            ) from error

    def load(self, step: int, model: PreTrainedModel) -> dict[str, Any]:
        """Put the weights of `step` into `model`, of sharded ones this process's parts, and return
        the saved state likewise; whoever wrote it, together or alone. Collective. Raises
        `CheckpointError` when damaged."""
        folder = self.folder / f"step-{step}"
        reshard(model)
        try:
            state = self._read_state(folder, model)
            weights = _read_weights(folder)
        except (*_UNWRITTEN, CheckpointException, pickle.UnpicklingError, EOFError) as error:
            older = [each for each in self.steps() if each < step]
            cure = (
                f"delete it to resume from step {older[-1]}"
                if older
                else "no older one is left; delete it to start from the beginning (the records so "
                "far are kept as *.jsonl.bak)"
            )
            raise CheckpointError(f"checkpoint {folder} is damaged: {error}; {cure}") from error
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                if name not in weights:
                    raise CheckpointError(
                        f"checkpoint {folder} has no weight {name}; it is of another model"
                    )
                set_weight(parameter, weights[name])
        return state

    def _read_state(self, folder: Path, model: PreTrainedModel) -> dict[str, Any]:
        layout, device, path = self._layout, model.device, folder / STATE
        if (folder / SHARDS).is_dir():
            state = torch.load(path, map_location=device, weights_only=True)
            state = read_shards(state, folder / SHARDS, layout, device)
        elif layout is not None:
            # Mapped, not read: every process copies its own part only.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = own_parts(state, layout, device)
        else:
            return torch.load(path, map_location=device, weights_only=True)
        return in_format(state, {name: p.dtype for name, p in trainable(model).items()})


def _write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: Mapping[str, Any],
) -> None:
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    trained = trainable(model)
    if not trained.keys() <= _saved_names(folder):
        weights = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
        save_file(weights, folder / WEIGHTS)
    torch.save(dict(state), folder / STATE)


def _saved_names(folder: Path) -> set[str]:
    names = set(adapter_weights(folder))
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    weights = adapter_weights(folder)
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights


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
        "custom": custom_sources(config),
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
