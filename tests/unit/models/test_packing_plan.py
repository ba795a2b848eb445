"""What `pack` lays out: sharing, splitting, order. Numbers are counted by hand."""

from __future__ import annotations

import random

import pytest

from sdpo.models.packing import PackItem, hidden_rows, pack
from sdpo.models.prefix_tree import MIN_SAVED, PrefixTree, common_length
from sdpo.testing import tiny_model


def item(prompt, completion, mask=None):
    mask = (True,) * len(completion) if mask is None else mask
    return PackItem(prompt_ids=tuple(prompt), completion_ids=tuple(completion), loss_mask=mask)


def group(prompt_length, completion_length, size, start=0):
    """`size` completions of one prompt that differ from their first token on."""
    prompt = [1000 + start] * prompt_length
    return [item(prompt, [start + n] * completion_length) for n in range(size)]


def num_tokens(batches):
    return [len(batch.token_ids) for batch in batches]


def members(batches):
    return [list(batch.item_indices) for batch in batches]


def test_one_prompt_two_completions_by_hand():
    (batch,) = pack([item([5, 6, 7], [1, 2, 3]), item([5, 6, 7], [4, 2])], budget_tokens=100)
    # The last trained token of an item is predicted, never read.
    assert batch.token_ids.tolist() == [5, 6, 7, 1, 2, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert [(s.start, s.stop, s.parent) for s in batch.segments] == [
        (0, 3, None),
        (3, 5, 0),
        (5, 6, 0),
    ]
    assert batch.row_index.tolist() == [2, 3, 4, 2, 5]
    assert batch.targets.tolist() == [1, 2, 3, 4, 2]
    assert batch.row_items.tolist() == [0, 0, 0, 1, 1]
    assert batch.sequences == ((5, 6, 7, 1, 2), (5, 6, 7, 4))


def test_masked_tokens_are_read_but_not_predicted():
    mask = (True, False, True, False)
    (batch,) = pack([item([5], [1, 2, 3, 4], mask)], budget_tokens=100)
    assert batch.token_ids.tolist() == [5, 1, 2]
    assert batch.row_index.tolist() == [0, 2]
    assert batch.targets.tolist() == [1, 3]


def test_items_without_trained_tokens_have_no_tokens_and_no_rows():
    items = [item([5, 6], []), item([5, 6], [1, 2], (False, False)), item([5, 6], [3])]
    (batch,) = pack(items, budget_tokens=100)
    assert batch.item_indices == (0, 1, 2)
    assert batch.token_ids.tolist() == [5, 6]
    assert batch.row_items.tolist() == [2]
    assert pack([], budget_tokens=100) == []


def test_a_batch_without_rows_gives_none():
    (batch,) = pack([item([5, 6], [])], budget_tokens=100)
    rows = hidden_rows(tiny_model(), batch)
    assert rows.shape == (0, 64)
    rows.sum().backward()


def test_a_prompt_is_laid_out_once():
    assert num_tokens(pack(group(50, 10, 8), budget_tokens=1000)) == [50 + 8 * 9]


def test_short_prompts_are_shared_too():
    assert num_tokens(pack(group(2, 4, 2), budget_tokens=1000)) == [2 + 2 * 3]


@pytest.mark.parametrize("extra", [0, 1])
def test_other_common_beginnings_are_shared_where_it_pays(extra):
    """Two different prompts that begin alike: the beginning is computed once or twice."""
    common = [7] * (MIN_SAVED - 1 + extra)
    items = [item([*common, 1, 1], [5]), item([*common, 2, 2], [5])]
    times = 1 if extra else 2
    assert num_tokens(pack(items, budget_tokens=1000)) == [times * len(common) + 4]


def test_a_tree_has_as_many_levels_as_the_contexts():
    task, shown, attempt = [1] * 40, [2] * 30, [3] * 20
    items = [
        item([*task, *shown, 8], [*attempt, 1]),
        item([*task, *shown, 9], [*attempt, 1]),
        item([*task, 6], [*attempt, 1]),
    ]
    (batch,) = pack(items, budget_tokens=1000)
    assert len(batch.token_ids) == 40 + 30 + 2 * (1 + 20) + (1 + 20)
    assert [s.parent for s in batch.segments] == [None, 0, 1, 1, 0]


def test_completions_that_begin_alike_share_their_beginning():
    prompt, code = [1] * 5, [2] * 30
    items = [item(prompt, [*code, 7, 7]), item(prompt, [*code, 8, 8]), item(prompt, [9, 9])]
    (batch,) = pack(items, budget_tokens=1000)
    assert len(batch.token_ids) == 5 + 30 + 1 + 1 + 1


def test_equal_items_are_computed_once_and_have_rows_each():
    (batch,) = pack([item([1] * 9, [2] * 20)] * 3, budget_tokens=1000)
    assert len(batch.token_ids) == 28
    assert batch.row_index.tolist() == 3 * list(range(8, 28))


def test_a_group_over_the_budget_is_split_and_its_prompt_computed_again():
    batches = pack(group(50, 11, 8), budget_tokens=100)
    assert members(batches) == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert num_tokens(batches) == [100, 80]


def test_an_item_over_the_budget_stands_alone():
    items = [item([1], [2]), item([3] * 30, [4]), item([5], [6])]
    assert members(pack(items, budget_tokens=10)) == [[0], [1], [2]]
    assert members(pack(group(50, 10, 3), budget_tokens=1)) == [[0], [1], [2]]


def test_a_group_that_fits_a_batch_of_its_own_is_not_torn():
    items = group(40, 11, 2) + group(40, 11, 2, start=10)
    assert members(pack(items, budget_tokens=110)) == [[0, 1], [2, 3]]
    assert members(pack(items, budget_tokens=120)) == [[0, 1, 2, 3]]


def test_groups_below_a_common_preamble_are_not_torn_either():
    preamble = [7] * 30
    items = [
        item([*preamble, *[task] * 40], [10 * task + n] * 11) for task in (1, 2) for n in (0, 1)
    ]
    batches = pack(items, budget_tokens=120)
    assert members(batches) == [[0, 1], [2, 3]]
    assert num_tokens(batches) == [90, 90]


def test_items_of_a_group_are_brought_together():
    first, second = group(20, 5, 2), group(20, 5, 2, start=10)
    items = [first[0], second[0], first[1], second[1]]
    assert members(pack(items, budget_tokens=1000)) == [[0, 2, 1, 3]]


def test_without_sharing_the_budget_counts_every_item_in_full():
    batches = pack(group(50, 11, 4), budget_tokens=120, share_prefixes=False)
    assert members(batches) == [[0, 1], [2, 3]]
    assert num_tokens(batches) == [120, 120]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [1, 30, 100, 10_000])
def test_any_items_come_back_whole(seed, budget):
    rng = random.Random(seed)
    items = []
    for _ in range(rng.randrange(1, 25)):
        # Two letters: beginnings of all lengths agree.
        prompt = [rng.choice("ab") for _ in range(rng.randrange(1, 6))] * rng.randrange(1, 8)
        completion = [rng.choice("ab") for _ in range(rng.randrange(0, 30))]
        mask = tuple(rng.random() < 0.5 for _ in completion)
        items.append(item(map(ord, prompt), map(ord, completion), mask))
    batches = pack(items, budget_tokens=budget)
    again = pack(items, budget_tokens=budget)
    assert [b.token_ids.tolist() for b in again] == [b.token_ids.tolist() for b in batches]
    assert sorted(i for b in batches for i in b.item_indices) == list(range(len(items)))
    for batch in batches:
        # Over the budget only when a single item needs every token.
        longest = max(len(sequence) for sequence in batch.sequences)
        assert len(batch.token_ids) <= budget or len(batch.token_ids) == longest
        check_tree(batch)
        for index, sequence in zip(batch.item_indices, batch.sequences, strict=True):
            check_rows(batch, index, items[index], sequence)


def check_tree(batch):
    """Segments cover the row in order, depth first, and positions continue the parent's."""
    place = 0
    path = []
    for number, segment in enumerate(batch.segments):
        assert segment.start == place < segment.stop
        place = segment.stop
        while path and path[-1] != segment.parent:
            path.pop()
        assert segment.parent == (path[-1] if path else None)
        path.append(number)
        before = 0 if segment.parent is None else last_position(batch, segment.parent) + 1
        expected = list(range(before, before + len(segment)))
        assert batch.position_ids[segment.start : segment.stop].tolist() == expected
    assert place == len(batch.token_ids)


def last_position(batch, number):
    return int(batch.position_ids[batch.segments[number].stop - 1])


def check_rows(batch, index, source, sequence):
    """Each row's path in the tree spells what precedes its target."""
    own = batch.row_items == index
    whole = source.prompt_ids + source.completion_ids
    trained = [t for t, trains in enumerate(source.loss_mask) if trains]
    assert batch.targets[own].tolist() == [source.completion_ids[t] for t in trained]
    for place, t in zip(batch.row_index[own].tolist(), trained, strict=True):
        read = spelled(batch, place)
        assert tuple(read) == whole[: len(source.prompt_ids) + t]
        assert tuple(read) == sequence[: len(read)]


def spelled(batch, place):
    """Tokens from the root to `place`."""
    number = next(n for n, s in enumerate(batch.segments) if s.start <= place < s.stop)
    read = batch.token_ids[batch.segments[number].start : place + 1].tolist()
    while (parent := batch.segments[number].parent) is not None:
        segment = batch.segments[parent]
        read[:0] = batch.token_ids[segment.start : segment.stop].tolist()
        number = parent
    return read


def test_common_length():
    assert common_length([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert common_length([(1, 2)]) == 2
    assert common_length([(), (1,)]) == 0


def test_deep_chains_do_not_recurse_far():
    chain = [tuple(range(16 * n)) for n in range(1, 150)]
    tree = PrefixTree(chain, [0] * len(chain))
    assert sum(len(node) for node in tree.nodes) == 16 * 149


def test_wrong_items_are_refused():
    with pytest.raises(ValueError, match="item 0: 1 entries in loss_mask for 2"):
        pack([item([1], [2, 3], (True,))], budget_tokens=10)
    with pytest.raises(ValueError, match="nothing precedes"):
        pack([item([], [2, 3])], budget_tokens=10)
    (batch,) = pack([item([], [2, 3], (False, True))], budget_tokens=10)
    assert batch.row_index.tolist() == [0]
