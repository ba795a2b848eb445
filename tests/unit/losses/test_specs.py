"""Impossible combinations cannot be built."""

from __future__ import annotations

import pytest

from sdpo.losses.advantages import RlsdCredit
from sdpo.losses.policy_gradient import PolicyGradientSpec
from sdpo.losses.specs import DistillSpec, ObjectiveSpec

DISTILL = {
    "divergence": "reverse_kl",
    "support": "student",
    "top_k": 20,
    "tail": True,
    "granularity": "logit",
    "importance": "token",
    "ratio_cap": 2.0,
}
PG = {"kind": "grpo", "normalization": "token"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"support": "old"}, "none of student, teacher, union"),
        ({"support": "teacher", "top_k": None}, "top_k a number"),
        ({"support": "union", "importance": "logit"}, "support must be 'student'"),
        ({"granularity": "word"}, "granularity"),
        ({"trust": 1.5}, "trust"),
        ({"importance": "logit", "top_k": None}, "top_k"),
        ({"importance": "logit", "divergence": "jsd", "beta": 0.5}, "Eq. 13"),
        ({"importance": "logit", "granularity": "token"}, "Eq. 13"),
        ({"importance": "logits"}, "none of token, logit"),
        ({"eps_low": 0.2}, "importance to 'logit'"),
        ({"divergence": "jsd", "beta": 2.0}, "beta"),
    ],
)
def test_distill_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillSpec(**DISTILL | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "distill or a pg"),
        ({"pg": PolicyGradientSpec(**PG), "temperature": 0.0}, "temperature"),
        (
            {"distill": DistillSpec(**DISTILL), "credit": RlsdCredit(mix=0.5, clip=0.2)},
            "give pg a spec",
        ),
        ({"pg": PolicyGradientSpec(**PG), "credit_trust": 0.5}, "credit_trust"),
        (
            {
                "pg": PolicyGradientSpec(**PG | {"normalization": "sequence"}),
                "joint_count": True,
            },
            "joint_count",
        ),
    ],
)
def test_objective_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSpec(**arguments)


def test_what_an_objective_needs():
    plain = ObjectiveSpec(pg=PolicyGradientSpec(**PG))
    assert not plain.needs_teacher
    assert not plain.needs_initial
    assert ObjectiveSpec(distill=DistillSpec(**DISTILL)).needs_teacher
    credit = RlsdCredit(mix=0.5, clip=0.2)
    assert ObjectiveSpec(pg=PolicyGradientSpec(**PG), credit=credit).needs_teacher
