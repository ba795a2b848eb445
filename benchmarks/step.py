"""A whole training step, ours against TRL's `SDPOTrainer`: same model, prompts, feedback, lengths.

    python benchmarks/step.py                                          ours alone
    python benchmarks/step.py --trl-python /tmp/trlenv/bin/python      ours against TRL
    python benchmarks/step.py --prompts short long --steps 5 --trl-python ...
    python benchmarks/step.py --device cuda --model smollm2-1.7b ...   a random model of that shape
    python benchmarks/step.py --model tiny --steps 1 --new-tokens 8    a test of this script

8 tasks x 8 rollouts of exactly 96 tokens (no end-of-turn token), every rollout fails and gets a
feedback of its own of 60 to 150 tokens, so all 64 are distilled: JSD over the student's top 20 and
a tail, EMA teacher, AdamW. A step is everything between two batches of tasks: tokenisation,
sampling, judging, contexts, teacher, update, teacher's average and, on our side, the run's records.

Each side is a process of its own (so is its peak memory) and the two take turns step by step, so
that a busy machine slows both (there the CPU seconds say more than the time); `--order sides` runs
one after the other where memory is short. On CUDA the memory is the device's, and every part waits
for its kernels.
bfloat16 where the device multiplies it (ours: weights in bfloat16 with float32 masters; TRL: its
autocast), else float32. TRL runs without gradient checkpointing, its faster setting, unless
`--trl-checkpointing`. Its interpreter needs: pip install torch==2.13.0, then trl==1.16.0 datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from shapes import default_dtype
from step_process import Side
from step_setup import MODELS, make_spec, model_folder

PROMPTS = {"short": 56, "long": 660}
"""Tokens of a task's prompt, chat template included."""
PARTS = (
    ("sample_s", "sampling s"),
    ("teacher_s", "teacher s"),
    ("rest_s", "rest of update s"),
    ("update_s", "teacher + rest s"),
    ("step_s", "whole step s"),
    ("cpu_s", "its CPU seconds"),
    ("peak_bytes", "peak memory GB"),
)


def measure(args, folder: Path, scratch: Path, setting: str) -> dict[str, list[dict[str, float]]]:
    """Steps of each side after the warm-up."""
    spec = make_spec(args, folder, scratch, prompt_tokens=PROMPTS[setting])
    pythons = {"ours": sys.executable}
    if args.trl_python:
        pythons["trl"] = args.trl_python
    rounds = args.warmup + args.steps

    def start(name: str) -> Side:
        script = f"step_{name}.py"
        return Side(name, pythons[name], script, spec, scratch / setting, args.threads)

    def advance(side: Side, number: int) -> None:
        row = side.step()
        row["update_s"] = row["teacher_s"] + row["rest_s"]
        check(args, side.name, row)
        kind = "warm-up" if number < args.warmup else f"step {number - args.warmup + 1}"
        print(f"{setting} {side.name}: {kind} took {row['step_s']:.2f} s", file=sys.stderr)

    if args.order == "sides" or len(pythons) == 1:
        sides = []
        for name in pythons:
            with start(name) as side:
                for number in range(rounds):
                    advance(side, number)
            sides.append(side)
    else:
        with start("ours") as ours, start("trl") as trl:
            sides = [ours, trl]
            for number in range(rounds):
                for side in sides:
                    advance(side, number)
    return {side.name: side.steps[args.warmup :] for side in sides}


def check(args, name: str, row: dict[str, float]) -> None:
    """Both sides must have sampled and distilled everything, or times would not compare."""
    rollouts = args.tasks * args.group
    found = (row["num_tokens"], row["num_distilled"])
    if found != (rollouts * args.new_tokens, rollouts):
        raise SystemExit(
            f"{name} sampled {found[0]} tokens and distilled {found[1]} rollouts; "
            f"expected {rollouts * args.new_tokens} and {rollouts}"
        )


def print_table(args, setting: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Medians, spread (least to most) and how many times ours TRL takes."""
    print(
        f"\n{setting}: {args.tasks} tasks x {args.group} rollouts of {args.new_tokens} tokens, "
        f"prompts ~{PROMPTS[setting]} tokens, {Path(args.model).name}, {args.dtype}, "
        f"{args.device}, {num_threads(args)} threads, median of {args.steps} (least to most)"
    )
    print(f"{'':18}" + "".join(f"{name:>26}" for name in results) + f"{'TRL / ours':>14}")
    for key, label in PARTS:
        scale = 1e-9 if key == "peak_bytes" else 1.0
        cells, medians = [], []
        for rows in results.values():
            values = [row[key] * scale for row in rows]
            medians.append(max(values) if key == "peak_bytes" else statistics.median(values))
            cells.append(f"{medians[-1]:10.2f} ({min(values):.2f} to {max(values):.2f})")
        ratio = f"{medians[1] / medians[0]:13.2f}x" if len(medians) == 2 else ""
        print(f"{label:18}" + "".join(f"{cell:>26}" for cell in cells) + ratio)
    if "trl" not in results:
        print("TRL was not measured: give --trl-python PYTHON (see the head of this file)")


def num_threads(args) -> int:
    """Threads that torch computes with on both sides."""
    return args.threads or int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def versions(python: str, names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions as `python` sees them."""
    code = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [python, "-c", code, *names], capture_output=True, text=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [
            line
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_1m": round(os.getloadavg()[0]),
    }


def parse(description: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--warmup", type=int, default=1, help="steps before that")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--model", default="smollm2-135m-instruct", help=MODELS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--order", choices=("steps", "sides"), default="steps")
    parser.add_argument("--trl-python", default="", help="interpreter that has trl 1.16")
    parser.add_argument(
        "--micro-batch-tokens", type=int, default=4096, help="ours: packed tokens per forward pass"
    )
    parser.add_argument("--trl-batch", type=int, default=16)
    parser.add_argument("--trl-checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/step.json"))
    args = parser.parse_args()
    if args.trl_python and args.tasks * args.group % args.trl_batch:
        parser.error("--trl-batch must divide tasks x group")
    args.dtype = args.dtype or default_dtype(args.device)
    return args


def main() -> None:
    args = parse((__doc__ or "").split("\n")[0])
    report = {
        "machine": machine(),
        "versions": {"ours": versions(sys.executable, ("torch", "transformers"))},
        "settings": {key: str(value) for key, value in vars(args).items()},
        "results": {},
    }
    if args.trl_python:
        names = ("trl", "torch", "transformers", "accelerate")
        report["versions"]["trl"] = versions(args.trl_python, names)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(args.model, Path(scratch), args.device)
        for setting in args.prompts:
            results = measure(args, folder, Path(scratch), setting)
            report["results"][setting] = results
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print_table(args, setting, results)
    print(f"\nevery step: {args.out}")


if __name__ == "__main__":
    main()
