"""Random models in the shapes of real ones, and the number format they are measured in: speed does
not depend on what weights say."""

from __future__ import annotations

SHAPES = {
    "smollm2-135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "smollm2-1.7b": {
        "vocab_size": 49_152,
        "hidden_size": 2_048,
        "intermediate_size": 8_192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen3-1.7b-like": {
        "vocab_size": 151_936,
        "hidden_size": 2_048,
        "intermediate_size": 6_144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def random_llama(
    shape: str,
    device: str,
    dtype_name: str,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
):
    """A random Llama of the shape, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype_name))
    return model.to(device).eval()


def default_dtype(device: str) -> str:
    """bfloat16 where the device multiplies it natively."""
    import torch

    from sdpo.models.device import default_dtype as choose

    return str(choose(torch.device(device))).removeprefix("torch.")
