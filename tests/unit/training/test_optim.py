"""The optimizer against torch's own, in float32 and with master weights."""

from __future__ import annotations

import pytest
import torch

from sdpo.config.schema import OptimConfig
from sdpo.errors import NonFiniteLossError
from sdpo.parallel import Parallel
from sdpo.training.optim import Optimizer


def module(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4).to(dtype)


def backward(model, scale=1.0):
    torch.manual_seed(1)
    inputs = torch.randn(5, 8, dtype=model.weight.dtype)
    (model(inputs).square().mean() * scale).backward()


def learn(optimizer, model):
    """One update."""
    with optimizer.accumulating():
        backward(model)
    optimizer.update(Parallel(), where="test")


def test_matches_torch_adamw_with_clipping():
    ours, theirs = module(), module()
    optimizer = Optimizer(OptimConfig(lr=1e-2, grad_clip=0.05), ours)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(5):
        with optimizer.accumulating():
            backward(ours)
        norm = optimizer.update(Parallel(), where="test")
        backward(theirs)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-5)
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)


def test_bfloat16_weights_move_by_less_than_their_resolution():
    model = module(torch.bfloat16)
    optimizer = Optimizer(OptimConfig(lr=1e-5, weight_decay=0.0), model)
    start = model.weight.detach().float().clone()
    for _ in range(300):
        with optimizer.accumulating():
            backward(model)
        optimizer.update(Parallel(), where="test")
    moved = (model.weight.float() - start).abs()
    assert moved.max() > 1.5e-3, "300 steps of 1e-5 add up in the master weights"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_state_trains_the_same_weights(dtype):
    """On a CPU the copies are elsewhere in the same memory; what a GPU adds is the way there."""
    near, far = module(dtype), module(dtype)
    first = Optimizer(OptimConfig(lr=1e-2), near)
    second = Optimizer(OptimConfig(lr=1e-2, offload=True), far)
    assert all(master is not far.get_parameter(name) for name, master in second.masters.items())
    for _ in range(3):
        for optimizer, model in ((first, near), (second, far)):
            with optimizer.accumulating():
                backward(model)
                backward(model, 0.5)
            assert model is near or model.weight.grad is None, "the sum is with the master"
            optimizer.finish_sums(Parallel())
            optimizer.update(Parallel(), where="test")
        assert torch.equal(near.weight, far.weight)
    resumed = module(dtype)
    resumed.load_state_dict(far.state_dict())
    third = Optimizer(OptimConfig(lr=1e-2, offload=True), resumed)
    third.load_state(second.state())
    for optimizer, model in ((first, near), (third, resumed)):
        learn(optimizer, model)
    assert torch.equal(near.weight, resumed.weight)


def test_a_zero_gradient_changes_nothing_although_there_is_momentum_and_decay():
    """An all-flat step moved the weights by 6.7e-4 at a rate of 1e-3."""
    model = module()
    optimizer = Optimizer(OptimConfig(lr=1e-2, weight_decay=0.1), model)
    with optimizer.accumulating():
        backward(model)
    optimizer.update(Parallel(), where="test")
    before = model.weight.detach().clone()
    with optimizer.accumulating():
        backward(model, scale=0.0)
    assert optimizer.update(Parallel(), where="test") == 0.0
    assert torch.equal(model.weight, before)
    assert optimizer.num_updates == 1


def test_warm_up_counts_steps_as_the_papers_scheduler_does():
    """With four updates a step, ten steps of warm-up were over after two and a half."""
    model = module()
    optimizer = Optimizer(OptimConfig(lr=1.0, warmup_steps=10), model)
    rates = []
    for _ in range(3):
        for _ in range(4):
            rates.append(optimizer.lr)
            with optimizer.accumulating():
                backward(model)
            optimizer.update(Parallel(), where="test")
        optimizer.num_steps += 1
    assert rates == pytest.approx([0.1] * 4 + [0.2] * 4 + [0.3] * 4)


def test_narrow_gradients_are_summed_in_float32_and_freed_on_the_way():
    model = module(torch.bfloat16)
    optimizer = Optimizer(OptimConfig(), model)
    expected = torch.zeros(4, 8)
    for scale in (1.0, 1e-3):
        backward(model, scale)
        assert model.weight.grad is not None, "outside the block autograd keeps its own"
        expected += model.weight.grad.float()
        model.zero_grad()
        with optimizer.accumulating():
            backward(model, scale)
            assert model.weight.grad is None
    torch.testing.assert_close(optimizer._masters["weight"].grad, expected, rtol=0, atol=0)


def test_what_outlives_a_pass_is_there_before_it():
    """Moments and sums that came to lie between activations would keep memory from being reused."""
    model = module(torch.bfloat16)
    optimizer = Optimizer(OptimConfig(), model)

    def kept():
        moments = [tensor for state in optimizer._adamw.state.values() for tensor in state.values()]
        return [id(tensor) for tensor in moments]

    assert not kept(), "a search that never trains needs none"
    with optimizer.accumulating():
        sums = [master.grad for master in optimizer._masters.values()]
        moments = kept()
        assert not any(gradient.any() for gradient in sums)
        backward(model)
    for gradient, master in zip(sums, optimizer._masters.values(), strict=True):
        assert master.grad is gradient
    optimizer.update(Parallel(), where="test")
    assert kept() == moments


@pytest.mark.parametrize(
    ("decay", "last"), [(0, [1.0, 1.0, 1.0]), (1, [1.0, 1 / 2, 1 / 3]), (2, [1.0, 2 / 3, 1 / 2])]
)
def test_warmup_is_linear_then_the_rate_is_constant_or_falls(decay, last):
    model = module()
    optimizer = Optimizer(OptimConfig(lr=1.0, warmup_steps=3, decay_steps=decay), model)
    rates = []
    for _ in range(6):
        rates.append(optimizer.lr)
        with optimizer.accumulating():
            backward(model)
        optimizer.update(Parallel(), where="test")
        optimizer.num_steps += 1
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, *last])


def test_non_finite_gradient_changes_nothing_and_names_the_place():
    model = module()
    before = model.weight.detach().clone()
    optimizer = Optimizer(OptimConfig(), model)
    with optimizer.accumulating():
        backward(model, scale=float("nan"))
    with pytest.raises(NonFiniteLossError, match="step 3"):
        optimizer.update(Parallel(), where="step 3, tasks a, b")
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_resumed_optimizer_continues_exactly():
    straight, first = module(), module()
    one, two = Optimizer(OptimConfig(lr=1e-2), straight), Optimizer(OptimConfig(lr=1e-2), first)
    for optimizer, model in ((one, straight), (two, first)):
        learn(optimizer, model)
    resumed = module()
    resumed.load_state_dict(first.state_dict())
    three = Optimizer(OptimConfig(lr=1e-2), resumed)
    three.load_state(two.state())
    for optimizer, model in ((one, straight), (three, resumed)):
        learn(optimizer, model)
    assert torch.equal(straight.weight, resumed.weight)
