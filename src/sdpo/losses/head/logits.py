"""LM heads applied in chunks of tokens: logits, their softmax statistics, and nothing kept.

Memory: a whole [T, V] matrix of logits is never made. With the default chunk, one buffer is 64 MiB
on a CPU (128 in bfloat16) and 512 MiB on an accelerator, whatever T is. Matrix products run in the
dtype of the hidden states; everything after them runs in float32 (float64 for float64 inputs).

Legend: T completion tokens, C tokens of a chunk, R tokens of a tile, D hidden size, V vocabulary, K
tokens of a support.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.elementwise import log_softmax_
from sdpo.losses.head.support import LOG_NOTHING
from sdpo.losses.token_batch import OldSupport

_CHUNK_ELEMENTS = {"cpu": 1 << 24}
"""Elements of one chunk's logits. Large enough that adding to the head's gradient (V x D read and
written once a chunk) is small against the matrix product that fills it."""
_CHUNK_ELEMENTS_NARROW = 1 << 26
"""The same where a CPU keeps them in bfloat16: faster than a quarter of it or half, and than twice
as many for most sizes."""
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 27
_TILE_ELEMENTS = {"cpu": 1 << 20}
"""Elements of a tile: softmax and divergence go over a chunk in tiles whose temporaries stay in
cache (CPU) or keep every kernel full (accelerator)."""
_TILE_ELEMENTS_ACCELERATOR = 1 << 25
_STRIP_ELEMENTS = 1 << 22
"""Elements of a product that is widened on a CPU: 8 MiB in bfloat16."""


class LmHead(NamedTuple):
    """How hidden states become logits: cap(scale (W h + bias)), where cap(x) = softcap
    tanh(x / softcap).

    Llama has W alone, Phi a bias, Granite and Cohere a scale, Gemma 2 a cap.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, head: Tensor | LmHead) -> LmHead:
        """A bare [V, D] is a head of one matrix."""
        return head if isinstance(head, LmHead) else cls(head)

    @property
    def device(self) -> torch.device:
        return self.weight_VD.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_VD.dtype

    def detached(self) -> LmHead:
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return self._replace(weight_VD=self.weight_VD.detach(), bias_V=bias_V)


class Side(NamedTuple):
    """Hidden states and the head that turns them into logits."""

    hidden_TD: Tensor
    head: LmHead

    @classmethod
    def of(cls, hidden: Tensor | None, head: Tensor | LmHead | None) -> Side | None:
        """None where there are no hidden states."""
        if hidden is None:
            return None
        assert head is not None, "hidden states without a head"
        return cls(hidden, LmHead.of(head))

    @property
    def head_VD(self) -> Tensor:
        return self.head.weight_VD

    def detached(self) -> Side:
        return Side(self.hidden_TD.detach(), self.head.detached())


def chunk_size(
    tokens: int, vocabulary: int, device: torch.device, wanted: int | None, *, is_narrow: bool
) -> int:
    """Tokens per chunk: `wanted`, or chosen from the vocabulary size; chunks come out nearly equal,
    and hold no more than there are tokens."""
    if wanted is not None:
        if wanted < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {wanted}")
        return min(wanted, max(tokens, 1))
    elements = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS_ACCELERATOR)
    most = max(1, (_CHUNK_ELEMENTS_NARROW if is_narrow else elements) // vocabulary)
    return max(1, -(-tokens // max(1, -(-tokens // most))))


def tile_size(vocabulary: int, device: torch.device) -> int:
    """Tokens per tile."""
    elements = _TILE_ELEMENTS.get(device.type, _TILE_ELEMENTS_ACCELERATOR)
    return max(1, elements // vocabulary)


def spans(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` from `start` to `stop`."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


class Logits:
    """One model's logits: filled by chunks, read by tiles.

    A CPU rounds a narrow product to its factors' type. There a chunk keeps that type, in half the
    memory, and each tile is widened while it is in cache: on two AMX threads, logits for 1,632
    tokens took half the time. Elsewhere, and for mixtures, a chunk has the math dtype and tiles are
    views of it.

    What a head does after its product happens to a tile, in cache. A soft-cap needs one more tile
    where gradients are wanted (its slope, by which `put` multiplies), and in a mixture one more
    chunk: capped logits are not a sum of products.
    """

    def __init__(
        self,
        side: Side,
        num_tokens: int,
        num_tile_tokens: int,
        *,
        temperature: float,
        is_narrow: bool,
        vocabulary: int | None,
        reference: Side | None = None,
        trust: float | None = None,
    ) -> None:
        """Room for chunks of `num_tokens` and tiles of `num_tile_tokens`. With `trust`, of the
        trust-region mixture with `reference`: a geometric mean of distributions is an arithmetic
        mean of logits, since normalisers are constant per token (Eq. 10, 16)."""
        assert (trust is None) == (reference is None), "trust and its reference go together"
        assert not (is_narrow and trust is not None), "a sum of two products is wide"
        self._side, self._trust = side, trust
        self._reference = reference
        self._inverse_temperature = 1.0 / temperature
        num_rows, narrow = len(side.head_VD), side.hidden_TD.dtype
        wide = math_dtype(narrow)
        # Rows of the head without a token are multiplied and then ruled out: without them V would
        # no longer be a multiple of what matrix units like, which is why models have them.
        self._beyond = slice(num_rows if vocabulary is None else vocabulary, num_rows)
        self._chunk_CV = side.hidden_TD.new_empty(
            (num_tokens, num_rows), dtype=narrow if is_narrow else wide
        )
        self._tile_RV = self._slope_RV = self._rest_CV = None
        if is_narrow:
            self._tile_RV = self._chunk_CV.new_empty((num_tile_tokens, num_rows), dtype=wide)
        if side.head.softcap is not None:
            self._slope_RV = self._chunk_CV.new_empty((num_tile_tokens, num_rows), dtype=wide)
            if reference is not None:
                self._rest_CV = torch.empty_like(self._chunk_CV)

    def fill(self, chunk: slice) -> None:
        """Compute the products of these tokens."""
        chunk_CV = self._chunk_CV[: chunk.stop - chunk.start]
        if self._tile_RV is not None:
            hidden_TD, head_VD = self._side.hidden_TD, self._side.head_VD
            torch.mm(hidden_TD[chunk], head_VD.to(hidden_TD.dtype).t(), out=chunk_CV)
            return
        scale = self._product_scale(self._side.head)
        if self._reference is None or self._trust is None:
            _product_into(chunk_CV, self._side, chunk, scale)
        elif self._rest_CV is not None:
            _product_into(chunk_CV, self._side, chunk, scale)
            rest_CV, rest = (
                self._rest_CV[: len(chunk_CV)],
                self._product_scale(self._reference.head),
            )
            _product_into(rest_CV, self._reference, chunk, rest)
        else:
            _product_into(chunk_CV, self._side, chunk, scale * self._trust)
            rest = self._product_scale(self._reference.head) * (1.0 - self._trust)
            _product_into(chunk_CV, self._reference, chunk, rest, add=True)

    def _product_scale(self, head: LmHead) -> float:
        """What a product is multiplied by as it is made: all of it, unless a cap comes between."""
        return head.scale if head.softcap is not None else head.scale * self._inverse_temperature

    def tile(self, local: slice) -> Tensor:
        """Logits [R, V] of some tokens of the chunk, divided by the temperature, in the math dtype;
        rows of the head without a token have no mass. They may be overwritten."""
        tile_RV = self._chunk_CV[local]
        head, scale = self._side.head, self._product_scale(self._side.head)
        if self._tile_RV is not None:
            tile_RV = self._tile_RV[: len(tile_RV)].copy_(tile_RV)
            if scale != 1.0:
                tile_RV.mul_(scale)
        self._add_biases(tile_RV)
        if head.softcap is not None:
            assert self._slope_RV is not None
            slope_RV = self._slope_RV[: len(tile_RV)]
            _cap_(tile_RV, head.softcap, slope_RV)
            if self._rest_CV is not None:
                self._mix_capped_(tile_RV, local, slope_RV)
            if self._inverse_temperature != 1.0:
                tile_RV.mul_(self._inverse_temperature)
        tile_RV[:, self._beyond] = LOG_NOTHING
        return tile_RV

    def _add_biases(self, tile_RV: Tensor) -> None:
        """Of both sides where their products are one sum."""
        sides = [(self._side, 1.0 if self._trust is None else self._trust)]
        if self._rest_CV is not None:
            sides = [(self._side, 1.0)]
        elif self._reference is not None and self._trust is not None:
            sides.append((self._reference, 1.0 - self._trust))
        for side, share in sides:
            if side.head.bias_V is not None:
                factor = share * self._product_scale(side.head)
                tile_RV.add_(side.head.bias_V.to(tile_RV.dtype), alpha=factor)

    def _mix_capped_(self, tile_RV: Tensor, local: slice, scratch_RV: Tensor) -> None:
        """The trust-region mixture of capped logits; a mixture has no gradient, so that the slope's
        room is free."""
        assert self._rest_CV is not None
        assert self._reference is not None
        assert self._trust is not None
        rest_RV, head = self._rest_CV[local], self._reference.head
        if head.bias_V is not None:
            rest_RV.add_(head.bias_V.to(rest_RV.dtype), alpha=head.scale)
        assert head.softcap is not None
        _cap_(rest_RV, head.softcap, scratch_RV)
        tile_RV.mul_(self._trust).add_(rest_RV, alpha=1.0 - self._trust)

    def put(self, local: slice, gradient_RV: Tensor) -> None:
        """Write the gradient of the logits that `tile` gave last, in whose place it stands, into
        the chunk: as that of W h + bias."""
        head = self._side.head
        if self._slope_RV is not None:
            gradient_RV.mul_(self._slope_RV[: len(gradient_RV)])
        if head.scale != 1.0:
            gradient_RV.mul_(head.scale)
        if self._tile_RV is not None:
            self._chunk_CV[local].copy_(gradient_RV)

    def chunk(self, count: int) -> Tensor:
        """The chunk's first tokens as they now are, in the type of the hidden states."""
        return self._chunk_CV[:count].to(self._side.hidden_TD.dtype)


def _cap_(x_RV: Tensor, softcap: float, slope_RV: Tensor) -> None:
    """x <- softcap tanh(x / softcap), and its derivative 1 - tanh^2 into `slope`."""
    x_RV.div_(softcap).tanh_()
    torch.mul(x_RV, x_RV, out=slope_RV).neg_().add_(1.0)
    x_RV.mul_(softcap)


def are_narrow(sides: Iterable[Side | None]) -> bool:
    """Whether chunks of logits stay in the type of the hidden states of all `sides`."""
    kinds = {(x.hidden_TD.device.type, x.hidden_TD.dtype) for x in sides if x is not None}
    ((device, dtype), *others) = kinds
    return not others and device == "cpu" and dtype != math_dtype(dtype)


def _product_into(
    out_CV: Tensor, side: Side, rows: slice, scale: float, *, add: bool = False
) -> None:
    """out <- scale * hidden[rows] @ head.T, or out += the same; `out` is in the math dtype."""
    hidden_CD, head_VD = side.hidden_TD[rows], side.head_VD
    if head_VD.dtype != hidden_CD.dtype:
        head_VD = head_VD.to(hidden_CD.dtype)
    accumulate_product(out_CV, hidden_CD, head_VD.t(), add=add, scale=scale)


def accumulate_product(out: Tensor, a: Tensor, b: Tensor, *, add: bool, scale: float = 1.0) -> None:
    """out <- scale * a @ b, or out += the same; `out` in the math dtype whatever the factors' is.

    CUDA hands out its float32 accumulator: a logit of 20 in bfloat16 has a step of 0.125.
    """
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=float(add), alpha=scale, out=out)
    elif a.device.type == "cuda":
        torch.addmm(out, a, b, out_dtype=out.dtype, beta=float(add), alpha=scale, out=out)
    else:
        for strip, part_a, part_b in _strips(out, a, b):
            product = part_a @ part_b
            if add:
                strip.add_(product, alpha=scale)
            else:
                strip.copy_(product)
                if scale != 1.0:
                    strip.mul_(scale)


def _strips(out: Tensor, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`out` along its longer side, with the factors of each strip.

    A CPU rounds a narrow product to the factors' type before it can be widened. A strip is still in
    cache when that happens: measured 2.8 times as fast for logits, 1.7 for d/d(head).
    """
    rows, columns = out.shape
    if rows > columns:
        for part in spans(0, rows, max(1, _STRIP_ELEMENTS // columns)):
            yield out[part], a[part], b
    else:
        for part in spans(0, columns, max(1, _STRIP_ELEMENTS // rows)):
            yield out[:, part], a, b[:, part]


@torch.no_grad()
def token_statistics(
    hidden: Tensor,
    head: Tensor | LmHead,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    reference_hidden: Tensor | None = None,
    reference_head: Tensor | LmHead | None = None,
    trust: float | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of the targets [T] and entropy [T] over the whole vocabulary; no graph.

    For old log-probs and for the teacher's entropies before the first forward. Rows of the head
    from `vocabulary` on are not tokens. With `trust`, of the trust-region target ref^(1-trust)
    teacher^trust, where `hidden` and `head` are the teacher's. Memory: one chunk of logits.
    """
    side = Side(hidden, LmHead.of(head))
    reference = Side.of(reference_hidden, reference_head)
    logprob_T = hidden.new_empty(len(targets), dtype=math_dtype(hidden.dtype))
    entropy_T = torch.empty_like(logprob_T)
    for rows, log_p_RV in _log_probs(side, temperature, vocabulary, chunk_tokens, reference, trust):
        logprob_T[rows] = log_p_RV.gather(1, targets[rows, None])[:, 0]
        entropy_T[rows] = log_p_RV.exp().mul_(log_p_RV).sum(-1).neg_()
    return logprob_T, entropy_T


@torch.no_grad()
def token_support(
    hidden: Tensor,
    head: Tensor | LmHead,
    top_k: int,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    chunk_tokens: int | None = None,
) -> OldSupport:
    """The most likely tokens and their log-probs, likeliest first: what Eq. 13 remembers of the old
    policy."""
    ids, logprobs = [], []
    side = Side(hidden, LmHead.of(head))
    for _, log_p_RV in _log_probs(side, temperature, vocabulary, chunk_tokens, None, None):
        top = log_p_RV.topk(min(top_k, log_p_RV.shape[1]))
        ids.append(top.indices)
        logprobs.append(top.values)
    if not ids:
        shape = (0, min(top_k, len(side.head_VD)))
        nothing = hidden.new_empty(shape)
        return OldSupport(ids=nothing.long(), logprobs=nothing.to(math_dtype(hidden.dtype)))
    return OldSupport(ids=torch.cat(ids), logprobs=torch.cat(logprobs))


def _log_probs(
    side: Side,
    temperature: float,
    vocabulary: int | None,
    chunk_tokens: int | None,
    reference: Side | None,
    trust: float | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Tokens and their log-probabilities [R, V] in a buffer that the next pair overwrites."""
    count, num_rows = len(side.hidden_TD), len(side.head_VD)
    device = side.hidden_TD.device
    is_narrow = trust is None and are_narrow([side])
    size = chunk_size(count, num_rows, device, chunk_tokens, is_narrow=is_narrow)
    num_tile_tokens = min(size, tile_size(num_rows, device))
    logits = Logits(
        side,
        size,
        num_tile_tokens,
        temperature=temperature,
        is_narrow=is_narrow,
        vocabulary=vocabulary,
        reference=reference,
        trust=trust,
    )
    for chunk in spans(0, count, size):
        logits.fill(chunk)
        for tile in spans(chunk.start, chunk.stop, num_tile_tokens):
            local = slice(tile.start - chunk.start, tile.stop - chunk.start)
            yield tile, log_softmax_(logits.tile(local))
