"""Impossible combinations cannot be built."""

from __future__ import annotations

import pytest

from sdpo.losses.advantages import RlsdCredit
from sdpo.losses.policy_gradient import PolicyGradientSpec
from sdpo.losses.specs import DistillSpec, ObjectiveSpec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"granularity": "word"}, "granularity"),
        ({"trust": 1.5}, "trust"),
        ({"importance": "logit", "top_k": None, "divergence": "reverse_kl"}, "top_k"),
        ({"importance": "logit", "divergence": "jsd"}, "Eq. 13"),
        ({"importance": "logit", "divergence": "reverse_kl", "granularity": "token"}, "Eq. 13"),
        ({"beta": 2.0}, "beta"),
    ],
)
def test_distill_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillSpec(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "distill or a pg"),
        ({"pg": PolicyGradientSpec(), "temperature": 0.0}, "temperature"),
        ({"distill": DistillSpec(), "credit": RlsdCredit()}, "give pg a spec"),
        ({"pg": PolicyGradientSpec(), "credit_trust": 0.5}, "credit_trust"),
        (
            {"pg": PolicyGradientSpec(normalization="sequence"), "joint_count": True},
            "joint_count",
        ),
    ],
)
def test_objective_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSpec(**arguments)


def test_what_an_objective_needs():
    plain = ObjectiveSpec(pg=PolicyGradientSpec())
    assert not plain.needs_teacher
    assert not plain.needs_initial
    assert ObjectiveSpec(distill=DistillSpec()).needs_teacher
    assert ObjectiveSpec(pg=PolicyGradientSpec(), credit=RlsdCredit()).needs_teacher
