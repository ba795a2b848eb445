"""Micro-batches side by side: how they are split, in which order they come, and what stays."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from sdpo.testing import tiny_model
from sdpo.training import lanes as module
from sdpo.training.lanes import Lanes
from sdpo.training.packing import PackItem, enable_checkpointing, hidden_rows, pack


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def items(count=8, length=9):
    draw = random.Random(0)
    return [
        PackItem(
            prompt_ids=(1, 2, 3, 4 + number // 4),
            completion_ids=tuple(draw.randrange(259) for _ in range(length)),
            loss_mask=(True,) * length,
        )
        for number in range(count)
    ]


def sizes(lanes):
    return [len(micro_batch.token_ids) for micro_batch in lanes.micro_batches]


def threads_seen(lanes):
    """Threads that work was done in, and how many of their own they had."""
    seen = set()

    def work(number, micro_batch):
        time.sleep(0.02)
        seen.add((threading.current_thread().name, torch.get_num_threads()))

    list(lanes.run(work))
    return seen


def test_two_at_once_share_the_budget_and_the_threads(two_threads):
    lanes = Lanes(tiny_model("llama"), items(), budget_tokens=80)
    assert max(sizes(lanes)) <= 40
    assert threads_seen(lanes) == {("lane_0", 1), ("lane_1", 1)}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("why", ["one micro-batch", "a long item", "odd threads", "no trees"])
def test_otherwise_one_after_the_other_with_the_whole_budget(why, two_threads, monkeypatch):
    model, chosen, budget = tiny_model("llama"), items(), 80
    if why == "one micro-batch":
        budget = 1_000
    elif why == "a long item":
        chosen = items(length=60)
    elif why == "odd threads":
        torch.set_num_threads(1)
    else:
        monkeypatch.setattr(module, "shares_prefixes", lambda model: False)
    lanes = Lanes(model, chosen, budget_tokens=budget)
    plain = pack(chosen, budget_tokens=budget, share_prefixes=why != "no trees")
    assert sizes(lanes) == [len(micro_batch.token_ids) for micro_batch in plain]
    assert threads_seen(lanes) == {(threading.current_thread().name, torch.get_num_threads())}


@pytest.mark.parametrize("needs_graph", [False, True])
def test_results_come_in_order_and_are_those_of_one_after_the_other(needs_graph, two_threads):
    model = tiny_model("llama", dtype=torch.float64)
    lanes = Lanes(model, items(24), budget_tokens=80)

    def work(number, micro_batch):
        time.sleep(0.02 * (number % 2))
        return hidden_rows(model, micro_batch)

    with torch.set_grad_enabled(needs_graph):
        found = list(lanes.run(work))
        assert [micro_batch for micro_batch, _ in found] == lanes.micro_batches
        for micro_batch, rows in found:
            assert rows.requires_grad == needs_graph
            torch.testing.assert_close(rows, hidden_rows(model, micro_batch))


def test_nothing_is_left_on_the_model(two_threads):
    model = tiny_model("llama")
    enable_checkpointing(model)
    lanes = Lanes(model, items(), budget_tokens=80)
    hidden_rows(model, lanes.micro_batches[0])
    before = [dict(vars(part)) for part in model.modules()]
    implementation = model.config._attn_implementation
    for _ in lanes.run(lambda _, micro_batch: hidden_rows(model, micro_batch).sum().backward()):
        pass
    for part, attributes in zip(model.modules(), before, strict=True):
        assert vars(part).keys() == attributes.keys()
        assert part.training == attributes["training"]
    assert model.config._attn_implementation == implementation


def test_an_error_reaches_the_caller_and_stops_the_rest(two_threads):
    started = []

    def work(number, micro_batch):
        started.append(number)
        if not number:
            raise ValueError("first")
        time.sleep(0.05)

    lanes = Lanes(tiny_model("llama"), items(40), budget_tokens=80)
    with pytest.raises(ValueError, match="first"):
        list(lanes.run(work))
    assert len(started) < len(lanes.micro_batches)
    assert torch.get_num_threads() == 2


def test_closing_early_leaves_the_rest_undone(two_threads):
    done = []
    lanes = Lanes(tiny_model("llama"), items(40), budget_tokens=80)
    results = lanes.run(lambda number, _: (time.sleep(0.02), done.append(number)))
    next(results)
    results.close()
    count = len(done)
    time.sleep(0.1)
    assert count == len(done) < len(lanes.micro_batches)
