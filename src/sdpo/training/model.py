"""Stand-in loader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_policy(name: str, *, dtype: str = "auto", device: str = "auto") -> Policy:
    path = Path.home() / ".cache/sdpo/models" / name
    path = path if path.exists() else Path(name)
    d = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if d == "cuda" else torch.float32).to(d)
    return Policy(model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(path), name=name)
