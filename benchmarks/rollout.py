"""Sampling speed: our local engine, transformers' `generate` and vLLM on the same prompts, model
and lengths.

    python benchmarks/rollout.py                         short prompts, ours against generate
    python benchmarks/rollout.py --prompt-tokens 660     long prompts
    python benchmarks/rollout.py --scaling               prompt length 64..2048, group 4..32
    python benchmarks/rollout.py --vllm-python VENV/bin/python --contenders ours generate vllm

Weights are random in the shape of SmolLM2-135M: speed does not depend on their values, and nothing
is downloaded. Every measurement is a process of its own (its peak memory is its own) and contenders
take turns, so that a busy machine slows all of them; on a busy machine `--threads 1` and the column
"CPU s" (processor seconds) say more than the time. Runs on CUDA when there is one (bfloat16), else
on the CPU (float32 unless the CPU multiplies bfloat16).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapes import SHAPES, default_dtype, random_llama


def make_prompts(shape: str, num_prompts: int, prompt_tokens: int) -> list[list[int]]:
    """Random token ids; lengths spread by a quarter around `prompt_tokens`."""
    draw = random.Random(0)
    vocab_size = SHAPES[shape]["vocab_size"]
    lengths = [
        round(prompt_tokens * (0.75 + 0.5 * index / max(1, num_prompts - 1)))
        for index in range(num_prompts)
    ]
    return [[draw.randrange(1, vocab_size) for _ in range(length)] for length in lengths]


def run_ours(args, model):
    """A function that samples once with the local engine."""
    from sdpo.engines.base import GenerationRequest, Sampling
    from sdpo.engines.local import LocalEngine

    engine = LocalEngine(model, max_sequences=args.max_sequences or args.prompts * args.group)
    requests = [
        GenerationRequest(
            prompt_ids=tuple(ids), seeds=tuple(range(i * args.group, (i + 1) * args.group))
        )
        for i, ids in enumerate(make_prompts(args.shape, args.prompts, args.prompt_tokens))
    ]
    sampling = Sampling(max_new_tokens=args.new_tokens, stop_ids=(), ignore_eos=True)
    return lambda: engine.generate(requests, sampling)


def run_generate(args, model):
    """A function that samples once with transformers: left-padded, each prompt repeated `group`
    times, as TRL does.
    """
    import torch

    prompts = make_prompts(args.shape, args.prompts, args.prompt_tokens)
    rows = [ids for ids in prompts for _ in range(args.group)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device
    )

    def sample():
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=args.new_tokens,
                max_new_tokens=args.new_tokens,
            )

    return sample


def run_vllm(args):
    """A function that samples once with vLLM from the folder `args.model_dir`, log-probs of sampled
    tokens included.
    """
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=args.model_dir,
        skip_tokenizer_init=True,
        dtype=args.dtype,
        max_model_len=2 * args.prompt_tokens + args.new_tokens,
        seed=0,
    )
    params = SamplingParams(
        n=args.group,
        temperature=1.0,
        max_tokens=args.new_tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )
    prompts = [
        {"prompt_token_ids": ids}
        for ids in make_prompts(args.shape, args.prompts, args.prompt_tokens)
    ]
    return lambda: llm.generate(prompts, params, use_tqdm=False)


def measure(args) -> None:
    """The child process: one contender, one line of JSON. The second call counts; the first one
    checks, compiles or warms up what is kept."""
    is_cuda = args.device == "cuda"
    if args.contender == "vllm":
        sample = run_vllm(args)
    else:
        import torch

        if args.threads:
            torch.set_num_threads(args.threads)
        model = random_llama(args.shape, args.device, args.dtype)
        sample = {"ours": run_ours, "generate": run_generate}[args.contender](args, model)
    timings, processor_s = [], []
    for _ in range(2):
        start, start_processor = time.perf_counter(), time.process_time()
        sample()
        if is_cuda and args.contender != "vllm":
            torch.cuda.synchronize()
        timings.append(time.perf_counter() - start)
        processor_s.append(time.process_time() - start_processor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if is_cuda and args.contender != "vllm":
        peak = torch.cuda.max_memory_allocated()
    values = {"first_s": timings[0], "time_s": timings[-1], "processor_s": processor_s[-1]}
    print(json.dumps({**values, "peak_bytes": peak}))


def spawn(args, contender: str, **changes) -> dict[str, float]:
    """Runs `measure` in a fresh process."""
    options = {**vars(args), "contender": contender, **changes}
    python = args.vllm_python if contender == "vllm" else sys.executable
    command = [python, __file__, "--child"]
    names = ("contender", "shape", "device", "dtype", "prompts", "group", "prompt_tokens")
    for name in (*names, "new_tokens", "threads", "max_sequences", "model_dir"):
        if options[name] not in (None, ""):
            command += [f"--{name.replace('_', '-')}", str(options[name])]
    # vLLM on a CPU otherwise reserves half of the memory for its cache.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args, contenders: list[str], **changes) -> dict[str, dict[str, float]]:
    """Median of `repeats` per contender, contenders taking turns."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name in contenders:
            results[name].append(spawn(args, name, **changes))
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in results.items()
    }


def print_comparison(args, contenders: list[str], **changes) -> None:
    options = {**vars(args), **changes}
    tokens = options["prompts"] * options["group"] * options["new_tokens"]
    results = compare(args, contenders, **changes)
    print(
        f"\n{options['prompts']} prompts of ~{options['prompt_tokens']} tokens x "
        f"{options['group']} completions of {options['new_tokens']}, {args.shape}, {args.dtype}, "
        f"{args.device}, median of {args.repeats}"
    )
    columns = ("time s", "first s", "CPU s", "tokens/s", "peak GB", "ours is", "in CPU s")
    print(f"{'':10}" + "".join(f"{column:>10}" for column in columns))
    ours = results.get("ours", next(iter(results.values())))
    for name, run in results.items():
        ratio, processor_ratio = (run[key] / ours[key] for key in ("time_s", "processor_s"))
        print(
            f"{name:10}{run['time_s']:10.2f}{run['first_s']:10.2f}{run['processor_s']:10.2f}"
            f"{tokens / run['time_s']:10.0f}{run['peak_bytes'] / 1e9:10.2f}"
            f"{ratio:9.2f}x{processor_ratio:9.2f}x",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contenders", nargs="+", default=["ours", "generate"])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=56)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--max-sequences", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--vllm-python", default=sys.executable)
    parser.add_argument("--model-dir", default="", help=argparse.SUPPRESS)
    parser.add_argument("--contender", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.child:
        measure(args)
        return
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or default_dtype(args.device)
    with tempfile.TemporaryDirectory() as folder:
        if "vllm" in args.contenders:
            random_llama(args.shape, "cpu", args.dtype).save_pretrained(folder)
            args.model_dir = str(Path(folder))
        if not args.scaling:
            print_comparison(args, args.contenders)
            return
        for prompt_tokens in (64, 256, 660, 2048):
            print_comparison(args, args.contenders, prompt_tokens=prompt_tokens)
        for group in (4, 16, 32):
            print_comparison(args, args.contenders, group=group, prompt_tokens=256)


if __name__ == "__main__":
    main()
