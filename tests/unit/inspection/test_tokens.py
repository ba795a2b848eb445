"""The distance between student and teacher that a step reports."""

from __future__ import annotations

import math

import torch

from sdpo.inspection.tokens import teacher_js
from sdpo.losses.head.outputs import TokenOutputs
from sdpo.losses.specs import DistillSpec, ObjectiveSpec

FORWARD_KL = ObjectiveSpec(
    distill=DistillSpec(
        divergence="forward_kl",
        support="student",
        top_k=None,
        tail=False,
        granularity="logit",
        importance="token",
        ratio_cap=2.0,
    )
)


def outputs(student: torch.Tensor, teacher: torch.Tensor) -> TokenOutputs:
    """What the pass says of tokens with these log-probabilities [T]."""
    unknown = torch.full_like(student, math.nan)
    return TokenOutputs(
        divergence=unknown,
        student_logprob=student,
        teacher_logprob=teacher,
        student_entropy=unknown,
        teacher_entropy=unknown,
        initial_kl=unknown,
    )


def test_the_estimate_is_right_on_average() -> None:
    """Weighted by the student's probabilities it is the divergence itself."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    mean = (p + q) / 2
    exact = ((p * (p / mean).log()).sum() + (q * (q / mean).log()).sum()) / 2
    estimate = teacher_js(outputs(p.log(), q.log()), FORWARD_KL)
    torch.testing.assert_close((p * estimate).sum(), exact)


def test_a_token_the_student_hardly_says_never_exceeds_the_divergences_bound() -> None:
    student = torch.tensor([-30.0, -200.0, -1e-9])
    teacher = torch.tensor([-1e-3, -1e-3, -200.0])
    estimate = teacher_js(outputs(student, teacher), FORWARD_KL)
    assert estimate.isfinite().all()
    assert (estimate >= 0).all()
    assert (estimate <= math.log(2)).all()
