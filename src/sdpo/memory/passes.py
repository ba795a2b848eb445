"""What forward and backward passes of a model hold, counted on its outline.

A pass runs on tensors without memory, through the code that training runs: the model's own layers,
recomputation and packed rows. Only attention and the LM head are stood in for (`stand_ins.py`):
attention holds its inputs and its output (what block, flex and flash attention keep), the head its
chunks of logits and its gradients (`losses/head`).

Legend: N tokens of a packed row, R trained tokens of it, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from sdpo.config.schema import ModelConfig
from sdpo.errors import ModelError, first_line
from sdpo.kernels.plan import fast_layers
from sdpo.memory.live_bytes import LiveBytes
from sdpo.memory.stand_ins import HeadOutline, HeadShape, OutlinePlan, head_buffers
from sdpo.models.hidden import enable_checkpointing, recomputed_layers
from sdpo.models.outline import outline, storages, weightless
from sdpo.models.structure import backbone_of, causal_lm
from sdpo.models.weights import trainable

_SHORT = (2, 3)
"""Layers of the short models that stand for a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Sizes of a model's weights, in bytes.

    Example:
        WeightBytes(num_all=10, num_trained=10, all=20, trained=20, narrow=20, layer=4, root=8)
    """

    num_all: int
    num_trained: int
    all: int
    """Every weight, buffers included, in the type it computes in."""
    trained: int
    """Those that train, in the type they compute in."""
    narrow: int
    """Of `trained`, what is not float32 and so has a float32 master."""
    layer: int
    """The largest layer."""
    root: int
    """What belongs to no layer: embeddings, the LM head, the last norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBytes:
    """What one pass takes beside weights and gradient sums, in bytes.

    Example:
        PassBytes(held=1000, head=500, peak=1600)
    """

    held: int
    """Kept between the forward and the backward pass."""
    head: int
    """Buffers and gradients of the fused head."""
    peak: int
    """The most at any moment, the head's included."""


class Passes:
    """Passes of the model with `shape`, on the kind of device that the run has.

    Example:
        Passes(shape, ModelConfig(), torch.bfloat16, "cuda").student(4096, 3000)
    """

    def __init__(
        self,
        shape: PreTrainedConfig,
        model: ModelConfig,
        dtype: torch.dtype,
        device: str,
        *,
        checkpointing: bool = False,
    ) -> None:
        self._device, self._dtype = device, dtype
        with weightless():
            self._model: Any = outline(shape, model, dtype)
            self._inner = causal_lm(self._model)
            if checkpointing:
                enable_checkpointing(self._model)
            for parameter in trainable(self._model).values():
                _accumulate(parameter)
        self._plan = OutlinePlan()
        self._takes_plan = True
        self._found: dict[tuple[object, ...], tuple[int, ...]] = {}
        self._layers = _equal_layers(self._inner)

    def weights(self) -> WeightBytes:
        """Sizes of the weights."""
        parameters = list(self._model.parameters())
        trained = list(trainable(self._model).values())
        layers = [m for m in self._model.modules() if isinstance(m, GradientCheckpointingLayer)]
        sizes = [sum(storages(layer.parameters()).values()) for layer in layers]
        everything = sum(storages((*parameters, *self._model.buffers())).values())
        return WeightBytes(
            num_all=sum(p.numel() for p in parameters),
            num_trained=sum(p.numel() for p in trained),
            all=everything,
            trained=sum(storages(trained).values()),
            narrow=sum(storages(p for p in trained if p.dtype != torch.float32).values()),
            layer=max(sizes, default=0),
            root=max(everything - sum(sizes), 0),
        )

    @property
    def hidden_row(self) -> int:
        """Bytes of one token's hidden state."""
        return self._head().shape[1] * self._dtype.itemsize

    @property
    def vocabulary(self) -> int:
        """Rows of the LM head."""
        return self._head().shape[0]

    def cache_token(self) -> int:
        """Bytes of the keys and values that sampling keeps of one token, over all layers."""
        (cached,) = self._once(
            ("cache",), lambda: self._over_layers(lambda: (self._forward_cached(8)[1],))
        )
        return cached

    def _once(
        self, key: tuple[object, ...], count: Callable[[], tuple[int, ...]]
    ) -> tuple[int, ...]:
        """What `count` finds, which is the same for equal keys."""
        if key not in self._found:
            self._found[key] = count()
        return self._found[key]

    def head_bytes(self, trained: int, *, sides: int, trains: bool) -> int:
        """The most that the fused head holds for `trained` tokens and `sides` models."""
        with weightless():
            hidden_RD = torch.empty(trained, self._head().shape[1], dtype=self._dtype)
        with weightless(), LiveBytes(known=[hidden_RD]) as live:
            head_buffers(
                hidden_RD,
                self._head(),
                HeadShape(device=self._device, sides=sides),
                trains=trains,
            )
        return live.peak

    def student(self, tokens: int, trained: int, *, sides: int = 2) -> PassBytes:
        """A micro-batch of `tokens` packed tokens, `trained` of which train, compared with the
        teacher (`sides` = 2) and with the initial model too (3)."""
        lates: list[int] = []

        def measure() -> tuple[int, int]:
            held, early, late = self._student(tokens, trained, sides)
            lates.append(late)
            return held, early

        key = ("student", tokens, trained, sides)
        held, peak, *ends = self._once(key, lambda: (*self._over_layers(measure), *lates))
        trains = self._head().requires_grad
        head = self.head_bytes(trained, sides=sides, trains=trains)
        return PassBytes(held=held, head=head, peak=max(peak, *ends))

    def forward(self, tokens: int) -> int:
        """The most that a pass without gradients holds over `tokens` packed tokens."""
        (peak,) = self._once(
            ("forward", tokens),
            lambda: self._over_layers(lambda: (self._forward_cached(tokens)[0],)),
        )
        return peak

    def _student(self, tokens: int, trained: int, sides: int) -> tuple[int, int, int]:
        """Held after the forward pass; the peak up to the last layer's backward, which grows with
        the number of layers; and over all, which in a short model need not."""
        shape = HeadShape(device=self._device, sides=sides)
        with weightless(), torch.enable_grad(), LiveBytes(known=self._known()) as live:
            early: list[int] = []
            with _at_gradient(self._last_layer(), lambda: early.append(live.peak)):
                hidden_ND = self._hidden(tokens)
                held = live.now
                hidden_RD = hidden_ND[torch.arange(trained)]
                del hidden_ND
                others = [torch.empty_like(hidden_RD) for _ in range(sides - 1)]
                HeadOutline.apply(hidden_RD, self._head(), shape).backward()
                del others, hidden_RD
        return held, early[0] if early else live.peak, live.peak

    def _last_layer(self) -> torch.nn.Module | None:
        return None if self._layers is None else self._layers.now[-1]

    def _forward_cached(self, tokens: int) -> tuple[int, int]:
        """The peak of a pass, and the keys and values of one token."""
        self._plan.sizes.clear()
        with weightless(), torch.no_grad(), LiveBytes(known=self._known()) as live:
            self._hidden(tokens)
        cached = self._plan.cached_bytes() if self._takes_plan else self._cache_by_config()
        return live.peak, cached

    def _cache_by_config(self) -> int:
        """Of the layers that are there; for attention that shows no keys."""
        text: Any = self._inner.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layers = text.num_hidden_layers if self._layers is None else len(self._layers.now)
        return 2 * layers * heads * size * self._dtype.itemsize

    def _over_layers(self, measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """What `measure` finds of the whole model. Layers that are alike add alike: then two short
        models tell what a long one takes."""
        if self._layers is None:
            return measure()
        blocks, found = self._layers.blocks, []
        try:
            for count in _SHORT:
                self._layers.set(torch.nn.ModuleList(blocks[:count]))
                found.append(measure())
        finally:
            self._layers.set(blocks)
        more = len(blocks) - _SHORT[0]
        return tuple(
            short + more * (longer - short) // (_SHORT[1] - _SHORT[0])
            for short, longer in zip(*found, strict=True)
        )

    def _head(self) -> Tensor:
        return self._inner.get_output_embeddings().weight

    def _known(self) -> list[Tensor]:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        return [*self._model.parameters(), *self._model.buffers(), *gradients]

    def _hidden(self, tokens: int) -> Tensor:
        """[N, D]; by the model's own attention where it takes no plan."""
        ids_1N = torch.zeros(1, tokens, dtype=torch.long)
        backbone = backbone_of(self._inner)
        if self._takes_plan:
            again = partial(fast_layers, self._inner)
            try:
                with (
                    recomputed_layers(self._inner, again, device=self._device),
                    fast_layers(self._inner),
                ):
                    return backbone(
                        input_ids=ids_1N,
                        position_ids=ids_1N,
                        use_cache=False,
                        sdpo_plan=self._plan,
                    ).last_hidden_state[0]
            except Exception:  # noqa: BLE001  # the code of hundreds of models raises anything
                self._takes_plan = False
        try:
            return backbone(input_ids=ids_1N, use_cache=False).last_hidden_state[0]
        except Exception as error:
            raise ModelError(
                f"the memory of {type(self._inner).__name__} cannot be counted without its weights "
                f"({first_line(error)}); measure it with a short run"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """The one list of a model's layers, and the module that holds it."""

    owner: torch.nn.Module
    name: str
    blocks: torch.nn.ModuleList

    @property
    def now(self) -> torch.nn.ModuleList:
        found: Any = getattr(self.owner, self.name)
        return found

    def set(self, blocks: torch.nn.ModuleList) -> None:
        setattr(self.owner, self.name, blocks)


@contextmanager
def _at_gradient(layer: torch.nn.Module | None, note: Callable[[], None]) -> Generator[None]:
    """Inside the block, `note` is called when the gradient of `layer`'s input is there."""

    def watch(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].requires_grad:
            arguments[0].register_hook(lambda _: note())

    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _equal_layers(model: torch.nn.Module) -> _Layers | None:
    """The layers of `model` if they are one list, alike and more than short models have."""
    lists = [
        _Layers(owner=owner, name=name, blocks=child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList)
        and any(isinstance(block, GradientCheckpointingLayer) for block in child)
    ]
    if len(lists) != 1 or len(lists[0].blocks) <= _SHORT[1]:
        return None
    shapes = {
        (type(block), tuple((name, p.shape) for name, p in block.named_parameters()))
        for block in lists[0].blocks
    }
    return lists[0] if len(shapes) == 1 else None


def _accumulate(parameter: torch.nn.Parameter) -> None:
    """Sum gradients as the optimizer does: in float32, which is counted with the weights."""
    if parameter.dtype == torch.float32:
        parameter.grad = torch.zeros_like(parameter)
    else:
        parameter.register_post_accumulate_grad_hook(_free_gradient)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
