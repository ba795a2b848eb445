"""Prefix-tree packing against padded batches: forward and backward of the model without its head.

    python benchmarks/packing.py                               SmolLM2-135M's shape on this machine
    python benchmarks/packing.py --tasks 1 --layers 10         about the same ratios, much sooner
    python benchmarks/packing.py --clock cpu                   on a machine that others use too
    python benchmarks/packing.py --device cuda --dtype bfloat16 --budget 32768
    python benchmarks/packing.py --groups 4 8 16 32 --prompts 660      cost over the group's size
    python benchmarks/packing.py --contexts                    teacher contexts instead of prompts

Padded is what a trainer does: right-padded rows with an attention mask through the model's own
forward pass, as many rows to a micro-batch as the token budget takes. Packed is ours, same budget,
same items. Both end in hidden states of the completions' tokens; the LM head costs both the same
and is `benchmarks/head.py`'s business. Weights are random: speed does not depend on them. Every
measurement is a process of its own and the two take turns, so that a busy machine slows both; the
median of the rounds is shown. Memory is the peak that a first step adds to the model, gradients
included.

`--contexts` lays out what the teacher reads: per task one prompt, after it one of two
demonstrations of `--completion` tokens, after that the attempt; and no gradients, as for a teacher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from memory import peak_bytes, reset_peak

SRC = Path(__file__).resolve().parent.parent / "src"
KINDS = ("padded", "packed")


def build_model(arguments):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=arguments.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    dtype = getattr(torch, arguments.dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(arguments.device).eval()


def build_items(arguments, prompt: int, group: int):
    """`tasks` x `group` items; completions are random, so they share nothing but the prompt."""
    import torch

    from sdpo.models.packing import PackItem

    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(49152, (count,), generator=generator).tolist())

    items = []
    for _ in range(arguments.tasks):
        task = tokens(prompt)
        shown = [tokens(arguments.completion) for _ in "ab"]
        for number in range(group):
            items.append(
                PackItem(
                    prompt_ids=task + (shown[number % 2] if arguments.contexts else ()),
                    completion_ids=tokens(arguments.completion),
                    loss_mask=(True,) * arguments.completion,
                )
            )
    return items


def padded_batches(items, budget: int):
    """Items in rows of the longest one's width, as many as the budget takes."""
    width = max(len(item.fed_ids) for item in items)
    rows = max(1, budget // width)
    return [items[start : start + rows] for start in range(0, len(items), rows)]


def padded_rows(model, items):
    import torch

    width = max(len(item.fed_ids) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    mask = torch.zeros(len(items), width, dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item.fed_ids)] = torch.tensor(item.fed_ids)
        mask[row, : len(item.fed_ids)] = 1
    hidden = model.base_model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    return torch.cat(
        [
            hidden[row, len(item.prompt_ids) - 1 : len(item.fed_ids)]
            for row, item in enumerate(items)
        ]
    )


def measure(arguments, kind: str, prompt: int, group: int) -> dict:
    """Seconds and bytes of one step over all items, and the rows' sum as a check."""
    import torch

    from sdpo.models.packing import hidden_rows, pack

    torch.set_num_threads(arguments.threads)
    model = build_model(arguments)
    items = build_items(arguments, prompt, group)
    total = 0.0
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter

    def step() -> float:
        nonlocal total
        total = 0.0
        start = clock()
        if kind == "padded":
            batches, rows_of = padded_batches(items, arguments.budget), padded_rows
        else:
            batches, rows_of = pack(items, budget_tokens=arguments.budget), hidden_rows
        for batch in batches:
            rows = rows_of(model, batch)
            loss = rows.square().mean() * len(rows)
            if not arguments.contexts:
                loss.backward()
            total += float(loss.detach())
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    torch.set_grad_enabled(not arguments.contexts)
    base = reset_peak(arguments.device)
    step()
    peak = peak_bytes(arguments.device) - base
    seconds = statistics.median(step() for _ in range(arguments.repeats))
    return {"seconds": seconds, "bytes": peak, "check": total}


def run_one(kind: str, prompt: int, group: int) -> dict | None:
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:]]
    command += ["--one", json.dumps([kind, prompt, group])]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["killed"]
        print(f"{kind}, prompt {prompt}, group {group}: skipped ({reason[0][:120]})")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def token_counts(arguments, prompt: int, group: int) -> tuple[int, int]:
    from sdpo.models.packing import pack

    items = build_items(arguments, prompt, group)
    packed = sum(len(b.token_ids) for b in pack(items, budget_tokens=arguments.budget))
    return sum(len(item.fed_ids) for item in items), packed


def run_all(arguments) -> None:
    print(
        f"SmolLM2-135M's shape, {arguments.layers} layers, {arguments.dtype} on {arguments.device}"
        f", {arguments.threads} threads, {arguments.clock} seconds; {arguments.tasks} tasks, "
        f"completions of {arguments.completion} tokens, micro-batches of {arguments.budget} tokens"
    )
    print(f"{'prompt':>7} {'group':>6} {'tokens padded':>14} {'packed':>8} {'ratio':>6}", end="")
    print(f" {'s padded':>9} {'packed':>7} {'ratio':>6} {'MiB padded':>11} {'packed':>7}")
    for prompt in arguments.prompts:
        for group in arguments.groups:
            found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
            for _ in range(arguments.rounds):
                for kind in KINDS:
                    result = run_one(kind, prompt, group)
                    if result is not None:
                        found[kind].append(result)
            if not all(found.values()):
                continue
            checks = [found[kind][0]["check"] for kind in KINDS]
            tolerance = 1e-3 if arguments.dtype == "float32" else 3e-2
            assert abs(checks[0] - checks[1]) <= tolerance * abs(checks[0]), checks
            seconds, mebibytes = (
                [statistics.median(r[key] for r in found[kind]) / unit for kind in KINDS]
                for key, unit in (("seconds", 1), ("bytes", 2**20))
            )
            plain, packed = token_counts(arguments, prompt, group)
            print(f"{prompt:7} {group:6} {plain:14} {packed:8} {plain / packed:6.2f}", end="")
            print(f" {seconds[0]:9.2f} {seconds[1]:7.2f} {seconds[0] / seconds[1]:6.2f}", end="")
            print(f" {mebibytes[0]:11.0f} {mebibytes[1]:7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, nargs="+", default=[56, 660, 2048])
    parser.add_argument("--groups", type=int, nargs="+", default=[8])
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--completion", type=int, default=96)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--budget", type=int, default=4096)
    parser.add_argument("--contexts", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(SRC))
    if arguments.one is None:
        run_all(arguments)
    else:
        print(json.dumps(measure(arguments, *json.loads(arguments.one))))


if __name__ == "__main__":
    main()
