"""`distillation_loss` against `losses/reference.py` in float64: values, both gradients and numbers
per token."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_specs import distill

from sdpo.losses import distillation_loss
from sdpo.losses.divergence import support_divergence
from sdpo.losses.head import chunks
from sdpo.losses.head.elementwise import compile_tile
from sdpo.losses.head.logits import token_statistics, token_support
from sdpo.losses.reference import distance, log_masses, reference_objective
from sdpo.losses.specs import Divergence, ObjectiveSpec
from sdpo.losses.token_batch import TokenBatch

KINDS = ("reverse_kl", "forward_kl", "jsd", "forward_ce")
SUPPORTS = [
    {"top_k": None, "tail": True},
    *(
        {"support": chooser, "top_k": top_k, "tail": tail}
        for chooser in ("student", "teacher", "union")
        for top_k, tail in ((4, True), (4, False), (1, True), (9, True), (13, True), (13, False))
    ),
]
"""9 of 13: the union holds most tokens, and some rows leave no tail."""
SHORT = [o for o in SUPPORTS if o["top_k"] in (None, 4)]
TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 7, 5, 3, 13
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
SIDES = ("log_p", "log_q")


def problem(seed: int = 0, *, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> dict:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * scale).to(dtype)

    return {
        "student_hidden": normal(TOKENS, WIDTH).requires_grad_(),
        "student_head": normal(VOCABULARY, WIDTH).requires_grad_(),
        "teacher_hidden": normal(TOKENS, TEACHER_WIDTH),
        "teacher_head": normal(VOCABULARY, TEACHER_WIDTH),
        "reference_hidden": normal(TOKENS, WIDTH),
        "reference_head": normal(VOCABULARY, WIDTH),
        "targets": torch.randint(VOCABULARY, (TOKENS,), generator=rng),
        "weights": torch.rand(TOKENS, generator=rng, dtype=torch.float64),
    }


def fused(x: dict, **options: object):
    options = dict(options)
    if options.get("trust") is not None:
        options |= {k: x[k] for k in ("reference_hidden", "reference_head")}
    return distillation_loss(
        x["student_hidden"],
        x["student_head"],
        x["teacher_hidden"],
        x["teacher_head"],
        x["targets"],
        weights=x["weights"],
        **options,
    )


def reference(x: dict, *, temperature: float = 1.0, trust: float | None = None, **options: object):
    """Loss and numbers per token by the definitions."""
    nothing = torch.zeros(TOKENS)
    batch = TokenBatch(
        num_taught=TOKENS,
        targets=x["targets"],
        distill_weights=x["weights"],
        advantages=nothing,
        pg_weights=nothing,
        sampler_logprobs=nothing,
        sequence_ids=nothing.long(),
        sequence_lengths=nothing.long() + TOKENS,
    )
    spec = ObjectiveSpec(
        distill=distill(**options, trust=trust, ratio_cap=None), temperature=temperature
    )
    parts, tokens = reference_objective(
        x["student_hidden"] @ x["student_head"].T,
        x["teacher_hidden"] @ x["teacher_head"].T,
        batch,
        spec,
        {"routed": 1.0, "kl": 1.0},
        trust_logits=x["reference_hidden"] @ x["reference_head"].T,
    )
    log_p, log_q = (torch.stack([getattr(t, n) for t in tokens]).detach() for n in SIDES)
    return parts["distill"], {
        "divergence": torch.stack([t.divergence for t in tokens]).detach(),
        "student_logprob": torch.stack([t.log_p_y for t in tokens]).detach(),
        "teacher_logprob": torch.tensor([t.log_q_y for t in tokens], dtype=torch.float64),
        "student_entropy": -(log_p.exp() * log_p).sum(-1),
        "teacher_entropy": -(log_q.exp() * log_q).sum(-1),
    }


def gradients(loss: torch.Tensor, x: dict) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, (x["student_hidden"], x["student_head"]))


def check(x: dict, *, chunk_tokens: int | None = 3, **options: object) -> None:
    result = fused(x, chunk_tokens=chunk_tokens, **options)
    loss, out = reference(x, **options)
    torch.testing.assert_close(result.loss, loss, **TIGHT)
    for name, expected in out.items():
        torch.testing.assert_close(getattr(result, name), expected, **TIGHT)
        assert not getattr(result, name).requires_grad
    for ours, theirs in zip(gradients(result.loss, x), gradients(loss, x), strict=True):
        torch.testing.assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_values_gradients_and_outputs_equal_the_reference(kind, support):
    betas = (0.1, 0.5, 0.9) if kind == "jsd" else (0.5,)
    for temperature, trust, beta in itertools.product(
        (1.0, 0.6, 1.7), (None, 0.0, 0.3, 1.0), betas
    ):
        check(
            problem(int(10 * temperature)),
            divergence=kind,
            temperature=temperature,
            trust=trust,
            beta=beta,
            **support,
        )


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 100, None])
def test_chunk_size_changes_nothing(chunk_tokens):
    check(problem(), chunk_tokens=chunk_tokens)


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    support=st.sampled_from(SUPPORTS),
    beta=st.floats(0.02, 0.98),
    temperature=st.floats(0.3, 3.0),
    trust=st.none() | st.floats(0.0, 1.0),
    scale=st.floats(0.1, 2.5),
)
def test_random_problems_equal_the_reference(seed, kind, support, beta, temperature, trust, scale):
    check(
        problem(seed, scale=scale),
        divergence=kind,
        beta=beta,
        temperature=temperature,
        trust=trust,
        **support,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SHORT, ids=str)
def test_gradients_equal_finite_differences(kind, support):
    x, step = problem(3), 1e-6
    options = {"divergence": kind, "temperature": 1.3, "beta": 0.3, **support}
    analytic = gradients(fused(x, **options).loss, x)
    for name, gradient in zip(("student_hidden", "student_head"), analytic, strict=True):
        numeric = torch.zeros_like(gradient)
        for index in itertools.product(*map(range, gradient.shape)):
            values = []
            for sign in (1.0, -1.0):
                moved = x[name].detach().clone()
                moved[index] += sign * step
                values.append(float(fused({**x, name: moved}, **options).loss.detach()))
            numeric[index] = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(numeric, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_teacher_equal_to_student_gives_exactly_zero(kind, support, dtype):
    x = problem(dtype=dtype)
    x |= {
        "teacher_hidden": x["student_hidden"].detach().clone(),
        "teacher_head": x["student_head"].detach().clone(),
    }
    result = fused(x, divergence=kind, **support)
    assert float(result.loss.detach()) == 0.0
    assert not result.divergence.any()
    for gradient in gradients(result.loss, x):
        # forward KL's gradient p - q cancels exactly, JSD's and reverse KL's factor is 0.
        assert float(gradient.float().abs().max()) <= 1e-6


def on_logits(student: torch.Tensor, teacher: torch.Tensor, **options: object):
    """Loss of these logits [T, V], and its gradient with respect to the student's."""
    logits, eye = student.clone().requires_grad_(), torch.eye(student.shape[1], dtype=student.dtype)
    targets = torch.zeros(len(student), dtype=torch.long)
    weights = torch.ones(len(student), dtype=torch.float64)
    loss = distillation_loss(logits, eye, teacher, eye, targets, weights=weights, **options).loss
    return loss.detach(), *torch.autograd.grad(loss, logits)


def top_sets(log_p: torch.Tensor, top_k: int) -> list[set[int]]:
    """Every set of `top_k` tokens none of which is less likely than one outside."""
    tokens = range(len(log_p))
    return [
        set(ids)
        for ids in itertools.combinations(tokens, top_k)
        if min(log_p[list(ids)]) >= max(log_p[[t for t in tokens if t not in ids]])
    ]


@given(
    logits=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=5, max_size=6),
    kind=st.sampled_from(KINDS),
    chooser=st.sampled_from(("student", "teacher", "union")),
    top_k=st.integers(1, 4),
    tail=st.booleans(),
)
def test_ties_are_broken_in_favour_of_some_top_k(logits, kind, chooser, top_k, tail):
    """Value and gradient are those of one of the supports that equally likely tokens allow."""
    student, teacher = torch.tensor(logits, dtype=torch.float64).T
    options = {"divergence": kind, "support": chooser, "top_k": top_k, "tail": tail}
    loss, gradient = on_logits(student[None], teacher[None], **options)
    d = distill(**options).distance
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    by_student, by_teacher = top_sets(log_p, top_k), top_sets(log_q, top_k)
    union = [a | b for a in by_student for b in by_teacher]
    allowed = {"student": by_student, "teacher": by_teacher, "union": union}[chooser]
    errors = []
    for ids in {tuple(sorted(ids)) for ids in allowed}:
        own = student.clone().requires_grad_()
        masses = (log_masses(side.log_softmax(-1), ids, tail) for side in (own, teacher))
        expected = distance(d, *masses)
        (slope,) = torch.autograd.grad(expected, own)
        error = max(abs(float(loss - expected.detach())), float((gradient[0] - slope).abs().max()))
        errors.append(error)
    assert min(errors) < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_the_union_holds_both_top_ks_and_counts_shared_tokens_once(seed):
    """Against the support written out: the masses of a renormalised union that held a shared token
    twice would differ."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, 40, generator=rng, dtype=torch.float64)
    for top_k in (1, 5, 19):
        loss, _ = on_logits(
            student, teacher, divergence="jsd", support="union", top_k=top_k, tail=False
        )
        expected = 0.0
        for z, v in zip(student, teacher, strict=True):
            ids = sorted({*z.topk(top_k).indices.tolist(), *v.topk(top_k).indices.tolist()})
            m = (z[ids].softmax(-1) + v[ids].softmax(-1)) / 2
            for side in (z, v):
                p = side[ids].softmax(-1)
                expected += 0.5 * float((p * (p / m).log()).sum())
        assert float(loss) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("options", "pull"),
    [
        ({"divergence": "forward_kl", "top_k": None}, 0.9),
        ({"divergence": "forward_ce", "top_k": None}, 0.9),
        ({"divergence": "forward_kl", "support": "teacher", "top_k": 3}, 0.9),
        ({"divergence": "forward_kl", "support": "union", "top_k": 3}, 0.9),
        ({"divergence": "forward_kl", "support": "union", "top_k": 3, "tail": False}, 0.9),
        # Its share of the student's tail, 1e-6 of 0.01, times the teacher's tail.
        ({"divergence": "forward_kl", "support": "student", "top_k": 3}, 9e-5),
        ({"divergence": "forward_kl", "support": "student", "top_k": 3, "tail": False}, 0.0),
        ({"divergence": "reverse_kl", "top_k": None}, 1.4e-5),
        ({"divergence": "jsd", "top_k": None}, 7e-6),
        ({"divergence": "jsd", "support": "teacher", "top_k": 3}, 7e-6),
    ],
    ids=str,
)
def test_which_pairs_raise_a_token_the_student_does_not_propose(options, pull):
    """The teacher gives 0.9 to a token that the student gives 1e-6: the gradient on its logit."""
    others = torch.tensor([0.6, 0.3, 0.09, *[0.01 / 6] * 6], dtype=torch.float64)
    student = torch.cat([others * (1 - 1e-6), torch.tensor([1e-6], dtype=torch.float64)])
    teacher = torch.cat([others * 0.1, torch.tensor([0.9], dtype=torch.float64)])
    _, gradient = on_logits(student.log()[None], teacher.log()[None], **options)
    assert float(-gradient[0, -1]) == pytest.approx(pull, rel=0.15, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_rows_of_the_head_without_a_token_have_no_mass_and_no_gradient(support, kind, dtype):
    """As if the heads ended before them, which with K between the two is the whole vocabulary."""
    x = problem(5, dtype=dtype)
    tokens = 10
    x["targets"] %= tokens
    for trust in (None, 0.4):
        options = {"divergence": kind, "temperature": 0.8, "trust": trust, **support}
        padded = fused(x, vocabulary=tokens, chunk_tokens=3, **options)
        hidden, head = gradients(padded.loss, x)
        short = {k: v[:tokens] if k.endswith("_head") else v for k, v in x.items()}
        short["student_head"] = short["student_head"].detach().requires_grad_()
        exact = fused(short, chunk_tokens=3, **options)
        tolerance = TIGHT if dtype == torch.float64 else {"rtol": 0.02, "atol": 1e-3}
        for name in ("loss", "divergence", "student_entropy", "teacher_logprob"):
            torch.testing.assert_close(getattr(padded, name), getattr(exact, name), **tolerance)
        expected = gradients(exact.loss, short)
        torch.testing.assert_close(hidden, expected[0], **tolerance)
        torch.testing.assert_close(head[:tokens], expected[1], **tolerance)
        assert not head[tokens:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_support_of_the_whole_vocabulary_is_the_whole_vocabulary(kind):
    x = problem()
    for tail, support in itertools.product((True, False), ("student", "teacher", "union")):
        whole = fused(x, divergence=kind, top_k=None)
        by_k = fused(x, divergence=kind, top_k=VOCABULARY, tail=tail, support=support)
        assert torch.equal(by_k.loss, whole.loss)
        for a, b in zip(gradients(by_k.loss, x), gradients(whole.loss, x), strict=True):
            assert torch.equal(a, b)


def test_reverse_kl_gradient_is_a_policy_gradient_per_logit():
    """Prop. 2.1: sum over tokens of the vocabulary of p(v) (log p(v) - log q(v)) grad log p(v),
    with the advantage constant."""
    x = problem()
    result = fused(x, divergence="reverse_kl", top_k=None, temperature=1.0)
    log_p = (x["student_hidden"] @ x["student_head"].T).log_softmax(-1)
    log_q = (x["teacher_hidden"] @ x["teacher_head"].T).log_softmax(-1)
    advantage = (log_q - log_p).detach()
    surrogate = -(x["weights"][:, None] * log_p.exp().detach() * advantage * log_p).sum()
    for ours, theirs in zip(gradients(result.loss, x), gradients(surrogate, x), strict=True):
        torch.testing.assert_close(ours, theirs, **TIGHT)


def test_no_gradient_reaches_teacher_or_reference():
    x = problem()
    frozen = ("teacher_hidden", "teacher_head", "reference_hidden", "reference_head")
    for name in frozen:
        x[name].requires_grad_()
    fused(x, trust=0.5).loss.backward()
    assert all(x[name].grad is None for name in frozen)
    assert x["student_hidden"].grad is not None


def test_a_frozen_head_gets_no_gradient_and_the_hidden_gradient_is_the_same():
    x = problem()
    both = gradients(fused(x).loss, x)[0]
    x["student_head"] = x["student_head"].detach()
    fused(x).loss.backward()
    assert torch.equal(x["student_hidden"].grad, both)
    assert x["student_head"].grad is None


def test_a_token_with_weight_zero_has_exactly_zero_gradient():
    x = problem(dtype=torch.float32)
    x["weights"][[1, 4]] = 0.0
    for top_k in (None, 4):
        hidden, _ = gradients(fused(x, top_k=top_k).loss, x)
        assert not hidden[[1, 4]].any()
        assert hidden[[0, 2, 3, 5, 6]].any(-1).all()


def test_no_tokens_give_zero_loss_and_zero_gradient():
    x = problem()
    for name in ("student_hidden", "teacher_hidden"):
        x[name] = x[name][:0].detach().requires_grad_()
    x |= {"targets": x["targets"][:0], "weights": None}
    result = fused(x)
    hidden, head = gradients(result.loss, x)
    assert float(result.loss.detach()) == 0.0
    assert hidden.shape == (0, WIDTH)
    assert not head.any()


def test_the_default_weight_is_the_mean_over_tokens():
    x = problem() | {"weights": None}
    result = fused(x)
    torch.testing.assert_close(result.loss, result.divergence.mean())


def test_the_arriving_gradient_scales_and_a_second_backward_is_refused():
    x = problem()
    once = gradients(fused(x).loss, x)
    scaled = gradients(3.0 * fused(x).loss, x)
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(3.0 * a, b)
    loss = fused(x).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="called twice"):
        loss.backward()


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        result = fused(problem())
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, fused(problem()).loss.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("top_k", "tail"), [(None, True), (4, True), (4, False)])
def test_bfloat16_is_close_to_float32(kind, top_k, tail):
    wide, narrow = problem(dtype=torch.float32), problem(dtype=torch.bfloat16)
    # The support may differ where logits tie in bfloat16: compare on the same rounded inputs.
    for name in wide:
        if wide[name].dtype == torch.float32:
            wide[name] = narrow[name].detach().float().requires_grad_(wide[name].requires_grad)
    options = {"divergence": kind, "top_k": top_k, "tail": tail}
    a, b = fused(wide, **options), fused(narrow, **options)
    torch.testing.assert_close(b.loss, a.loss, rtol=0.03, atol=0.01)
    assert b.loss.dtype == torch.float32
    for ours, theirs in zip(gradients(b.loss, narrow), gradients(a.loss, wide), strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert float(error) < 0.03


@pytest.mark.parametrize("chunk_tokens", [2, None])
@pytest.mark.parametrize("support", SHORT, ids=str)
def test_bfloat16_is_exact_on_the_logits_that_a_cpu_rounds(support, chunk_tokens):
    """Products are rounded to bfloat16 and everything after them is not: the same loss as float64
    has on those logits, which a head of ones on the diagonal hands through."""
    narrow = problem(dtype=torch.bfloat16)
    vocabulary = len(narrow["student_head"])
    wide = {k: v for k, v in narrow.items() if k in ("targets", "weights")}
    for side in ("student", "teacher"):
        logits = narrow[f"{side}_hidden"].detach() @ narrow[f"{side}_head"].detach().t()
        wide[f"{side}_hidden"] = logits.double().requires_grad_(side == "student")
        wide[f"{side}_head"] = torch.eye(vocabulary, dtype=torch.float64)
    options = {**support, "temperature": 0.7}
    found = fused(narrow, chunk_tokens=chunk_tokens, **options)
    expected = fused(wide, **options)
    for name in ("loss", "divergence", "student_logprob", "student_entropy", "teacher_entropy"):
        ours, theirs = getattr(found, name).double(), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (ours, _) = gradients(found.loss, narrow)
    (logit_gradient,) = torch.autograd.grad(expected.loss, wide["student_hidden"])
    theirs = logit_gradient @ narrow["student_head"].detach().double()
    assert float((ours.double() - theirs).norm() / theirs.norm()) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0])
def test_extreme_logits_stay_finite(kind, dtype, scale):
    for support in SUPPORTS:
        x = problem(dtype=dtype, scale=scale)
        result = fused(x, divergence=kind, **support)
        assert bool(torch.isfinite(result.loss))
        for gradient in gradients(result.loss, x):
            assert bool(torch.isfinite(gradient).all())


@given(
    logits=st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=9),
    kind=st.sampled_from(("reverse_kl", "forward_kl", "jsd")),
    beta=st.floats(0.05, 0.95),
)
def test_divergence_is_non_negative_and_zero_only_for_equal_masses(logits, kind, beta):
    z = torch.tensor(logits, dtype=torch.float32).T[:, None].log_softmax(-1)
    log_p, log_q = z[0], z[1]
    spec = Divergence(kind=kind, beta=beta if kind == "jsd" else None)
    value, _ = support_divergence(spec, log_p, log_p.exp(), log_q.clone(), log_q.exp())
    itself, _ = support_divergence(spec, log_p, log_p.exp(), log_p.clone(), log_p.exp())
    assert float(value) >= 0.0
    assert float(itself) == 0.0
    if float((log_p.exp() - log_q.exp()).abs().max()) > 1e-2:
        assert float(value) > 0.0
    exact = distance(spec, log_p[0].double(), log_q[0].double())[None]
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)


def test_small_divergences_keep_their_digits_in_float32():
    """Teacher and student 1e-4 apart, with the float32 error of their normalisers: a difference of
    entropies, or of log-probs, would be noise of 2e-6."""
    rng = torch.Generator().manual_seed(0)
    base = 4 * torch.randn(3, 1000, generator=rng, dtype=torch.float64)
    moved = base + 50 + 1e-4 * torch.randn(3, 1000, generator=rng, dtype=torch.float64)
    wide = torch.stack([base, moved]).log_softmax(-1)
    narrow = torch.stack([base, moved]).float()
    narrow = narrow - narrow.logsumexp(-1, keepdim=True)
    for kind in ("reverse_kl", "forward_kl", "jsd"):
        spec = Divergence(kind=kind, beta=0.5 if kind == "jsd" else None)
        exact, _ = support_divergence(spec, wide[0], wide[0].exp(), wide[1].clone(), wide[1].exp())
        value, _ = support_divergence(
            spec, narrow[0], narrow[0].exp(), narrow[1].clone(), narrow[1].exp()
        )
        assert float(exact.max()) < 1e-8
        digits = {"rtol": 0.02, "atol": 0.0} if kind == "jsd" else {"rtol": 0.0, "atol": 2e-7}
        torch.testing.assert_close(value.double(), exact, **digits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chooser", ["student", "teacher", "union"])
@pytest.mark.parametrize("depth", [60.0, 72.0, 120.0, 300.0])
def test_a_tail_the_student_practically_excludes_keeps_its_gradient(kind, chooser, depth):
    """The teacher puts its mass where the student has e^-depth: below e^-69 a floor in the tail's
    mass took the gradient away."""
    rng = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 12, generator=rng, dtype=torch.float64)
    student[:, 4:] -= depth
    teacher[:, :4] -= depth
    options = {"divergence": kind, "support": chooser, "top_k": 4}
    loss, gradient = on_logits(student, teacher, **options)
    d = distill(**options).distance
    own = student.clone().requires_grad_()
    expected = 0.0
    for z, v in zip(own, teacher, strict=True):
        by_student, by_teacher = (set(x.topk(4).indices.tolist()) for x in (z, v))
        ids = {"student": by_student, "teacher": by_teacher, "union": by_student | by_teacher}
        sides = (log_masses(x.log_softmax(-1), sorted(ids[chooser]), True) for x in (z, v))
        expected = expected + distance(d, *sides)
    (slope,) = torch.autograd.grad(expected, own)
    torch.testing.assert_close(loss, expected.detach(), **TIGHT)
    torch.testing.assert_close(gradient, slope, **TIGHT)


@given(seed=st.integers(0, 1000), top_k=st.integers(1, 12))
def test_the_tail_conserves_mass(seed, top_k):
    """Coarsening to support plus tail never increases a divergence, and summed gradient over the
    vocabulary is zero."""
    x = problem(seed)
    for kind in ("reverse_kl", "forward_kl", "jsd"):
        coarse = fused(x, divergence=kind, top_k=top_k).divergence
        finer = fused(x, divergence=kind, top_k=top_k + 1).divergence
        whole = fused(x, divergence=kind, top_k=None).divergence
        assert bool((coarse <= finer + 1e-12).all())
        assert bool((finer <= whole + 1e-12).all())
        loss = fused(x, divergence=kind, top_k=top_k).loss
        _, head = gradients(loss, x)
        # Each row's logit gradient sums to zero, so the head's gradient summed over the vocabulary
        # vanishes.
        torch.testing.assert_close(head.sum(0), torch.zeros(WIDTH, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SHORT, ids=str)
def test_the_traced_arithmetic_equals_the_eager_one(kind, support, monkeypatch):
    """What CUDA compiles, traced on the CPU without a code generator."""
    torch._dynamo.reset()
    compile_tile.cache_clear()
    monkeypatch.setattr(
        chunks, "compiled_tile", lambda spec, needs, *_: compile_tile(spec, needs, "aot_eager")
    )
    check(problem(), divergence=kind, trust=0.3, **support)
    test_rows_of_the_head_without_a_token_have_no_mass_and_no_gradient(support, kind, torch.float64)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_token_statistics_and_support_equal_dense():
    x = problem()
    hidden, head = x["student_hidden"], x["student_head"]
    log_p = (hidden @ head.T / 0.7).log_softmax(-1).detach()
    logprob, entropy = token_statistics(hidden, head, x["targets"], temperature=0.7, chunk_tokens=2)
    torch.testing.assert_close(logprob, log_p.gather(1, x["targets"][:, None])[:, 0])
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    assert not logprob.requires_grad
    support = token_support(hidden, head, 3, temperature=0.7, chunk_tokens=2)
    torch.testing.assert_close(support.logprobs, log_p.topk(3).values)
    assert torch.equal(support.ids, log_p.topk(3).indices)
    assert token_support(hidden[:0], head, 3).ids.shape == (0, 3)
    logprob, entropy = token_statistics(hidden, head, x["targets"] % 9, vocabulary=9)
    shorter = token_statistics(hidden, head[:9], x["targets"] % 9)
    torch.testing.assert_close((logprob, entropy), shorter)
    assert int(token_support(hidden, head, 9, vocabulary=9).ids.max()) < 9
    trusted, _ = token_statistics(
        x["teacher_hidden"],
        x["teacher_head"],
        x["targets"],
        reference_hidden=x["reference_hidden"],
        reference_head=x["reference_head"],
        trust=0.3,
    )
    torch.testing.assert_close(trusted, fused(x, trust=0.3).teacher_logprob)
    empty = token_statistics(hidden[:0], head, x["targets"][:0])
    assert [len(column) for column in empty] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "none of reverse_kl"),
        ({"beta": 1.0}, "0 < beta < 1"),
        ({"top_k": 0}, "top_k"),
        ({"support": "old"}, "none of student, teacher, union"),
        ({"support": "teacher", "top_k": None}, "give top_k a number"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fused(problem(), **options)


def test_trust_without_its_reference_is_refused():
    x = problem()
    with pytest.raises(ValueError, match="go together"):
        distillation_loss(
            x["student_hidden"],
            x["student_head"],
            x["teacher_hidden"],
            x["teacher_head"],
            x["targets"],
            trust=0.5,
        )
