"""Impossible combinations cannot be built; which samples an objective trains on and compares with
the teacher."""

from __future__ import annotations

import pytest

from sdpo.losses.objective import count_denominators
from sdpo.losses.reference import reference_counts
from sdpo.losses.specs import DistillSpec, KlSpec, ObjectiveSpec, PolicyGradientSpec, RlsdCredit
from sdpo.records import Sample

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
        ({"trust": -0.5}, "trust"),
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
    ],
)
def test_objective_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSpec(**arguments)


def sample(**fields):
    return Sample(
        **{
            "task_id": "a",
            "index": 0,
            "prompt_ids": (1,),
            "completion_ids": (2, 3),
            "loss_mask": (False, True),
            "sampler_logprobs": (0.0, -0.5),
            "teacher_prompt_ids": (1, 4),
            "advantage": 0.5,
            "component_weights": {"distill": 1.0, "pg": 1.0},
        }
        | fields
    )


SDPO = ObjectiveSpec(distill=DistillSpec(**DISTILL))
GRPO = ObjectiveSpec(pg=PolicyGradientSpec(**PG))
SRPO = ObjectiveSpec(distill=DistillSpec(**DISTILL), pg=PolicyGradientSpec(**PG))
RLSD = ObjectiveSpec(pg=PolicyGradientSpec(**PG), credit=RlsdCredit(mix=0.5, clip=0.2))
SFT = ObjectiveSpec(pg=PolicyGradientSpec(**PG | {"kind": "sft"}))
KL = ObjectiveSpec(pg=PolicyGradientSpec(**PG), kl=KlSpec(coefficient=0.1))
FLAT = {"advantage": 0.0}
REWARDED = {"component_weights": {"pg": 1.0}}


@pytest.mark.parametrize(
    ("spec", "fields", "trains", "is_taught"),
    [
        (SDPO, {}, True, True),
        (SDPO, FLAT, True, True),
        (SDPO, {"teacher_prompt_ids": None}, False, False),
        (SDPO, {"component_weights": {}}, False, False),
        (SDPO, {"loss_mask": (False, False)}, False, False),
        (GRPO, REWARDED, True, False),
        (GRPO, REWARDED | FLAT, False, False),
        (SRPO, REWARDED, True, False),
        (SRPO, {"component_weights": {"distill": 1.0}}, True, True),
        (RLSD, REWARDED, True, True),
        (RLSD, REWARDED | FLAT, False, False),
        (SFT, REWARDED | FLAT, True, False),
        (KL, {"component_weights": {}}, True, False),
    ],
)
def test_which_samples_train_and_which_the_teacher_reads(spec, fields, trains, is_taught):
    assert spec.trains(sample(**fields)) is trains
    assert spec.is_taught(sample(**fields)) is is_taught


def test_only_a_kl_component_needs_the_initial_model():
    assert KL.needs_initial
    assert not GRPO.needs_initial


@pytest.mark.parametrize(
    ("excluded", "expected"),
    [({}, 1 + 1 + 1 + 1), ({"counts_flat_groups": False}, 1 + 1 + 1)],
)
def test_flat_groups_shrank_every_other_gradient(excluded, expected):
    """An attempt of a flat group has no reward to learn from; it may still be distilled. One with
    the group's mean reward has an advantage of 0 and is no flat group."""
    spec = ObjectiveSpec(distill=DistillSpec(**DISTILL), pg=PolicyGradientSpec(**PG | excluded))
    flat = FLAT | {"is_flat": True}
    samples = [
        sample(**REWARDED),
        sample(**REWARDED | FLAT),
        sample(**REWARDED | flat),
        sample(**flat),
    ]
    assert count_denominators(samples, spec).routed == expected
    assert reference_counts(samples, spec)["routed"] == expected
    only_flat = [sample(**REWARDED | flat)]
    assert count_denominators(only_flat, spec).routed == expected - 3
