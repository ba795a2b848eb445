"""Heads that bend, scale or shift their product: the fused pass equals autograd on dense logits."""

from __future__ import annotations

import itertools

import pytest
import test_fused_head as plain
import torch
from plain_specs import distill

from sdpo.losses import distillation_loss
from sdpo.losses.head import logits as logits_module
from sdpo.losses.head.chunks import HeadInputs
from sdpo.losses.head.fused import head_pass
from sdpo.losses.head.logits import LmHead, Side, token_statistics, token_support
from sdpo.losses.terms import Terms

FORMS = {
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "soft-cap": {"softcap": 1.5},
    "all": {"bias": True, "scale": 1.7, "softcap": 2.0},
}
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def head_of(weight, form, seed):
    """A head of `form`; its bias wants a gradient where its matrix does."""
    bias = None
    if form.get("bias"):
        draw = torch.Generator().manual_seed(seed)
        bias = torch.randn(len(weight), generator=draw, dtype=torch.float64).to(weight.dtype)
        bias.requires_grad_(weight.requires_grad)
    return LmHead(weight, bias, form.get("scale", 1.0), form.get("softcap"))


def dense(hidden, head):
    """Logits by the definition."""
    products = hidden @ head.weight_VD.T
    if head.bias_V is not None:
        products = products + head.bias_V
    scaled = head.scale * products
    return scaled if head.softcap is None else head.softcap * torch.tanh(scaled / head.softcap)


def problem(form, dtype=torch.float64):
    x = plain.problem(3, dtype=dtype)
    heads = {
        side: head_of(x[f"{side}_head"], form, seed)
        for seed, side in enumerate(("student", "teacher", "reference"))
    }
    return x, heads


def leaves(x, heads):
    return [
        t
        for t in (x["student_hidden"], heads["student"].weight_VD, heads["student"].bias_V)
        if t is not None
    ]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("trust", [None, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_distillation_equals_autograd(form, trust, temperature, monkeypatch):
    monkeypatch.setitem(logits_module._TILE_ELEMENTS, "cpu", 2 * plain.VOCABULARY)
    for top_k, vocabulary in itertools.product((None, 4), (None, 10)):
        x, heads = problem(form)
        targets = x["targets"] % 10
        options = {"divergence": "jsd", "top_k": top_k, "tail": True}
        reference = {}
        if trust is not None:
            reference = {"reference_hidden": x["reference_hidden"], "trust": trust}
            reference["reference_head"] = heads["reference"]
        result = distillation_loss(
            x["student_hidden"], heads["student"], x["teacher_hidden"], heads["teacher"], targets,
            weights=x["weights"], temperature=temperature, vocabulary=vocabulary, chunk_tokens=3,
            **options, **reference,
        )  # fmt: skip
        expected = expected_distillation(x, heads, targets, trust, temperature, vocabulary, options)
        torch.testing.assert_close(result.loss, expected, **TIGHT)
        ours = torch.autograd.grad(result.loss, leaves(x, heads))
        theirs = torch.autograd.grad(expected, leaves(x, heads))
        for mine, reference_gradient in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference_gradient, **TIGHT)


def expected_distillation(x, heads, targets, trust, temperature, vocabulary, options):
    from sdpo.losses.reference import reference_objective
    from sdpo.losses.specs import ObjectiveSpec
    from sdpo.losses.token_batch import TokenBatch

    nothing = torch.zeros(plain.TOKENS)
    batch = TokenBatch(
        num_taught=plain.TOKENS, targets=targets, distill_weights=x["weights"], advantages=nothing,
        pg_weights=nothing, sampler_logprobs=nothing, sequence_ids=nothing.long(),
        sequence_lengths=nothing.long() + plain.TOKENS,
    )  # fmt: skip
    parts, _ = reference_objective(
        dense(x["student_hidden"], heads["student"]),
        dense(x["teacher_hidden"], heads["teacher"]),
        batch,
        ObjectiveSpec(
            distill=distill(**options, trust=trust, ratio_cap=None),
            temperature=temperature,
            vocabulary=vocabulary,
        ),
        {"routed": 1.0, "kl": 1.0},
        trust_logits=dense(x["reference_hidden"], heads["reference"]),
    )
    return parts["distill"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_policy_gradient_and_kl_to_the_initial_model_equal_autograd(form):
    x, heads = problem(form)
    slope, weight, temperature = torch.linspace(-1, 1, plain.TOKENS).double(), 0.7, 1.3
    inputs = HeadInputs(
        student=Side(x["student_hidden"], heads["student"]),
        targets=x["targets"],
        initial=Side(x["reference_hidden"], heads["reference"]),
        initial_weight=weight,
        temperature=temperature,
        chunk_tokens=2,
    )

    def terms(chosen, logprob_R, teacher_logprob_R):
        return Terms(slope_R=slope[chosen], pg_loss_R=slope[chosen] * logprob_R)

    result = head_pass(inputs, None, terms)
    log_p, log_r = (
        (dense(x[f"{side}_hidden"], heads[side]) / temperature).log_softmax(-1)
        for side in ("student", "reference")
    )
    chosen = log_p.gather(1, x["targets"][:, None])[:, 0]
    kl = (log_p.exp() * (log_p - log_r)).sum(-1)
    expected = (slope * chosen).sum() + weight * kl.sum()
    torch.testing.assert_close(result.loss, expected, **TIGHT)
    ours = torch.autograd.grad(result.loss, leaves(x, heads))
    for mine, theirs in zip(ours, torch.autograd.grad(expected, leaves(x, heads)), strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_statistics_and_support_are_those_of_the_bent_logits(form, dtype):
    x, heads = problem(form, dtype)
    hidden, head, targets = x["teacher_hidden"], heads["teacher"], x["targets"]
    wide = LmHead(
        head.weight_VD.double(),
        None if head.bias_V is None else head.bias_V.double(),
        head.scale,
        head.softcap,
    )
    log_p = (dense(hidden.double(), wide) / 0.8).log_softmax(-1)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0, "atol": 0.1}
    logprob, entropy = token_statistics(hidden, head, targets, temperature=0.8)
    torch.testing.assert_close(
        logprob.double(), log_p.gather(1, targets[:, None])[:, 0], **tolerance
    )
    torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(-1), **tolerance)
    support = token_support(hidden, head, 4, temperature=0.8)
    torch.testing.assert_close(support.logprobs.double(), log_p.topk(4).values, **tolerance)
