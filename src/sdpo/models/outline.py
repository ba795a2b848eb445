"""A model without its weights: its class and its shapes, from a config alone.

Tensors live on PyTorch's meta device: they have shapes and types and no memory, and a forward pass
of them computes nothing. `sdpo check --gpus` counts bytes on such
a model, so a model of any size takes a second and no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, assert_never

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sdpo.config.load import RECIPES
from sdpo.config.schema import FullWeightsConfig, LoraConfig, ModelConfig
from sdpo.errors import ModelError, first_line
from sdpo.models.adapters import base_name, is_adapter, new_adapter
from sdpo.models.gguf import DEMO, demo_folder
from sdpo.models.policy import is_reachable
from sdpo.models.quiet import quiet
from sdpo.models.wrapper import auto_class, freeze_towers
from sdpo.run_folder import as_run

SHAPES = RECIPES / "models.json"
"""The config.json of every hub model that a built-in recipe names, by hub id: checking a recipe
needs no network."""


def shipped_shapes() -> dict[str, dict[str, Any]]:
    """What `SHAPES` holds."""
    return dict(json.loads(SHAPES.read_text(encoding="utf-8")))


def shape_of(name: str, shape: Path | None = None) -> PreTrainedConfig:
    """The config of the model that `name` stands for, as `load_policy` reads it; with `shape`, a
    config.json (or a folder with one), that one. Raises `ModelError`.
    """
    if shape is not None:
        return _read(shape / "config.json" if shape.is_dir() else shape, option="--model-shape")
    if name == DEMO:
        return _read(demo_folder() / "config.json")
    run = as_run(name)
    folder = Path(name).expanduser() if run is None else run.checkpoint()
    if is_adapter(folder):
        return shape_of(base_name(folder))
    if (folder / "config.json").is_file():
        return _read(folder / "config.json")
    shipped = shipped_shapes()
    if name in shipped:
        return _parsed(shipped[name], str(SHAPES))
    try:
        with quiet():
            return AutoConfig.from_pretrained(
                name, trust_remote_code=False, local_files_only=not is_reachable(name)
            )
    except Exception as error:
        # transformers and the hub's client raise anything here.
        raise ModelError(
            f"model.name = {name!r}: its config.json cannot be read ({first_line(error)}); get "
            "that one file from the hub's page of the model and pass --model-shape FILE"
        ) from error


def _read(path: Path, *, option: str = "model.name") -> PreTrainedConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{option}: {path} cannot be read as a model's config.json ({first_line(error)})"
        ) from error
    return _parsed(values, str(path))


def _parsed(values: Any, source: str) -> PreTrainedConfig:
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(
            f"{source} names no model_type, so it is not a config.json of transformers"
        )
    try:
        kind = AutoConfig.for_model(values["model_type"])
    except ValueError as error:
        raise ModelError(
            f"{source}: model_type = {values['model_type']!r} is unknown to this transformers; "
            "update it, or take another model"
        ) from error
    return type(kind).from_dict(values)


def weightless() -> torch.device:
    """A context in which tensors are made without memory."""
    return torch.device("meta")


def outline(config: PreTrainedConfig, model: ModelConfig, dtype: torch.dtype) -> Any:
    """The model with `config`, in eval mode, with the adapter that `model.adapter` names. Call it
    within `weightless`. Raises `ModelError` and `ConfigError`."""
    try:
        with quiet():
            made: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype)
    except Exception as error:
        # The code of hundreds of models raises anything.
        raise ModelError(
            f"model.name = {model.name!r}: its config.json makes no model ({first_line(error)})"
        ) from error
    freeze_towers(made)
    match model.adapter:
        case FullWeightsConfig():
            return made.eval()
        case LoraConfig() as wanted:
            return new_adapter(made, wanted, base=model.name, seed=0).eval()
        case other:
            assert_never(other)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each storage behind `tensors`, by its identity; tied weights once."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in found}
