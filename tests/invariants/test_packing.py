"""Packed and unpacked agree in hidden rows, loss and gradients: every family, split and order."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, MambaConfig

from sdpo.errors import ModelError
from sdpo.kernels import blocks as block_attention
from sdpo.kernels import sdpa as fused_attention
from sdpo.kernels.blocks import BlockAttention
from sdpo.kernels.plan import Scores
from sdpo.kernels.tree import FLEX_BLOCK, BranchAttention, FlexAttention
from sdpo.models.hidden import enable_checkpointing
from sdpo.models.packing import PackItem, hidden_rows, pack
from sdpo.models.qualify import Refusal, shares_prefixes
from sdpo.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Relative to the largest entry of what is compared."""


def tokens(rng, count):
    return tuple(rng.randrange(259) for _ in range(count))


def shared_prompts(rng):
    """Three prompts, nine completions of 0 to 9 tokens, some tokens without loss."""
    prompts = [tokens(rng, n) for n in (7, 12, 3)]
    found = []
    for number, length in enumerate([0, 1, 2, 5, 9, 4, 1, 7, 3]):
        mask = tuple(rng.random() < 0.8 for _ in range(length))
        found.append(
            PackItem(
                prompt_ids=prompts[number % 3],
                completion_ids=tokens(rng, length),
                loss_mask=mask,
            )
        )
    return found


def nothing_shared(rng):
    return [
        PackItem(
            prompt_ids=(number, *tokens(rng, 5)),
            completion_ids=tokens(rng, 4),
            loss_mask=(True,) * 4,
        )
        for number in range(5)
    ]


def long_prefix(rng):
    prompt = tokens(rng, 60)
    return [
        PackItem(prompt_ids=prompt, completion_ids=tokens(rng, n), loss_mask=(True,) * n)
        for n in (1, 2, 3, 5, 8, 13)
    ]


def teacher_contexts(rng):
    """A task, demonstrations after it, attempts after those; one context is part of another."""
    task = tokens(rng, 20)
    found = []
    for demonstration in (tokens(rng, 18), tokens(rng, 24), ()):
        for n in (6, 3, 4):
            completion = tokens(rng, n)
            found.append(
                PackItem(
                    prompt_ids=task + demonstration,
                    completion_ids=completion,
                    loss_mask=(True,) * n,
                )
            )
    return found


def several_turns(rng):
    """Completions with the environment's tokens inside, which do not train."""
    prompt, first = tokens(rng, 9), tokens(rng, 17)
    mask = (True,) * 5 + (False,) * 7 + (True,) * 5 + (False,) * 3 + (True,) * 2 + (False,) * 2
    return [
        PackItem(prompt_ids=prompt, completion_ids=first + tokens(rng, 7), loss_mask=mask)
        for _ in range(3)
    ]


CASES = [shared_prompts, nothing_shared, long_prefix, teacher_contexts, several_turns]


def plain_rows(model, chosen):
    """One plain forward pass per item."""
    parts = []
    for item in chosen:
        ids = torch.tensor([item.prompt_ids + item.completion_ids])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        start = len(item.prompt_ids) - 1
        parts.append(hidden[[start + t for t, m in enumerate(item.loss_mask) if m]])
    return parts


def packed_rows(model, chosen, budget):
    """Hidden rows per item, in the order of `chosen`, and the targets checked on the way."""
    parts = {}
    for batch in pack(chosen, budget_tokens=budget):
        rows = hidden_rows(model, batch)
        for index in batch.item_indices:
            item = chosen[index]
            own = batch.row_items == index
            trained = [y for y, m in zip(item.completion_ids, item.loss_mask, strict=True) if m]
            assert batch.targets[own].tolist() == trained
            parts[index] = rows[own]
    return [parts[index] for index in range(len(chosen))]


def loss_and_gradients(model, parts):
    model.zero_grad()
    weights = [torch.arange(p.numel(), dtype=p.dtype).view(p.shape).sin() for p in parts]
    loss = sum((p * w).sum() for p, w in zip(parts, weights, strict=True))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_close(ours, theirs):
    scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
    difference = float((ours - theirs).detach().abs().max()) if theirs.numel() else 0.0
    assert difference <= TOLERANCE[theirs.dtype] * scale


def assert_same(model, chosen, ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    loss, gradients = loss_and_gradients(model, ours)
    expected_loss, expected = loss_and_gradients(model, theirs)
    # A sum of signed terms: its rounding scales with the terms.
    assert abs(float(loss - expected_loss)) <= TOLERANCE[loss.dtype] * sum(p.numel() for p in ours)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


@pytest.fixture
def double_norms(monkeypatch):
    """Float64 throughout: transformers rounds norms, rotations and softmaxes to float32 in a model
    of any type, which turns differences of 1e-16 into ones of 1e-7.
    """
    to, softmax = torch.Tensor.to, torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim, dtype=x.dtype)
    )
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())

    def keep_double(self, *args, **kwargs):
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", keep_double)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_plain(family, case, double_norms):
    model = tiny_model(family, dtype=torch.float64)
    chosen = case(random.Random(0))
    assert shares_prefixes(model)
    assert_same(model, chosen, packed_rows(model, chosen, 10_000), plain_rows(model, chosen))


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_agrees_to_rounding(family):
    model = tiny_model(family)
    chosen = shared_prompts(random.Random(1)) + teacher_contexts(random.Random(2))
    assert_same(model, chosen, packed_rows(model, chosen, 60), plain_rows(model, chosen))


@pytest.mark.parametrize("budget", [1, 10, 30, 50, 90])
def test_splits_change_rounding_only(budget, double_norms):
    model = tiny_model("llama", dtype=torch.float64)
    chosen = teacher_contexts(random.Random(0)) + shared_prompts(random.Random(1))
    whole = packed_rows(model, chosen, 10_000)
    assert_same(model, chosen, packed_rows(model, chosen, budget), whole)


def test_order_changes_rounding_only(double_norms):
    model = tiny_model("qwen2", dtype=torch.float64)
    chosen = teacher_contexts(random.Random(0)) + shared_prompts(random.Random(1))
    order = list(range(len(chosen)))
    random.Random(2).shuffle(order)
    shuffled = packed_rows(model, [chosen[i] for i in order], 70)
    back = [shuffled[order.index(i)] for i in range(len(chosen))]
    assert_same(model, chosen, back, packed_rows(model, chosen, 70))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("window", [1, 4, 25])
def test_sliding_windows_shorter_than_a_sequence_are_respected(family, window, double_norms):
    model = tiny_model(family, dtype=torch.float64)
    model.config.sliding_window = window
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = window
    chosen = teacher_contexts(random.Random(0))
    assert shares_prefixes(model)
    assert_same(model, chosen, packed_rows(model, chosen, 10_000), plain_rows(model, chosen))


def test_without_gradients_rows_are_the_same():
    model = tiny_model("llama")
    chosen = shared_prompts(random.Random(0))
    with torch.no_grad():
        rows = packed_rows(model, chosen, 10_000)
    assert not any(row.requires_grad for row in rows)
    for ours, theirs in zip(rows, packed_rows(model, chosen, 10_000), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("how", ["ours", "transformers"])
def test_recomputed_layers_give_the_same_gradients(family, how, double_norms):
    model = tiny_model(family, dtype=torch.float64)
    chosen = teacher_contexts(random.Random(0))
    expected = packed_rows(model, chosen, 10_000)
    expected_loss, gradients = loss_and_gradients(model, expected)
    if how == "ours":
        enable_checkpointing(model)
    elif hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    loss, recomputed = loss_and_gradients(model, packed_rows(model, chosen, 10_000))
    assert_close(loss, expected_loss)
    for name, gradient in recomputed.items():
        assert_close(gradient, gradients[name])
    assert not any(module.training for module in model.modules())


def test_recomputing_forgets_activations():
    model = tiny_model("llama", num_layers=4)
    (batch,) = pack(long_prefix(random.Random(0)), budget_tokens=10_000)
    saved = {}
    for wanted in (False, True):
        kept = []

        def note(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden_rows(model, batch)
        saved[wanted] = sum(kept)
        enable_checkpointing(model)
    assert saved[True] < 0.3 * saved[False]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_norms_keep_nothing_but_their_input(family):
    model = tiny_model(family, dtype=torch.bfloat16)
    (batch,) = pack(long_prefix(random.Random(0)), budget_tokens=10_000)
    assert shares_prefixes(model)  # its trial has a backward pass of its own
    wide = []

    def note(tensor):
        if tensor.dtype == torch.float32 and tensor.shape[-1] == model.config.hidden_size:
            wide.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        rows = hidden_rows(model, batch)
    rows.sum().backward()
    assert not wide
    assert not any("forward" in vars(module) for module in model.modules())


def test_dropout_of_a_recomputed_model_stays_asleep():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj, torch.nn.Dropout(0.5))
    model.eval()
    chosen = shared_prompts(random.Random(0))
    enable_checkpointing(model)
    ours = packed_rows(model, chosen, 10_000)
    for a, b in zip(ours, plain_rows(model, chosen), strict=True):
        assert_close(a, b)


def recurrent():
    config = MambaConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2
    )
    return AutoModelForCausalLM.from_config(config)


def with_sinks():
    config = GptOssConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
        pad_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def with_dynamic_rotation():
    model = tiny_model("llama")
    config = model.config
    config.max_position_embeddings = 16
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    return AutoModelForCausalLM.from_config(config)


def test_rotations_that_follow_the_longest_row_take_no_tree():
    # Their frequencies depend on what ran before, so there is nothing exact to compare with.
    assert not shares_prefixes(with_dynamic_rotation().eval())


@pytest.mark.parametrize("make", [recurrent, with_sinks])
def test_models_that_cannot_take_a_tree_get_rows_of_their_own(make):
    torch.manual_seed(0)
    model = make().eval()
    chosen = shared_prompts(random.Random(0)) + teacher_contexts(random.Random(1))
    assert not shares_prefixes(model)
    assert_same(model, chosen, packed_rows(model, chosen, 40), plain_rows(model, chosen))


def test_a_model_whose_attention_misbehaves_is_found_out(monkeypatch):
    model = tiny_model("llama")
    attend = BlockAttention.attend
    monkeypatch.setattr(BlockAttention, "attend", lambda *a: attend(*a) * 1.01)
    assert not shares_prefixes(model)


def test_a_model_without_layers_to_recompute_says_so():
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match=r"gradient_checkpointing = false and lower"):
        enable_checkpointing(model)


def test_separate_rows_recompute_too(monkeypatch):
    model = tiny_model("llama")
    chosen = shared_prompts(random.Random(0))
    expected = loss_and_gradients(model, packed_rows(model, chosen, 40))[1]
    monkeypatch.setattr("sdpo.models.packing.tree_kind_of", lambda model: Refusal(reason=""))
    enable_checkpointing(model)
    ours = packed_rows(model, chosen, 40)
    for name, gradient in loss_and_gradients(model, ours)[1].items():
        assert_close(gradient, expected[name])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_adapters_stay_in_use(double_norms):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama", dtype=torch.float64), config).eval()
    chosen = shared_prompts(random.Random(0))
    plain = plain_rows(model.get_base_model(), chosen)
    assert_same(model, chosen, packed_rows(model, chosen, 40), plain)
    enable_checkpointing(model)
    plain = plain_rows(model.get_base_model(), chosen)
    assert_same(model, chosen, packed_rows(model, chosen, 40), plain)


def visible_places(segments, num_tokens, window):
    """[N, N] from the definition: a token sees itself and what precedes it on its path."""
    mask = torch.eye(num_tokens, dtype=torch.bool)
    for segment in segments:
        path, index = [], segment
        while True:
            path[:0] = range(index.start, index.stop)
            if index.parent is None:
                break
            index = segments[index.parent]
        for place in range(segment.start, segment.stop):
            position = segment.position + place - segment.start
            seen = path[: position + 1]
            mask[place, seen[-window:] if window else seen] = True
    return mask


@pytest.mark.parametrize("window", [None, 3, 30])
def test_flex_mask_is_the_tree(window):
    chosen = teacher_contexts(random.Random(0)) + shared_prompts(random.Random(1))
    (batch,) = pack(chosen, budget_tokens=10_000)
    num_tokens = -(-len(batch.token_ids) // FLEX_BLOCK) * FLEX_BLOCK
    plan = FlexAttention(batch.segments, num_tokens, torch.device("cpu"))
    places = torch.arange(num_tokens)
    mask = plan.visible(window)(0, 0, places[:, None], places)
    assert torch.equal(mask, visible_places(batch.segments, num_tokens, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 150, 7])
@pytest.mark.parametrize(("softcap", "matrix_units"), [(None, False), (None, True), (5.0, True)])
@pytest.mark.parametrize("block_scores", [1 << 19, 1 << 12])
@pytest.mark.parametrize(("batch_scores", "padding"), [(1 << 20, 0.125), (1, 0.0), (1 << 22, 0.9)])
def test_plans_agree(
    window, softcap, matrix_units, block_scores, batch_scores, padding, monkeypatch
):
    """The same output and gradients from blocks (whole segments and parts of them; alone and beside
    blocks of about or not at all the same size; computed as with matrix units), branches and,
    output only, FlexAttention."""
    monkeypatch.setattr(fused_attention, "_has_matrix_units", lambda dtype: matrix_units)
    monkeypatch.setattr(block_attention, "_BLOCK_SCORES", block_scores)
    monkeypatch.setattr(block_attention, "_BATCH_SCORES", batch_scores)
    monkeypatch.setattr(block_attention, "_PADDING", padding)
    rng = random.Random(0)
    chosen = teacher_contexts(rng) + long_prefix(rng) + shared_prompts(rng)
    prompt = tokens(rng, 300)
    chosen += [
        PackItem(prompt_ids=prompt, completion_ids=tokens(rng, n), loss_mask=(True,) * n)
        for n in (140, 20)
    ]
    (batch,) = pack(chosen, budget_tokens=10_000)
    count, device = len(batch.token_ids), torch.device("cpu")
    num_tokens = -(-count // FLEX_BLOCK) * FLEX_BLOCK
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, num_tokens, 16, generator=generator) for heads in (4, 2, 2)
    )
    scores = Scores(scaling=0.25, window=window, softcap=softcap)
    flex = FlexAttention(batch.segments, num_tokens, device).attend(0, query, key, value, scores)
    found = []
    for plan in (BranchAttention(batch.segments, device), BlockAttention(batch.segments)):
        leaves = [x[:, :, :count].clone().requires_grad_() for x in (query, key, value)]
        output = plan.attend(0, *leaves, scores)
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output))
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for branches, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, branches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flex[:, :count], found[0][0], rtol=1e-5, atol=1e-5)
