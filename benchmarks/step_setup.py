"""What the two sides of `step.py` are given: tasks of a wanted length, a model folder, a spec."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from shapes import SHAPES, random_llama

WORDS = (
    *("list", "value", "first", "second", "number", "string", "returns", "given", "every", "sum"),
    *("element", "order", "index", "while", "loop", "empty", "input", "output", "larger", "even"),
    *("odd", "count", "word", "letter", "between", "pairs", "sorted", "reverse", "without", "not"),
)


MODELS = f"a folder, smollm2-135m-instruct, or random: {', '.join(SHAPES)}"


def make_tasks(
    tokenizer,
    num_tasks: int,
    group: int,
    prompt_tokens: int,
    feedback_tokens: tuple[int, int],
) -> list[dict[str, Any]]:
    """Tasks whose rendered prompts have about `prompt_tokens` tokens (within a tenth of it, never
    fewer than the chat template itself), with one feedback text per rollout, lengths spread evenly
    between `feedback_tokens`."""
    draw = random.Random(0)
    shortest, longest = feedback_tokens
    tasks = []
    for number in range(num_tasks):
        spread = 0.9 + 0.2 * number / max(1, num_tasks - 1)

        def rendered(text: str) -> int:
            return len(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                )["input_ids"]
            )

        start = f"Write task{number} in Python:"
        prompt = _text(draw, rendered, start, round(prompt_tokens * spread))
        feedback = []
        for index in range(group):
            wanted = shortest + (longest - shortest) * index // max(1, group - 1)
            start = f"Test {draw.randrange(9)} failed:"
            feedback.append(_text(draw, lambda text: len(tokenizer.encode(text)), start, wanted))
        tasks.append({"id": f"task-{number}", "prompt": prompt, "feedback": feedback})
    return tasks


def _text(draw: random.Random, count_tokens, start: str, wanted: int) -> str:
    """`start` and as many drawn words as bring it to about `wanted` tokens."""
    words = [start, *draw.choices(WORDS, k=wanted)]
    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        if count_tokens(" ".join(words[:middle])) < wanted:
            low = middle + 1
        else:
            high = middle
    return " ".join(words[:low])


def model_folder(name: str, scratch: Path, device: str) -> Path:
    """The folder of the model that `name` stands for: a folder, the demo model, or a random one of
    a shape, which is written to `scratch`. Not a hub id: both sides must read the same files."""
    if name in SHAPES:
        from sdpo.testing.models import byte_tokenizer

        tokenizer = byte_tokenizer()
        ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        random_llama(name, device, "bfloat16", *ids).save_pretrained(scratch / name)
        tokenizer.save_pretrained(scratch / name)
        return scratch / name
    if Path(name).is_dir():
        return Path(name)
    from sdpo.models.gguf import DEMO, demo_folder

    if name != DEMO:
        raise SystemExit(f"--model {name}: give {MODELS}")
    return demo_folder()


def make_spec(args, folder: Path, scratch: Path, *, prompt_tokens: int) -> dict[str, Any]:
    """Everything both sides need to take the same steps."""
    from transformers import AutoTokenizer

    return {
        "model": str(folder),
        "run": str(scratch / "run"),
        "steps": args.warmup + args.steps,
        "tasks": make_tasks(
            AutoTokenizer.from_pretrained(folder),
            args.tasks,
            args.group,
            prompt_tokens,
            (60, 150),
        ),
        "group": args.group,
        "new_tokens": args.new_tokens,
        "device": args.device,
        "dtype": args.dtype,
        "top_k": args.top_k,
        "lr": 1e-5,
        "weight_decay": 0.01,
        "teacher_rate": 0.05,
        "micro_batch_tokens": args.micro_batch_tokens,
        "trl_batch": args.trl_batch,
        "trl_checkpointing": args.trl_checkpointing,
    }
