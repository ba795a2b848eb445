"""The fused head against its peers: time and peak memory of one loss with both gradients.

    python benchmarks/head.py                                  SmolLM2's head on the CPU (float32)
    python benchmarks/head.py --device cuda --dtype bfloat16 --tokens 4096 --width 2048 \
        --vocab 151936
    python benchmarks/head.py --chunks 64 128 256              ours at other chunk sizes

Contenders: dense autograd (what a trainer writes first), ours with whole vocabulary and with the
top-K + tail of student, teacher and both, and Liger's fused JSD heads where `pip install
liger-kernel` was done. Hidden states, head and teacher are random; speed does not depend on their
values. Every measurement is a process of its own, contenders take turns, and the median of all
rounds is shown, so that a busy machine slows all of them; CPU time, of all threads, is what to read
there. Memory is what the call adds to its inputs, gradients included.
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


def contenders(device: str, chunks: list[int]) -> dict[str, dict]:
    """Name -> arguments of `measure`."""
    found = {
        "dense autograd, whole vocabulary": {"kind": "dense", "top_k": None},
        "dense autograd, top-100 + tail": {"kind": "dense", "top_k": 100},
        "ours, whole vocabulary": {"kind": "ours", "top_k": None},
        "ours, top-100 + tail": {"kind": "ours", "top_k": 100},
        **{
            f"ours, top-100 + tail of {name}": {"kind": "ours", "top_k": 100, "support": name}
            for name in ("teacher", "union")
        },
        "ours, top-20 + tail, reverse KL": {
            "kind": "ours",
            "top_k": 20,
            "divergence": "reverse_kl",
        },
        "Liger chunked JSD, whole vocabulary": {"kind": "liger_chunked"},
    }
    if device == "cuda":
        found["Liger Triton JSD, whole vocabulary"] = {"kind": "liger_triton"}
    for chunk in chunks:
        found[f"ours, whole vocabulary, chunk {chunk}"] = {
            "kind": "ours",
            "top_k": None,
            "chunk_tokens": chunk,
        }
    return found


def dense_jsd(student_hidden, student_head, teacher_hidden, teacher_head, top_k):
    """Jensen-Shannon divergence, beta 0.5, mean over tokens, as autograd code."""
    import math

    import torch

    log_p = (student_hidden @ student_head.T).float().log_softmax(-1)
    with torch.no_grad():
        log_q = (teacher_hidden @ teacher_head.T).float().log_softmax(-1)
    if top_k is not None:
        ids = log_p.detach().topk(top_k, dim=-1).indices
        log_p, log_q = (
            torch.cat([x, torch.log((1 - x.exp().sum(-1, keepdim=True)).clamp_min(1e-9))], -1)
            for x in (log_p.gather(1, ids), log_q.gather(1, ids))
        )
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean()


def loss_function(kind: str, **options):
    """(student hidden, head, teacher hidden, head, targets) -> scalar."""
    top_k = options.pop("top_k", None)
    if kind == "dense":
        return lambda h, w, g, v, y: dense_jsd(h, w, g, v, top_k)
    if kind == "ours":
        from sdpo.losses import distillation_loss

        return lambda h, w, g, v, y: distillation_loss(h, w, g, v, y, top_k=top_k, **options).loss
    if kind == "liger_chunked":
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

        jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
        return lambda h, w, g, v, y: jsd(h, w, g, v, y)
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    return lambda h, w, g, v, y: LigerFusedLinearJSD()(h, w, g, v, None)


def measure(arguments: argparse.Namespace, spec: dict) -> dict:
    """Median seconds of loss and backward, and the peak bytes they add."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    shape = {"device": device, "dtype": dtype}
    head = (
        torch.randn(arguments.vocab, arguments.width, **shape) / arguments.width**0.5
    ).requires_grad_()
    hidden = torch.randn(arguments.tokens, arguments.width, **shape).requires_grad_()
    teacher = (hidden.detach() + 0.3 * torch.randn_like(hidden)).contiguous()
    teacher_head = head.detach().clone()
    targets = torch.randint(arguments.vocab, (arguments.tokens,), device=device)
    loss = loss_function(**spec)

    def once() -> tuple[float, float]:
        hidden.grad = head.grad = None
        start, cpu = time.perf_counter(), time.process_time()
        value = loss(hidden, head, teacher, teacher_head, targets)
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start, time.process_time() - cpu
        assert hidden.grad is not None
        return elapsed

    start_bytes = reset_peak(device)
    once()
    peak = peak_bytes(device) - start_bytes
    seconds, cpu_seconds = zip(*(once() for _ in range(arguments.repeats)), strict=True)
    value = float(loss(hidden, head, teacher, teacher_head, targets).detach())
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "bytes": peak,
        "loss": value,
    }


def run_all(arguments: argparse.Namespace) -> None:
    table = contenders(arguments.device, arguments.chunks)
    found: dict[str, list[dict]] = {name: [] for name in table}
    for _ in range(arguments.rounds):
        for name, spec in table.items():
            if arguments.only not in name:
                continue
            command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:]]
            command += ["--one", json.dumps(spec)]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
            if done.returncode:
                reason = done.stderr.strip().splitlines()[-1:] or ["killed"]
                print(f"{name}: skipped ({reason[0][:120]})")
                continue
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"T {arguments.tokens}, D {arguments.width}, V {arguments.vocab}, {arguments.dtype} on "
        f"{arguments.device}, {arguments.threads} threads; medians of {arguments.rounds} rounds"
    )
    print(f"{'contender':40} {'ms':>9} {'CPU ms':>9} {'peak MiB':>9} {'loss':>12}")
    for name, rounds in found.items():
        if rounds:
            wall, cpu = (
                1e3 * statistics.median(r[key] for r in rounds)
                for key in ("seconds", "cpu_seconds")
            )
            mebibytes = statistics.median(r["bytes"] for r in rounds) / 2**20
            print(f"{name:40} {wall:9.1f} {cpu:9.1f} {mebibytes:9.0f} {rounds[0]['loss']:12.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, nargs="*", default=[])
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is None:
        run_all(arguments)
        return
    sys.path.insert(0, str(SRC))
    print(json.dumps(measure(arguments, json.loads(arguments.one))))


if __name__ == "__main__":
    main()
