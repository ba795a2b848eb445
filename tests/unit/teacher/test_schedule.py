"""Whose weights the teacher has, and that state survives a checkpoint."""

from __future__ import annotations

import pytest
import torch

from sdpo.config.teacher import (
    EmaConfig,
    FrozenConfig,
    GatedConfig,
    LiveConfig,
    SnapshotConfig,
    TrustRegionConfig,
)
from sdpo.errors import CheckpointError
from sdpo.models.weights import applied, trainable
from sdpo.teacher.schedule import TeacherSchedule


def module(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).to(dtype)


def move(student, amount=1.0):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(amount)


def follow(schedule, student, *, mean_reward=1.0, length_p90=1.0):
    """One step after which the student's float32 weights are its own."""
    metrics = {"train/reward": mean_reward, "rollouts/length_p90": length_p90}
    return schedule.after_step(student, trainable(student), metrics)


def test_live_and_trust_region_use_the_students_own_weights():
    student = module()
    assert TeacherSchedule(LiveConfig(), student).weights is None
    trust = TeacherSchedule(TrustRegionConfig(mix=0.2), student)
    before = student.weight.detach().clone()
    move(student)
    assert trust.weights is None
    assert trust.trust == 0.2
    assert torch.equal(trust.initial["weight"], before)


def test_frozen_never_moves():
    student = module()
    before = student.weight.detach().clone()
    schedule = TeacherSchedule(FrozenConfig(), student)
    move(student)
    follow(schedule, student)
    assert torch.equal(schedule.weights["weight"], before)


def test_ema_follows_by_its_rate():
    student = module()
    before = student.weight.detach().clone()
    schedule = TeacherSchedule(EmaConfig(rate=0.1), student)
    move(student)
    follow(schedule, student)
    torch.testing.assert_close(schedule.weights["weight"], before + 0.1)


def test_ema_of_bfloat16_weights_does_not_lose_small_steps():
    student = module(torch.bfloat16)
    schedule = TeacherSchedule(EmaConfig(rate=0.001), student)
    start = schedule.weights["weight"].float().clone()
    move(student)
    for _ in range(1000):
        follow(schedule, student)
    moved = schedule.weights["weight"].float() - start
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.999**1000), atol=0.02, rtol=0)


def test_ema_averages_float32_masters_and_not_rounded_weights():
    student = module(torch.bfloat16)
    schedule = TeacherSchedule(EmaConfig(rate=1.0), student)
    masters = {name: w.float() + 1e-4 for name, w in trainable(student).items()}
    schedule.after_step(student, masters, {})
    assert torch.equal(schedule.state()["average"]["weight"], masters["weight"])


def test_ema_stays_after_a_step_that_changed_nothing():
    student = module()
    schedule = TeacherSchedule(EmaConfig(rate=0.5), student)
    before = schedule.weights["weight"].clone()
    move(student)
    schedule.after_step(student, trainable(student), {}, has_moved=False)
    assert torch.equal(schedule.weights["weight"], before)


def test_snapshot_refreshes_every_n_steps():
    student = module()
    schedule = TeacherSchedule(SnapshotConfig(every=2), student)
    move(student)
    assert not follow(schedule, student, mean_reward=0, length_p90=1)
    assert follow(schedule, student, mean_reward=0, length_p90=1)
    assert torch.equal(schedule.weights["weight"], student.weight)
    move(student)
    assert not torch.equal(schedule.weights["weight"], student.weight)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([(0.1, 10), (0.2, 10), (0.3, 10)], [False, True, True]),
        ([(0.2, 10), (0.1, 10), (0.15, 10)], [False, False, False]),
        ([(0.1, 10), (0.2, 13), (0.2, 11)], [False, False, True]),
    ],
)
def test_gate_needs_reward_up_and_length_tail_safe(windows, expected):
    student = module()
    schedule = TeacherSchedule(GatedConfig(every=1, max_tail_growth=1.2), student)
    opened = [
        follow(schedule, student, mean_reward=reward, length_p90=tail) for reward, tail in windows
    ]
    assert opened == expected


def test_frozen_by_rollback_stops_following():
    student = module()
    schedule = TeacherSchedule(EmaConfig(rate=0.5), student)
    schedule.is_frozen = True
    before = schedule.weights["weight"].clone()
    move(student)
    follow(schedule, student)
    assert torch.equal(schedule.weights["weight"], before)


@pytest.mark.parametrize(
    "config",
    [
        LiveConfig(),
        FrozenConfig(),
        EmaConfig(),
        SnapshotConfig(every=2),
        GatedConfig(every=1),
        TrustRegionConfig(),
    ],
)
def test_state_round_trips_through_a_file(config, tmp_path):
    student = module()
    first = TeacherSchedule(config, student)
    move(student)
    follow(first, student, mean_reward=0.5, length_p90=3)
    torch.save(first.state(), tmp_path / "state.pt")
    second = TeacherSchedule(config, module())
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for schedule in (first, second):
        move(student, 0.1)
        follow(schedule, student, mean_reward=0.6, length_p90=3)
        move(student, -0.1)
    if first.weights is None:
        assert second.weights is None
    else:
        for name, weight in first.weights.items():
            torch.testing.assert_close(second.weights[name], weight)


def test_state_of_another_schedule_is_refused():
    student = module()
    with pytest.raises(CheckpointError, match="frozen"):
        TeacherSchedule(EmaConfig(), student).load_state(
            TeacherSchedule(FrozenConfig(), student).state()
        )


def test_applied_lends_and_gives_back():
    student = module()
    schedule = TeacherSchedule(FrozenConfig(), student)
    move(student)
    own = student.weight.detach().clone()
    with applied(student, schedule.weights):
        assert torch.equal(student.weight, schedule.weights["weight"])
    assert torch.equal(student.weight, own)
    with pytest.raises(RuntimeError, match="inside"), applied(student, schedule.weights):
        raise RuntimeError("inside")
    assert torch.equal(student.weight, own)
    assert set(trainable(student)) == {"weight", "bias"}
