"""A tiny random model of families that wrap a text decoder and towers for images."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import EXTRA, SIZES, settings_of
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TOWER_SIZES: dict[str, Any] = {
    name: size
    for name, size in SIZES.items()
    if name not in ("vocab_size", "head_dim", "num_key_value_heads")
} | {
    "embed_dim": 32,
    "out_hidden_size": 32,
    "depth": 2,
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "vision_output_dim": 32,
    "projection_dim": 32,
    "intermediate_size": 48,
}


def _rotary(*section: int, **more: object) -> dict[str, Any]:
    """Head sizes of 8 or 4 in sections for time, height and width."""
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*section], **more}
    return {"rope_parameters": rotary}


_HYBRID = EXTRA["qwen3_5_text"]
TEXT: dict[str, dict[str, Any]] = {
    "aya_vision": {},
    "cohere2_vision": {},
    "gemma3": {},
    "glm4v": _rotary(1, 1, 2),
    "glm4v_moe": _rotary(1, 1, 0, partial_rotary_factor=0.5),
    "idefics3": {},
    "internvl": {},
    "kimi_k25": EXTRA["deepseek_v3"],
    "lfm2_vl": EXTRA["lfm2"],
    "llama4": {},
    "llava": {},
    "minimax_m3_vl": {},
    "mistral3": {},
    "paligemma": {},
    "qwen2_5_vl": _rotary(1, 1, 2),
    "qwen2_vl": _rotary(1, 1, 2),
    "qwen3_5": _HYBRID,
    "qwen3_5_moe": _HYBRID,
    "qwen3_vl": {},
    "qwen3_vl_moe": {},
    "qwen4_exp": {},
    "smolvlm": {},
}
"""Family to what its text decoder needs beyond `SIZES`."""


def build_wrapper(family: str, **extra: Any) -> PreTrainedModel:
    """A tiny model of `family` in eval mode; `extra` is of its text decoder."""
    kind = CONFIG_MAPPING[family]
    default: Any = kind()
    text, tower = type(default.text_config), type(default.vision_config)
    config = kind(
        text_config=text(**settings_of(text, SIZES, TEXT[family] | extra)).to_dict(),
        vision_config=tower(**settings_of(tower, TOWER_SIZES, {})).to_dict(),
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()
