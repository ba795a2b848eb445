"""Packed linear layers give what the plain ones give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdpo.kernels import linears as prepack
from sdpo.kernels.linears import packed_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="packing is oneDNN's"
)


class Projections(torch.nn.Module):
    """Three layers that read the same tensor, one of them twice, and one that reads what they
    gave."""

    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Linear(8, 12)
        self.key = torch.nn.Linear(8, 4, bias=False)
        self.value = torch.nn.Linear(8, 4)
        self.out = torch.nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat((self.query(x), self.key(x), self.value(x), self.key(2 * x)), -1))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of outputs of every packed product."""
    found: list[int] = []
    plain = torch.ops.mkldnn._linear_pointwise

    class Counting:
        _reorder_linear_weight = torch.ops.mkldnn._reorder_linear_weight

        @staticmethod
        def _linear_pointwise(*args: object) -> Tensor:
            output = plain(*args)
            found.append(output.shape[-1])
            return output

    monkeypatch.setattr(torch.ops, "mkldnn", Counting, raising=False)
    return found


@torch.no_grad()
def test_packed_layers_give_what_plain_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model, products = Projections(), calls(monkeypatch)
    steps = [torch.randn(2, 5, 8) for _ in range(3)]
    expected = [model(x) for x in steps]
    with packed_linears(model, rows=10, steps=100):
        found = [model(x) for x in steps]
    torch.testing.assert_close(found, expected)
    assert products == [12, 4, 4, 4, 8] * 3
    assert "forward" not in vars(model.query)


@torch.no_grad()
def test_a_tensor_written_to_between_steps_is_read_again() -> None:
    model, x = Projections(), torch.randn(5, 8)
    with packed_linears(model, rows=5, steps=100):
        for _ in range(4):
            x.normal_()
            found = model(x)
    torch.testing.assert_close(found, model(x))


@torch.no_grad()
def test_large_batches_and_short_calls_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    model, products = Projections(), calls(monkeypatch)
    with packed_linears(model, rows=5, steps=100):
        for _ in range(3):
            model(torch.randn(prepack._MAX_ROWS + 1, 8))
    with packed_linears(model, rows=5, steps=prepack._MIN_STEPS - 1):
        for _ in range(3):
            model(torch.randn(5, 8))
    assert not products
