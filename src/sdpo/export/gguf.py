"""A model as one GGUF file for llama.cpp and what is built on it.

Weights keep their type (float32 or bfloat16) and value; llama.cpp's own tools make smaller ones of
it. Only families whose layout is known here are written; everything else is an error that names
llama.cpp's converter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from sdpo.errors import ModelError
from sdpo.models.policy import Policy

_CONVERTER = "save it without --gguf and run llama.cpp's convert_hf_to_gguf.py on the folder"
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_INTERLEAVED = ("llama",)
"""Families whose queries and keys GGUF stores with neighbouring columns rotated together."""
_DIGITS = r"\p{N}{1,3}"
_QWEN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
_FILE_TYPES = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}


def check_can_write(policy: Policy) -> None:
    """Raises `ModelError` for a model or tokenizer that `write_gguf` does not know."""
    config: Any = policy.model.config
    if config.model_type not in _ARCHITECTURES:
        raise ModelError(
            f"--gguf: models of the family {config.model_type!r} are not written here (known: "
            f"{', '.join(_ARCHITECTURES)}); {_CONVERTER}"
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"--gguf: rotary positions of type {rope['rope_type']!r} are not written here; "
            f"{_CONVERTER}"
        )
    if policy.dtype not in _FILE_TYPES:
        raise ModelError(f"--gguf: weights of type {policy.dtype} are not written here")
    _splitter(policy)


def write_gguf(policy: Policy, path: Path, *, name: str) -> None:
    """Write `policy`, whose model is on the CPU, with its tokenizer and chat template; `name` goes
    into the file. Raises `ModelError` as `check_can_write` does, and `OSError`."""
    check_can_write(policy)
    architecture = _ARCHITECTURES[policy.model.config.model_type]
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_name(name)
        _add_sizes(writer, policy)
        _add_tokenizer(writer, policy)
        _add_weights(writer, policy, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: gguf.GGUFWriter, policy: Policy) -> None:
    config: Any = policy.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_file_type(_FILE_TYPES[policy.dtype])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(_num_rows(policy))


def _num_rows(policy: Policy) -> int:
    embeddings: Any = policy.model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _add_tokenizer(writer: gguf.GGUFWriter, policy: Policy) -> None:
    tokenizer: Any = policy.tokenizer
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(_num_rows(policy)):
        # Embeddings may have more rows than the tokenizer has tokens.
        tokens.append(names.get(index, f"[PAD{index}]"))
        if index not in names:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            is_special = added[index].special
            kinds.append(gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitter(policy))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    )
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_chat_template(tokenizer.chat_template)


def _splitter(policy: Policy) -> str:
    """llama.cpp's name for how the tokenizer cuts text before it merges bytes. Raises
    `ModelError`."""
    tokenizer: Any = policy.tokenizer
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    found = settings["pre_tokenizer"] or {}
    steps = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    kinds = [step.get("type") for step in steps]
    patterns = [str(step.get("pattern", "")) for step in steps if step.get("type") == "Split"]
    name = None
    if settings["model"]["type"] != "BPE" or "ByteLevel" not in kinds:
        name = None
    elif kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and _has(patterns[0], _DIGITS):
        name = "llama-bpe"
    elif kinds == ["Split", "ByteLevel"] and _has(patterns[0], _QWEN_WORDS):
        name = "qwen2"
    if name is None:
        raise ModelError(
            f"--gguf: a tokenizer of type {settings['model']['type']} that splits text by {kinds} "
            f"is not written here; {_CONVERTER}"
        )
    return name


def _has(pattern: str, part: str) -> bool:
    # The pattern stands in a mapping's repr, whose backslashes are doubled.
    return part in pattern.replace("\\\\", "\\")


def _add_weights(writer: gguf.GGUFWriter, policy: Policy, architecture: gguf.MODEL_ARCH) -> None:
    config: Any = policy.model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    is_tied = config.tie_word_embeddings
    for name, weight in policy.model.state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"--gguf: the weight {name!r} has no name in GGUF; {_CONVERTER}")
        values = weight.to(torch.float32)
        if config.model_type in _INTERLEAVED and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            values = _interleave(values, heads)
        _add(writer, known, values.numpy(), weight.dtype)


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, dtype: torch.dtype) -> None:
    """Norms and biases are float32 in every file that llama.cpp reads."""
    if dtype == torch.bfloat16 and values.ndim > 1:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def _interleave(weight_RD: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of every head reordered from halves (transformers) to neighbours (GGUF)."""
    rows, columns = weight_RD.shape
    halves = weight_RD.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns).contiguous()
