"""Low-rank adapters (PEFT): new ones, those of a folder, and how a folder keeps them.

A folder with adapter_config.json holds an adapter only; `base_model_name_or_path` in it says which
model it belongs to, by a name that `load_policy` takes. PEFT's own advice stays away from the user.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sdpo.config.schema import LoraConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.models.quantized import record_quantization, recorded_quantization
from sdpo.models.quiet import quiet
from sdpo.models.wrapper import processor_files, tower_parameters, tower_pattern

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OPTIONS = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
)
"""Fields of PEFT's LoraConfig that `model.adapter.options` may set. Dropout is none of them: what
samples, what trains and what teaches must be one policy."""
STARTS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; the others change its weights, and an
adapter's file would fit no model that can be named."""
_NAME = "default"
"""PEFT's name of the only adapter; it is in the parameters' names and not in the file's."""


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_name(folder: Path) -> str:
    """Name of the model that the adapter in `folder` belongs to. Raises `ModelError`."""
    name = _settings(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder / ADAPTER} names no base model; add base_model_name_or_path (hub id, folder)"
        )
    return name


def continues(folder: Path, wanted: LoraConfig) -> bool:
    """Whether training with `wanted` can go on with the very adapter in `folder`: same kind, rank,
    alpha, options and format of the base. How it started is past, and `all-linear` cannot be told
    from the list of layers that PEFT writes."""
    settings = _settings(folder)
    found = (settings.get("peft_type"), settings.get("r"), settings.get("lora_alpha"))
    if found != ("LORA", wanted.rank, wanted.alpha):
        return False
    if recorded_quantization(folder) != wanted.quantization:
        return False
    options = {"use_rslora": False, "use_dora": False, **wanted.options}
    options.pop("init_lora_weights", None)
    if options.get("target_modules") == "all-linear":
        del options["target_modules"]
    return all(_as_saved(settings.get(key)) == _as_saved(v) for key, v in options.items())


def new_adapter(model: PreTrainedModel, wanted: LoraConfig, *, base: str, seed: int) -> Any:
    """`model` inside PEFT's wrapper, whose adapters alone train. `seed` decides their first weights
    on every rank alike; `base` is recorded as the name of `model`. Raises `ConfigError` for options
    that PEFT or this package does not take."""
    peft = _peft()
    _check_options(wanted.options)
    options = {"target_modules": "all-linear", **wanted.options}
    if pattern := tower_pattern(model):
        options.setdefault("exclude_modules", pattern)
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _without_advice():
        torch.manual_seed(seed)
        try:
            config = peft.LoraConfig(
                r=wanted.rank, lora_alpha=wanted.alpha, task_type="CAUSAL_LM", **options
            )
            adapted = peft.get_peft_model(model, config)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"model.adapter.options = {wanted.options}: PEFT refuses it ({error})"
            ) from error
    adapted.peft_config[_NAME].base_model_name_or_path = base
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path, *, merge: bool) -> Any:
    """`model` with the adapter in `folder`: added into its weights with `merge`, else beside them
    and trainable. Raises what PEFT raises for files that do not fit."""
    peft = _peft()
    with _without_advice():
        # An adapter that is filled with new weights where the file has none is another adapter.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=not merge)
    if not merge:
        return adapted
    # PEFT froze the weights it wrapped; merged, they are a model like any other.
    return adapted.merge_and_unload().requires_grad_(True)


def save_model(model: Any, folder: Path) -> None:
    """Write `model` as a Hugging Face folder; of a model with adapters, these alone."""
    with quiet():
        if not has_adapter(model):
            model.save_pretrained(folder)
            if any(True for _ in tower_parameters(model)):
                for path in processor_files(model.name_or_path, is_online=False):
                    shutil.copyfile(path, folder / path.name)
            return
        # Vocabularies do not change here; unset, PEFT asks the hub whether this one has.
        model.save_pretrained(folder, save_embedding_layers=False)
    record_quantization(model, folder)
    # PEFT's card is an empty form; `sdpo export` writes a filled one.
    (folder / "README.md").unlink(missing_ok=True)


def has_adapter(model: Any) -> bool:
    """Whether `model` is inside PEFT's wrapper."""
    return hasattr(model, "peft_config")


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter in `folder` under the names of the wrapped model's parameters; empty without."""
    if not (folder / WEIGHTS).is_file():
        return {}
    return {parameter_name(name): weight for name, weight in load_file(folder / WEIGHTS).items()}


def parameter_name(saved: str) -> str:
    """Name of the parameter that an adapter's file calls `saved`."""
    stem, _, kind = saved.rpartition(".")
    # DoRA's magnitude is a layer of its own, whose weight the file calls by the layer's name.
    is_layer = kind == "lora_magnitude_vector"
    return f"{saved}.{_NAME}.weight" if is_layer else f"{stem}.{_NAME}.{kind}"


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(
                f"model.adapter.options: {name!r} is not among those that are passed to PEFT; "
                f"choose from {', '.join(OPTIONS)}"
            )
    start = options.get("init_lora_weights", True)
    if start not in STARTS:
        raise ConfigError(
            f"model.adapter.options: init_lora_weights = {start!r} changes the base's weights; "
            f"choose from {', '.join(map(repr, STARTS))}"
        )


def _as_saved(value: Any) -> Any:
    """`value` as JSON has it, names of layers in no order."""
    return sorted(value) if isinstance(value, list | tuple) else value


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy the adapter again") from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("adapters (LoRA) need PEFT: pip install 'sdpo[lora]'") from error
    return peft


@contextlib.contextmanager
def _without_advice() -> Generator[None]:
    with quiet(), warnings.catch_warnings():
        # PEFT asks transformers for an attribute under its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        yield
