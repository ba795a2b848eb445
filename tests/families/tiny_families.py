"""A tiny random model of every causal language model family that transformers knows.

Sizes are set by the names that configs share; where a family needs more, `EXTRA` says what. Weights
are scaled up, so that distributions are far from flat and errors show.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "d_ff": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_cache": True,
}


def families() -> list[str]:
    """Model types that are decoders of text."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_TEXT_DECODERS)


def build(family: str, **extra: Any) -> PreTrainedModel:
    """A tiny model of `family` in eval mode; raises whatever transformers does where that fails."""
    kind = CONFIG_MAPPING[family]
    config = kind(**settings_of(kind, SIZES, EXTRA.get(family, {}) | extra))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def settings_of(kind: Any, sizes: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What a config of `kind` knows of `sizes`, and `more`."""
    inner = kind().get_text_config()
    fields = {*vars(inner), *kind.attribute_map, *getattr(kind, "__dataclass_fields__", ())}
    settings = {name: size for name, size in sizes.items() if name in fields} | more
    return {name: value for name, value in settings.items() if value is not OMIT}


OMIT: Any = object()
"""Leaves a field of `SIZES` as the family has it."""

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_LATENT = {"num_key_value_heads": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    **_HYBRID,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""A state as small as the rest; the default one is 2 MB a row and layer."""
EXTRA: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": {**_LATENT, "num_hidden_layers": 4, "layer_group_size": 2},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cwm": {"bos_token_id": OMIT, "eos_token_id": OMIT},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"head_dim": OMIT},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.2},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 6.0},
    "granitemoehybrid": {**_MAMBA, **_HYBRID, "logits_scaling": 6.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_HYBRID, **_LATENT},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": {**_LATENT, "dim_model_base": 8},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "full_attention"],
    },
    "olmo_hybrid": _HYBRID,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"v_head_dim": OMIT, "num_heads": 4},
    "youtu": _LATENT,
    "zamba2": {
        **_MAMBA,
        "layer_types": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Cohere's and HyperCLOVA's scales and Gemma's soft-caps are those of their defaults."""

NOT_BUILT = frozenset(
    {
        # bytes in patches, two tokenizers, hashing of positions
        "blt", "cpmant", "reformer",
        # not built by their own config classes in transformers 5.23
        "cohere_compass_text", "dbrx", "dots3_note", "zamba",
    }
)  # fmt: skip
NOT_TEXT_DECODERS = frozenset(
    {
        # encoders, and decoders of encoder-decoder models
        "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot",
        "blenderbot-small", "camembert", "data2vec-text", "electra", "ernie", "marian", "mbart",
        "megatron-bert", "mvp", "pegasus", "plbart", "prophetnet", "rembert", "roberta",
        "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xlm", "xlm-roberta",
        "xlm-roberta-xl", "xlnet", "xmod",
        # wrappers around images, sound or a second model
        "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified",
        "gemma4_unified_assistant", "git", "got_ocr2", "llama4", "mllama",
        "moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal",
        "qwen3_5", "qwen3_5_moe", "qwen4_exp",
    }
) | NOT_BUILT  # fmt: skip
"""What `AutoModelForCausalLM` also takes, and no chat model is."""
