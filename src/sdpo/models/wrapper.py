"""Models that also read images, sound or video: a text decoder inside a wrapper with towers.

Training here is on text. The towers are kept as they are: they stay out of what trains and out of
new adapters, and a checkpoint has their weights and the files of their processors.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from sdpo.models.structure import causal_lm

_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""What processors of images and sound keep beside a tokenizer's files."""


def auto_class(config: PreTrainedConfig) -> Any:
    """The transformers class that loads every weight of a checkpoint with `config`: the text class
    of a type that has both would leave the towers out."""
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    text = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    names = config.architectures or ()
    if whole is not None and (text is None or whole in names):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def freeze_towers(model: torch.nn.Module) -> None:
    """Take what text does not reach out of training: without gradients, it would still decay."""
    for _, parameter in tower_parameters(model):
        parameter.requires_grad_(False)


def tower_parameters(model: torch.nn.Module) -> Generator[tuple[str, torch.nn.Parameter]]:
    """Name and parameter of everything beside the text decoder, its embeddings and its head."""
    inner = causal_lm(model)
    if inner.config.get_text_config() is inner.config:
        return
    parts = (inner.get_decoder(), inner.get_input_embeddings(), inner.get_output_embeddings())
    text = {id(p) for part in parts if part is not None for p in part.parameters()}
    yield from ((name, p) for name, p in inner.named_parameters() if id(p) not in text)


def tower_pattern(model: torch.nn.Module) -> str | None:
    """A regular expression for names of modules in towers, as PEFT takes it; None without any."""
    inner = causal_lm(model)
    frozen = {id(parameter) for _, parameter in tower_parameters(model)}
    towers: list[str] = []
    for name, module in inner.named_modules():
        owned = {id(parameter) for parameter in module.parameters()}
        if owned and owned <= frozen and not any(name.startswith(f"{top}.") for top in towers):
            towers.append(name)
    return rf"({'|'.join(map(re.escape, towers))})(\..*)?" if towers else None


def processor_files(source: str, *, is_online: bool) -> list[Path]:
    """Files of the processors that belong to the model at `source` (folder or hub id; empty for a
    model that was made in memory)."""
    found = []
    if not source:
        return found
    for name in _PROCESSOR_FILES:
        path = cached_file(
            source,
            name,
            local_files_only=not is_online,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            found.append(Path(path))
    return found
