"""A weighting of your own, then the trained weights in plain transformers.

    python examples/own_weighting.py

`first_words` is this file's function; `config.json` of the run names it with a hash of its source.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sdpo
from sdpo.export import export_run
from sdpo.losses.weighting import TaughtTokens


def first_words(tokens: TaughtTokens, *, half_life: float = 16.0) -> torch.Tensor:
    """Weights [T] that halve every `half_life` tokens: a program is often decided by its first
    lines, and what follows them is a consequence."""
    places = torch.ones_like(tokens.teacher_logprob).cumsum(0) - 1
    return 0.5 ** (places / half_life)


def main() -> None:
    result = sdpo.train(
        "quickstart",
        "run=runs/own-weighting",
        objective={
            "weighting": {
                "type": "custom",
                "path": f"{__file__}:first_words",
                "options": {"half_life": 8.0},
            }
        },
    )
    export_run(result.run_dir, "exported")
    model = AutoModelForCausalLM.from_pretrained("exported")
    tokenizer = AutoTokenizer.from_pretrained("exported")
    chat = [{"role": "user", "content": "Write a Python function double(n)."}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=48)[0, prompt["input_ids"].shape[1] :]
    print("answer:", tokenizer.decode(answer))


if __name__ == "__main__":
    main()
