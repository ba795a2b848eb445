"""What long completions cost: memory and seconds per token of sampling and of an update, for
completions of 256 to 8,192 tokens.

Each length runs in a process of its own: `--attempts` completions are sampled, then trained on in
one update with a frozen teacher, in micro-batches of one completion. Weights are random, so nothing
depends on what they say. "told" is what `sdpo check --gpus` says of the same settings, without the
process itself (Python and its libraries), whose memory before the model is subtracted from the
measured peak. What libraries load and allocate later is in it: 30 to 40 MB beside a tiny model.

    .venv/bin/python benchmarks/long.py
    .venv/bin/python benchmarks/long.py --shape smollm2-135m --lengths 256 1024 --checkpointing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import peak_bytes, reset_peak
from shapes import SHAPES, random_llama

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--attempts", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/long.json"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options, options.one)))
        return
    rows = []
    print("| tokens | sampled s / 1,000 | trained s / 1,000 | sampling MB | update MB | told MB |")
    print("|---|---|---|---|---|---|")
    for length in options.lengths:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(length)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        cells = (row[key] for key in ("sampled_s", "trained_s"))
        sizes = (row[key] / 1e6 for key in ("sampling", "update", "told"))
        shown = [f"{c:.2f}" for c in cells] + [f"{size:,.0f}" for size in sizes]
        print(f"| {length:,} | {' | '.join(shown)} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(options: argparse.Namespace, length: int) -> dict[str, float]:
    """Peaks in bytes above the process without a model, and CPU seconds per 1,000 tokens."""
    from sdpo.config.load import load_config
    from sdpo.engines.base import GenerationRequest, Sampling
    from sdpo.engines.local import LocalEngine
    from sdpo.memory import Cards, plan_memory
    from sdpo.models.hidden import enable_checkpointing
    from sdpo.objectives import objective_spec
    from sdpo.parallel import Parallel
    from sdpo.records import Sample
    from sdpo.teacher.schedule import TeacherSchedule
    from sdpo.testing import byte_tokenizer
    from sdpo.training.optim import Optimizer
    from sdpo.training.step import Updater

    random_llama("tiny", "cpu", options.dtype)  # what the libraries load with the first model
    base = reset_peak("cpu")
    model = random_llama(options.shape, "cpu", options.dtype)
    model.config.max_position_embeddings = 2 * length
    folder = tempfile.mkdtemp()
    model.config.save_pretrained(folder)
    settings = [
        f"model.name={folder}", "model.device=cpu", f"model.dtype={options.dtype}",
        "rollout.tasks_per_step=1", f"rollout.group_size={options.attempts}",
        f"rollout.max_prompt_tokens={PROMPT}", f"rollout.max_completion_tokens={length}",
        f"optim.micro_batch_tokens={length + PROMPT}", "teacher.schedule.type=frozen",
        f"optim.gradient_checkpointing={str(options.checkpointing).lower()}",
        f"teacher.context.max_tokens={2 * PROMPT}",
    ]  # fmt: skip
    config = load_config(settings)
    plan = plan_memory(config, Cards.parse("1x80"))
    if options.checkpointing:
        enable_checkpointing(model)
    engine = LocalEngine(model)
    request = GenerationRequest(prompt_ids=(1,) * PROMPT, seeds=tuple(range(options.attempts)))
    start = time.process_time()
    [found] = engine.generate(
        [request], Sampling(max_new_tokens=length, stop_ids=(), ignore_eos=True)
    )
    sampled_s = time.process_time() - start
    sampling = peak_bytes("cpu") - base
    schedule = TeacherSchedule(config.teacher.schedule, model)
    spec = objective_spec(
        config.objective, step=0, temperature=1.0, max_completion_tokens=length,
        trust=schedule.trust,
    )  # fmt: skip
    samples = [
        Sample(
            task_id="t", index=index, prompt_ids=(1,) * PROMPT, completion_ids=each.token_ids,
            loss_mask=(True,) * length, sampler_logprobs=each.logprobs,
            teacher_prompt_ids=(2,) * (2 * PROMPT), advantage=0.0,
            component_weights={"distill": 1.0},
        )
        for index, each in enumerate(found)
    ]  # fmt: skip
    updater = Updater(
        model, byte_tokenizer(), Optimizer(config.optim, model), schedule,
        config=config.optim, objective=config.objective, parallel=Parallel(),
    )  # fmt: skip
    reset_peak("cpu")
    start = time.process_time()
    updater.step([samples], spec, where="benchmark")
    trained_s = time.process_time() - start
    thousands = options.attempts * length / 1000
    return {
        "length": length,
        "sampled_s": sampled_s / thousands,
        "trained_s": trained_s / thousands,
        "sampling": sampling,
        "update": peak_bytes("cpu") - base,
        "told": max(plan.phases["update"], plan.phases["teacher"]),
    }


if __name__ == "__main__":
    main()
