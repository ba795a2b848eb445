"""A small tree of tokens, and what a model makes of it the fast way and the plain way.

The tree has two roots, branches and a branch of a branch; each of its sequences also runs as a
plain row. `qualify.py` draws the conclusions.

Legend: N tokens of the tree, T tokens of a plain row, R rows of a decode step, V vocabulary, K
key-value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel

from sdpo.kernels.cache import CacheShape, KvCache
from sdpo.kernels.decode import DecodePlan
from sdpo.kernels.definition import Compared
from sdpo.kernels.dtypes import math_dtype
from sdpo.kernels.plan import Observed, Scores, Segment, fast_layers, paths
from sdpo.kernels.tree import TreeKind, tree_plan
from sdpo.models.hidden import plain_hidden, tree_hidden
from sdpo.models.structure import backbone_of, probe_ids

_TREE = (
    Segment(start=0, stop=6, parent=None, position=0),
    Segment(start=6, stop=11, parent=0, position=6),
    Segment(start=11, stop=14, parent=1, position=11),
    Segment(start=14, stop=17, parent=0, position=6),
    Segment(start=17, stop=20, parent=None, position=0),
)
_LEAVES = (2, 3, 4)
"""Segments that nothing continues: the ends of the tree's sequences."""
_PROMPT_LENGTHS = (5, 9)
_DECODE_STEPS = 2

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits, relative to their largest magnitude."""
_MOST = 0.75
"""Share of tokens within the tolerance. Where two keys draw nearly the same attention, layers of
sharp attention multiply rounding without bound: a few tokens may differ by more."""
_CHAOS = 100.0
"""How many times the tolerance those few may differ."""
_GRADIENT_TOLERANCE = 1e-3
"""Largest difference of a parameter's gradient, relative to its norm."""
_NO_GRADIENT = 1e-6
"""A gradient this small beside the largest is rounding."""

See = Callable[[int, torch.Tensor, torch.Tensor, Scores], None]
"""What `Observed` tells about a layer's call."""


def plain_logits(model: PreTrainedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """[T, V] of the model's own forward pass."""
    return model(input_ids=ids_T[None], use_cache=False).logits[0]


def packed_logits(model: PreTrainedModel, see: See) -> torch.Tensor:
    """[N, V] of the tree."""
    ids_N, positions_N = _tree_tokens(model)
    with fast_layers(model):
        return model(
            input_ids=ids_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            sdpo_plan=Observed(plan=tree_plan(_TREE, model.device), see=see),
        ).logits[0]


def packed_equals_plain(model: PreTrainedModel, see: See) -> bool:
    """Whether the tree's logits are those of its sequences alone."""
    packed_NV, (ids_N, _) = packed_logits(model, see), _tree_tokens(model)
    return all(
        agree(packed_NV[places], plain_logits(model, ids_N[places]))
        for places in _leaf_places(model.device)
    )


def attends_rightly(model: PreTrainedModel, kind: TreeKind) -> bool:
    """Whether every layer attends to the tree as it should, in the model's own number format."""
    plan = Compared(tree_plan(_TREE, model.device, kind=kind), _TREE)
    tree_hidden(model, *_tree_tokens(model), plan, kind)
    return plan.agrees


def decoding_equals_plain(model: PreTrainedModel, layers: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether steps of three rows behind two prompts give the logits of a plain pass. `layers` as
    in `CacheShape`."""
    device = model.device
    ids_T = probe_ids(model, max(_PROMPT_LENGTHS) + _DECODE_STEPS)
    expected_TV = plain_logits(model, ids_T)
    # A prompt's last token is what its first step reads.
    first, second = (length - 1 for length in _PROMPT_LENGTHS)
    cache = KvCache(
        CacheShape(layers=layers, dtype=expected_TV.dtype, device=device),
        num_prompts=2,
        prompt_columns=second,
        num_rows=3,
        suffix_columns=_DECODE_STEPS,
    )
    _prefill(model, ids_T, (first, second), cache)
    start_R = torch.tensor([first, first, second], device=device)
    found = []
    for step in range(_DECODE_STEPS):
        plan = DecodePlan(
            prompt_keys=cache.prompt_keys,
            prompt_values=cache.prompt_values,
            suffix_keys=cache.suffix_keys,
            suffix_values=cache.suffix_values,
            prompt_lengths_R=start_R,
            lengths_R=torch.full_like(start_R, step),
            rows_GS=torch.tensor([[0, 1], [2, 0]], device=device),
            places_R=torch.arange(3, device=device),
            is_dense=False,
            mask_prompt=True,
            mask_suffix=True,
            max_position=len(ids_T),
        )
        place_R = start_R + step
        with fast_layers(model):
            logits_RV = model(
                input_ids=ids_T[place_R][None],
                position_ids=place_R[None],
                use_cache=False,
                sdpo_plan=plan,
            ).logits[0]
        found.append(logits_RV)
    places = torch.cat([start_R + step for step in range(_DECODE_STEPS)])
    return agree(torch.cat(found), expected_TV[places])


def _prefill(
    model: PreTrainedModel, ids_T: torch.Tensor, lengths: tuple[int, int], cache: KvCache
) -> None:
    """Keys and values of two beginnings of `ids_T`, side by side in one row."""
    first, second = lengths
    segments = [
        Segment(start=0, stop=first, parent=None, position=0),
        Segment(start=first, stop=first + second, parent=None, position=0),
    ]

    def keep(
        layer: int, keys_1KTE: torch.Tensor, values_1KTE: torch.Tensor, scores: Scores
    ) -> None:
        for slot, path in enumerate(paths(segments)):
            cache.store_prompt(layer, slot, keys_1KTE[0], values_1KTE[0], path)

    positions_N = torch.cat([torch.arange(n, device=model.device) for n in lengths])
    with fast_layers(model):
        backbone_of(model)(
            input_ids=ids_T[positions_N][None],
            position_ids=positions_N[None],
            use_cache=False,
            sdpo_plan=Observed(plan=tree_plan(segments, model.device), see=keep),
        )


def has_finite_gradients(model: PreTrainedModel) -> bool:
    """Whether every gradient of plain rows is finite. Gradients must be on."""
    ids_N, _ = _tree_tokens(model)
    gradients = _gradients(model, lambda: plain_hidden(model, ids_N[None]))
    return all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def gradient_difference(model: PreTrainedModel, kind: TreeKind) -> str:
    """The first parameter whose gradient on the tree is not that of plain rows, and how it differs;
    empty if there is none. Gradients must be on.

    In half precision only missing gradients count: how rounding grows from layer to layer is not
    bounded by anything the model says.
    """
    ids_N, positions_N = _tree_tokens(model)
    leaves = _leaf_places(model.device)

    def packed() -> Iterable[torch.Tensor]:
        plan = tree_plan(_TREE, model.device, kind=kind)
        hidden_ND = tree_hidden(model, ids_N, positions_N, plan, kind)
        return (hidden_ND[places] for places in leaves)

    ours = _gradients(model, packed)
    theirs = _gradients(model, lambda: (plain_hidden(model, ids_N[p][None])[0] for p in leaves))
    sizes = {name: float(gradient.norm()) for name, gradient in theirs.items()}
    floor = _NO_GRADIENT * max(sizes.values(), default=0.0)
    is_half = model.dtype not in _TOLERANCES
    for name, size in sizes.items():
        if size <= floor:
            continue
        if name not in ours or not bool(ours[name].any()):
            return f"{name} gets no gradient"
        difference = float((ours[name] - theirs[name]).norm())
        if not is_half and difference > _GRADIENT_TOLERANCE * size + floor:
            return f"{name} gets another gradient"
    return ""


def _gradients(
    model: PreTrainedModel, rows: Callable[[], Iterable[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Per trainable parameter its gradient [..., E] times a fixed vector [E], on the CPU.

    Memory: one parameter's gradient at a time. Gradients that were there are there again.
    """
    found: dict[str, torch.Tensor] = {}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: parameter.grad for name, parameter in parameters.items()}

    def take(name: str, parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        gradient = torch.atleast_1d(parameter.grad.to(math_dtype(parameter.grad.dtype)))
        slope_E = torch.linspace(0.5, 1.5, gradient.shape[-1]).to(gradient)
        found[name] = (gradient @ slope_E if gradient.dim() > 1 else gradient * slope_E).cpu()
        parameter.grad = None

    handles = []
    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            handles.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter, name=name: take(name, parameter)
                )
            )
        wide = [x.to(math_dtype(x.dtype)) for x in rows()]
        parts = [(x * torch.arange(x.numel()).sin().view_as(x).to(x)).sum() for x in wide]
        if parts and parts[0].requires_grad:
            torch.stack(parts).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.grad = kept[name]
    return found


def _tree_tokens(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and positions [N] of the tree; siblings begin with different tokens."""
    ids = [
        probe_ids(model, len(segment), start=1 + 7 * segment.position + number)
        for number, segment in enumerate(_TREE)
    ]
    positions = [torch.arange(len(segment)) + segment.position for segment in _TREE]
    return torch.cat(ids), torch.cat(positions).to(model.device)


def _leaf_places(device: torch.device) -> list[torch.Tensor]:
    """Where the tokens of each sequence stand in the row."""
    above = paths(_TREE)
    return [
        torch.cat([torch.arange(run.start, run.stop, device=device) for run in above[leaf]])
        for leaf in _LEAVES
    ]


def agree(mine_RV: torch.Tensor, reference_RV: torch.Tensor) -> bool:
    """Whether logits are equal up to rounding; never where either is not finite."""
    size = 1.0 + reference_RV.abs().max().item()
    tolerance = _TOLERANCES.get(reference_RV.dtype, 1e-2) * size
    difference_R = (mine_RV - reference_RV).abs().amax(dim=-1)
    most = (difference_R <= tolerance).float().mean().item() >= _MOST
    return most and bool((difference_R <= _CHAOS * tolerance).all())
