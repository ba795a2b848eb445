"""Which models take the fast path does not depend on how their weights are rounded."""

from __future__ import annotations

import logging

import pytest
import torch

from sdpo.kernels.blocks import BlockAttention
from sdpo.kernels.plan import Segment
from sdpo.models.qualify import FastPath, Refusal, fast_path_of, tree_kind_of
from sdpo.models.structure import float32_weights
from sdpo.testing import tiny_model

FAMILIES = ["llama", "qwen3", "gemma3_text"]


def rounding_model(family: str = "llama", dtype: torch.dtype = torch.bfloat16):
    """A model of sharp attention, which multiplies rounding from layer to layer."""
    model = tiny_model(family, num_layers=12, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data *= 48.0
    return model.to(dtype)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model((torch.arange(9) * 7 + 1)[None]).logits.float()


def test_the_model_of_these_tests_rounds_badly():
    exact = logits(rounding_model(dtype=torch.float32))
    difference = (logits(rounding_model()) - exact).norm() / exact.norm()
    assert difference > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_does_not_slow_a_model_down(family, dtype):
    model = rounding_model(family, dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fast = fast_path_of(model)
    assert isinstance(fast, FastPath)
    assert fast.cache.dtype == dtype
    assert tree_kind_of(model) == "blocks"
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousandth_of_difference_is_found_in_any_precision(monkeypatch, caplog, dtype):
    attend = BlockAttention.attend
    slope = torch.linspace(0.999, 1.001, 16)
    monkeypatch.setattr(BlockAttention, "attend", lambda *a: attend(*a).mul_(slope))
    with caplog.at_level(logging.WARNING):
        assert isinstance(fast_path_of(rounding_model(dtype=dtype)), Refusal)
    assert "packed sequences give other logits than each alone" in caplog.text


@pytest.mark.parametrize("layer", [0, 11])
def test_a_layer_that_sees_a_sibling_branch_is_found(monkeypatch, layer):
    """One token too many in one of twelve layers, in bfloat16."""
    attend = BlockAttention.attend
    tree = [(0, 6, None), (6, 11, 0), (11, 14, 1), (14, 17, 1), (17, 20, None)]
    wrong = BlockAttention(
        [Segment(start=start, stop=stop, parent=parent, position=0) for start, stop, parent in tree]
    )

    def leak(self, number, *rest):
        is_small_tree = rest[0].shape[2] == 20
        return attend(wrong if number == layer and is_small_tree else self, number, *rest)

    monkeypatch.setattr(BlockAttention, "attend", leak)
    assert isinstance(tree_kind_of(rounding_model()), Refusal)


def test_a_model_is_looked_at_once_in_each_format(monkeypatch):
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert fast_path_of(model).cache.dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", None)
        assert fast_path_of(model).cache.dtype == torch.bfloat16
    assert fast_path_of(model.float()).cache.dtype == torch.float32


def test_weights_come_back_when_the_model_fails():
    model = tiny_model("llama", dtype=torch.bfloat16)
    with pytest.raises(IndexError), torch.no_grad(), float32_weights(model):
        model(torch.tensor([[10**6]]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_inside_the_block_the_model_computes_in_float32():
    model = tiny_model("llama", dtype=torch.bfloat16)
    exact = logits(tiny_model("llama", dtype=torch.bfloat16).float())
    with torch.no_grad(), float32_weights(model):
        torch.testing.assert_close(logits(model), exact)
    assert logits(model).sub(exact).abs().max() > 1e-4
