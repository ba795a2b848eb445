"""Fused RMS norms against their definition, and which modules they stand in for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated

from sdpo.kernels import norms as module
from sdpo.kernels.norms import fused_norms, rms_norm


def drawn(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
    return norm


@given(
    rows=st.integers(0, 9),
    size=st.integers(1, 7),
    block=st.integers(1, 40),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_the_definition(rows, size, block, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x_ND, grad_ND = (
        torch.randn(rows, size, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    weight_D = torch.randn(size, dtype=torch.float64, generator=generator)
    found, expected = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        for results, norm in (
            (found, lambda x, w: rms_norm(x, w, 1e-6)),
            (expected, lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w),
        ):
            leaves = [(scale * x_ND).requires_grad_(), weight_D.clone().requires_grad_()]
            output = norm(*leaves)
            output.backward(grad_ND)
            results += [output.detach(), *(leaf.grad for leaf in leaves)]
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64, 48), (1, 20, 4, 48), (1, 9000, 48)])
def test_rounds_as_transformers_does(kind, dtype, shape):
    norm = drawn(kind(48, eps=1e-5)).to(dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        expected = norm(x)
    with fused_norms(norm):
        assert "forward" in vars(norm)
        kept = norm(x).detach()  # with a graph
        with torch.no_grad():
            plain = norm(x)
    assert "forward" not in vars(norm)
    assert torch.equal(kept, plain)
    # The sums differ in order, so a few values fall on the other side of a rounding step.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(kept, expected, rtol=tolerance, atol=1e-6)
    if dtype == torch.bfloat16:
        assert (kept != expected).float().mean() < 0.01


def test_other_norms_and_mixed_types_keep_their_own_code():
    gemma = drawn(GemmaRMSNorm(48))
    with fused_norms(gemma):
        assert "forward" not in vars(gemma)
    norm, x = drawn(LlamaRMSNorm(48)), torch.ones(2, 48, dtype=torch.bfloat16)
    expected = norm(x)
    with fused_norms(norm):
        assert torch.equal(norm(x), expected)
        assert norm(x).dtype == expected.dtype == torch.float32


def test_a_gate_is_the_norms_own_business():
    """Mamba's norms are plain ones when called with one argument."""
    norm = drawn(Zamba2RMSNormGated(8, group_size=8))
    x, gate = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    expected = norm(x, gate), norm(x, gate=gate)
    with fused_norms(norm):
        assert all(map(torch.equal, (norm(x, gate), norm(x, gate=gate)), expected))


def test_a_norm_that_finds_its_own_epsilon_keeps_its_code():
    norm = torch.nn.RMSNorm(8)
    with torch.no_grad(), fused_norms(norm):
        assert norm(torch.ones(1, 8)).sum().item() == pytest.approx(8.0)


def test_a_norm_that_answers_in_another_type_keeps_its_code():
    class WideRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x).double()

    norm = WideRMSNorm(8)
    with torch.no_grad(), fused_norms(norm):
        assert norm(torch.ones(1, 8)).dtype == torch.float64


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_the_verdict_on_a_class_does_not_depend_on_the_weights(value, monkeypatch):
    class HalfRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) / 2

    monkeypatch.setattr(module, "_is_plain", {})
    for kind, fuses in ((LlamaRMSNorm, True), (HalfRMSNorm, False)):
        norm = kind(8)
        torch.nn.init.constant_(norm.weight, value)
        with fused_norms(norm):
            assert ("forward" in vars(norm)) == fuses


def test_a_frozen_weight_gets_no_gradient():
    norm = drawn(LlamaRMSNorm(8)).requires_grad_(False)
    x = torch.ones(2, 8, requires_grad=True)
    with fused_norms(norm):
        norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None


def test_nothing_stays_after_an_error():
    norm = drawn(LlamaRMSNorm(8))
    with pytest.raises(RuntimeError, match="size"), fused_norms(norm):
        norm(torch.ones(2, 9))
    assert "forward" not in vars(norm)
