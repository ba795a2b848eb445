"""A frozen base in four bits under adapters that train (QLoRA), by bitsandbytes.

Linear layers are quantised while they are loaded; embeddings, norms, the LM head and adapters are
not. Such weights cannot take an update or an adapter's sum without another rounding, so they never
do: who wants one model (evaluation, export) gets the base de-quantised, which is exact, and the
adapter added to that.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from sdpo.config.schema import AdapterConfig, LoraConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.models.structure import causal_lm, name_of

RECORD = "base_quantization.json"
"""Beside an adapter: how its base was quantised. PEFT's own file has no place for it."""


def quantization_of(config: Any) -> str:
    """How weights of a model with `config` are stored: `none`, `nf4`, or another method's name as
    transformers writes it (`gptq`, `fp8`, ...)."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return "none"
    settings = found if isinstance(found, dict) else found.to_dict()
    kind = settings.get("bnb_4bit_quant_type")
    is_four_bits = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
    method = str(getattr(settings["quant_method"], "value", settings["quant_method"]))
    if method != "bitsandbytes":
        return method
    return str(kind) if is_four_bits else "bitsandbytes in 8 bits"


def loading_options(quantization: str, kind: torch.dtype, where: torch.device) -> dict[str, Any]:
    """Keywords with which `from_pretrained` quantises; none for `none`. Products are in `kind`.
    Raises `ConfigError` without bitsandbytes."""
    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.adapter.quantization = {quantization!r} needs bitsandbytes: "
            "pip install 'sdpo[qlora]'"
        )
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kind,
    )
    # Quantised layers are made on the device where they stay.
    return {"quantization_config": settings, "device_map": {"": where}}


def check_quantization(model: torch.nn.Module, adapter: AdapterConfig) -> None:
    """Raises `ConfigError` for weights of a format that `adapter` does not name, and `ModelError`
    for one that nothing here trains on."""
    inner = causal_lm(model)
    found = quantization_of(inner.config)
    wanted = adapter.quantization if isinstance(adapter, LoraConfig) else "none"
    if found == wanted:
        return
    if found == "none":
        raise ConfigError(
            f"model.adapter.quantization = {wanted!r}, but {name_of(inner)} was loaded without; "
            "load it with transformers' BitsAndBytesConfig, or leave the setting out"
        )
    if found == "nf4":
        raise ConfigError(
            f"{name_of(inner)} is quantised (nf4), and such weights cannot train; set "
            "model.adapter.type = 'lora' and model.adapter.quantization = 'nf4'"
        )
    raise ModelError(
        f"{name_of(inner)} is quantised ({found}), which nothing is trained on here; name the "
        "model that it was made from, with model.adapter.quantization = 'nf4' to save memory"
    )


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with the plain weights that its quantised ones stand for; itself without any."""
    if quantization_of(model.config) == "none":
        return model
    plain: Any = model.dequantize()
    return plain


def record_quantization(model: torch.nn.Module, folder: Path) -> None:
    """Writes how the base of the adapter in `folder` is quantised, if it is."""
    if (found := quantization_of(causal_lm(model).config)) != "none":
        text = json.dumps({"quantization": found}) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")


def recorded_quantization(folder: Path) -> str:
    """How the base of the adapter in `folder` was quantised when that was trained."""
    path = folder / RECORD
    if not path.is_file():
        return "none"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["quantization"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy the adapter again") from error


def num_weights(parameters: Iterable[torch.nn.Parameter]) -> int:
    """How many numbers `parameters` stand for: a byte of a quantised weight is two."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in parameters)
    return sum(p.numel() if state is None else state.shape.numel() for p, state in states)


def said_of_bytes(model: torch.nn.Module) -> str:
    """What a quantised base takes, for people: `, linear layers in 4 bits (nf4): 0.41 GB of
    weights`; empty for a plain one."""
    found = quantization_of(causal_lm(model).config)
    if found == "none":
        return ""
    stored = sum(parameter.nbytes for parameter in model.parameters())
    return f", linear layers in 4 bits ({found}): {stored / 1e9:.2g} GB of weights"
