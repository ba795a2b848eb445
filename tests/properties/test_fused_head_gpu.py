"""The fused head on CUDA against the same call in float64 on the CPU, where other tests hold it to
`losses/reference.py`."""

from __future__ import annotations

import pytest
import torch
from plain_specs import distill, pg

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses import distillation_loss
from sdpo.losses.head import elementwise
from sdpo.losses.head.logits import token_statistics
from sdpo.losses.objective import Denominators, objective_loss
from sdpo.losses.specs import KlSpec, ObjectiveSpec
from sdpo.losses.token_batch import TokenBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 300, 64, 32, 5003
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random inputs, rounded to `dtype` and then held in float64, so that both sides see the same
    numbers."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (0.5 * torch.randn(*shape, generator=rng)).to(dtype).double()

    return {
        "student_hidden": normal(TOKENS, WIDTH),
        "student_head": normal(VOCABULARY, WIDTH),
        "teacher_hidden": normal(TOKENS, TEACHER_WIDTH),
        "teacher_head": normal(VOCABULARY, TEACHER_WIDTH),
        "reference_hidden": normal(TOKENS, WIDTH),
        "reference_head": normal(VOCABULARY, WIDTH),
        "targets": torch.randint(VOCABULARY, (TOKENS,), generator=rng),
    }


def on(device: str, dtype: torch.dtype, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    moved = {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in x.items()
    }
    for name in ("student_hidden", "student_head"):
        moved[name] = moved[name].detach().requires_grad_()
    return moved


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd", "forward_ce"])
@pytest.mark.parametrize(
    ("support", "top_k", "tail"),
    [
        ("student", None, True),
        ("student", 20, True),
        ("student", 20, False),
        ("teacher", 20, True),
        ("union", 20, True),
        ("union", 20, False),
    ],
)
@pytest.mark.parametrize("trust", [None, 0.3])
def test_cuda_equals_the_cpu(dtype, divergence, support, top_k, tail, trust):
    x = tensors(dtype)
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        y = on(device, kind, x)
        reference = [y.pop("reference_hidden"), y.pop("reference_head")]
        if trust is not None:
            y |= {"reference_hidden": reference[0], "reference_head": reference[1], "trust": trust}
        result = distillation_loss(
            **y,
            divergence=divergence,
            support=support,
            top_k=top_k,
            tail=tail,
            temperature=0.9,
            chunk_tokens=128,
        )
        result.loss.backward()
        found.append((result, y["student_hidden"].grad, y["student_head"].grad))
    (ours, *gradients), (exact, *expected) = found
    assert ours.divergence.device.type == "cuda"
    bound = TOLERANCE[dtype]
    for name in ("divergence", "student_logprob", "teacher_logprob", "student_entropy"):
        assert relative_error(getattr(ours, name), getattr(exact, name)) < bound
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == dtype
        assert relative_error(gradient, other) < bound


@pytest.mark.parametrize(
    ("divergence", "support", "top_k", "tail"),
    [
        ("jsd", "student", None, True),
        ("jsd", "student", 20, True),
        ("reverse_kl", "student", None, True),
        ("forward_kl", "student", 20, False),
        ("forward_kl", "teacher", 20, True),
        ("jsd", "union", 20, True),
        ("forward_kl", "union", 20, False),
    ],
)
def test_compiled_kernels_equal_the_cpu(divergence, support, top_k, tail, monkeypatch):
    monkeypatch.setattr(elementwise, "_COMPILE_ELEMENTS", 0)
    torch._dynamo.reset()
    test_cuda_equals_the_cpu(torch.float32, divergence, support, top_k, tail, None)


@pytest.mark.parametrize("compile_from", [0, 1 << 62])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_objective_on_cuda_equals_the_cpu(dtype, compile_from, monkeypatch):
    monkeypatch.setattr(elementwise, "_COMPILE_ELEMENTS", compile_from)
    x = tensors(dtype)
    taught = 150
    column = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    spec = ObjectiveSpec(
        distill=distill(sequence_estimator=0.1),
        pg=pg(kind="gspo"),
        kl=KlSpec(coefficient=0.1),
    )
    is_taught = (torch.arange(TOKENS) < taught).double()
    batch = {
        "sampler_logprobs": -column.abs(),
        "old_logprobs": -column.abs() - 0.1,
        "advantages": column,
        "distill_weights": is_taught,
        "pg_weights": 1.0 - 0.5 * is_taught,
    }
    whole = {"sequence_ids": torch.arange(TOKENS) // 50}
    whole["sequence_lengths"] = torch.full_like(whole["sequence_ids"], 50)
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        y = on(device, kind, x)
        columns = {name: v.to(device, math_dtype(kind)) for name, v in batch.items()}
        columns |= {name: v.to(device) for name, v in whole.items()}
        result = objective_loss(
            y["student_hidden"],
            y["student_head"],
            y["teacher_hidden"][:taught],
            y["teacher_head"],
            TokenBatch(targets=y["targets"], num_taught=taught, **columns),
            spec,
            Denominators(300.0, 300.0),
            reference_hidden=y["reference_hidden"],
            reference_head=y["reference_head"],
            top_n=4,
        )
        result.loss.backward()
        found.append((result.loss, y["student_hidden"].grad, y["student_head"].grad))
    for ours, exact in zip(*found, strict=True):
        assert relative_error(ours, exact) < 2 * TOLERANCE[dtype]


def test_logits_of_low_precision_are_not_rounded():
    """CUDA's float32 accumulator is used: the statistics equal those of the float64 product of the
    bfloat16 inputs."""
    x = tensors(torch.bfloat16)
    y = on("cuda", torch.bfloat16, x)
    logprob, entropy = token_statistics(
        y["student_hidden"] * 4, y["student_head"], y["targets"], temperature=1.0
    )
    exact, exact_entropy = token_statistics(
        x["student_hidden"] * 4, x["student_head"], x["targets"], temperature=1.0
    )
    assert relative_error(logprob, exact) < 1e-5
    assert relative_error(entropy, exact_entropy) < 1e-5


def test_memory_stays_below_a_few_chunks_of_logits():
    torch._dynamo.reset()
    tokens, vocabulary = 4096, 32768
    hidden = torch.randn(tokens, 64, device="cuda", requires_grad=True)
    head = torch.randn(vocabulary, 64, device="cuda", requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = distillation_loss(
        hidden, head, hidden.detach(), head.detach(), targets, top_k=None, chunk_tokens=256
    ).loss
    loss.backward()
    added = torch.cuda.max_memory_allocated() - before
    chunk = 256 * vocabulary * 4
    assert added < 6 * chunk
    assert 6 * chunk < tokens * vocabulary * 4 / 2
