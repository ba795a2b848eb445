"""The memory of one rank, part by part and phase by phase, from a config and a model's outline.

Bytes of weights follow `training/optim.py` and `teacher/schedule.py`, those of passes are counted
(`passes.py`), the key-value cache follows `engines/local.py`. What is counted is the most that
settings allow: every prompt and every completion as long as it may be.

With `parallel = "shard"` a rank has its part of every trained weight in float32, and of its
gradient, moments and teacher: one of as many as a node has cards. Adapters stay whole. While the
policy trains it gathers what belongs to no layer, and two layers: the one that computes and the one
that is fetched meanwhile. While it samples it holds the whole model in the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import torch

from sdpo.config.objective import SftConfig
from sdpo.config.schema import (
    FullWeightsConfig,
    LocalEngineConfig,
    RunConfig,
    ServerEngineConfig,
    VllmEngineConfig,
)
from sdpo.config.teacher import (
    CustomScheduleConfig,
    EmaConfig,
    FrozenConfig,
    GatedConfig,
    LiveConfig,
    SnapshotConfig,
    TrustRegionConfig,
)
from sdpo.engines.local import MAX_PREFILL_TOKENS
from sdpo.memory.cards import Cards
from sdpo.memory.passes import PassBytes, Passes, WeightBytes
from sdpo.models.device import default_dtype
from sdpo.models.outline import shape_of
from sdpo.models.policy import DTYPES
from sdpo.objectives import mixes_with_initial, reads_contexts
from sdpo.training.targets import BUDGET_WITHOUT_GRAPH, KEPT_BYTES

Mode = Literal["replicate", "shard"]

SAMPLED_LOGITS = 2
"""Logits of a decode step that are held at once: a float32 copy and its masses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a rank holds, in bytes.

    Example:
        plan_memory(load_config(["paper-lcb-sdpo"]), Cards.parse("8x80")).fits
    """

    config: RunConfig
    cards: Cards
    mode: Mode
    device: str
    dtype: torch.dtype
    weights: WeightBytes
    micro_batch: int
    """Packed tokens of the largest micro-batch."""
    parts: dict[str, int]
    """What is held, by name."""
    phases: dict[str, int]
    """The most that is held at once, by what the run is doing."""
    in_cpu: int
    """What `optim.offload` keeps in CPU memory for it."""
    checkpoint: int
    """Size on disk of one checkpoint, of all ranks together."""

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.cards.usable


class Outlines:
    """Passes of a recipe's model by what changes them; made once each.

    Example:
        Outlines(shape_file=None).of(config)
    """

    def __init__(self, shape_file: Path | None = None) -> None:
        self._shape_file = shape_file
        self._passes: dict[object, Passes] = {}

    def of(self, config: RunConfig) -> Passes:
        """Passes of the model of `config`."""
        device, dtype = device_of(config), dtype_of(config)
        key = (config.model.name, str(config.model.adapter), config.optim.gradient_checkpointing)
        if key not in self._passes:
            self._passes[key] = Passes(
                shape_of(config.model.name, self._shape_file),
                config.model,
                dtype,
                device,
                checkpointing=config.optim.gradient_checkpointing,
            )
        return self._passes[key]


def plan_memory(config: RunConfig, cards: Cards, outlines: Outlines | None = None) -> MemoryPlan:
    """What a run of `config` takes on each of `cards`. Loads no weights. Raises `ModelError` where
    the model's config is out of reach."""
    passes = (outlines or Outlines()).of(config)
    weights, mode = passes.weights(), mode_of(config, cards)
    micro_batch = max(config.optim.micro_batch_tokens, _longest(config))
    student = passes.student(micro_batch, micro_batch, sides=_sides(config))
    standing = _standing(config, weights, cards, mode)
    parts = {
        **(_without_offloaded(config, standing, mode) if config.optim.offload else standing),
        **_of_update(config, passes, student, cards, micro_batch),
        **_of_sampling(config, passes, weights, cards, mode),
    }
    gathered = _gathered(config, passes, weights, mode)
    if gathered:
        parts["gathered layers"] = gathered
    return MemoryPlan(
        config=config,
        cards=cards,
        mode=mode,
        device=device_of(config),
        dtype=dtype_of(config),
        weights=weights,
        micro_batch=micro_batch,
        parts=parts,
        phases=_phases(config, parts, passes, student, micro_batch),
        # Masters, gradient and two moments.
        in_cpu=2 * standing["Adam moments"] if config.optim.offload else 0,
        checkpoint=_checkpoint(config, weights, cards, mode),
    )


def device_of(config: RunConfig) -> str:
    """`cpu` where the recipe says so, else `cuda`."""
    return "cpu" if config.model.device == "cpu" else "cuda"


def dtype_of(config: RunConfig) -> torch.dtype:
    """What the model computes in; GPUs multiply bfloat16."""
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    is_cpu = device_of(config) == "cpu"
    return default_dtype(torch.device("cpu")) if is_cpu else torch.bfloat16


def mode_of(config: RunConfig, cards: Cards) -> Mode:
    """What `model.parallel` comes to on these cards."""
    match config.model.parallel:
        case "shard" | "shard_all":
            return "shard" if cards.ranks > 1 else "replicate"
        case "replicate":
            return "replicate"
        case "auto":
            is_full = isinstance(config.model.adapter, FullWeightsConfig)
            shards = cards.ranks > 1 and is_full and device_of(config) == "cuda"
            return "shard" if shards else "replicate"
        case other:
            assert_never(other)


def _share(config: RunConfig, cards: Cards, mode: Mode) -> int:
    """Ranks that a sharded weight is spread over, as `models/sharding.py` does it."""
    if mode == "replicate":
        return 1
    is_within = config.model.parallel != "shard_all" and cards.per_node > 1
    return cards.per_node if is_within else cards.ranks


def _standing(config: RunConfig, weights: WeightBytes, cards: Cards, mode: Mode) -> dict[str, int]:
    """What is there from the first update on to the end of the run."""
    share = _share(config, cards, mode)
    is_split = share > 1 and isinstance(config.model.adapter, FullWeightsConfig)
    trained_share = share if is_split else 1
    wide = 4 * weights.num_trained // trained_share
    # A sharded weight is float32, its own master: a teacher's copy is as wide.
    copy = wide if is_split else weights.trained
    average = copy if is_split else weights.trained + 4 * _num_narrow(weights)
    teacher = initial = 0
    match config.teacher.schedule:
        case LiveConfig():
            pass
        case FrozenConfig() | SnapshotConfig() | GatedConfig():
            teacher = copy
        case TrustRegionConfig():
            initial = copy
        case EmaConfig() | CustomScheduleConfig():
            teacher = average
        case other:
            assert_never(other)
    if config.objective.kl_coefficient > 0 or mixes_with_initial(config.objective):
        # A frozen teacher is the initial model.
        initial = 0 if isinstance(config.teacher.schedule, FrozenConfig) else copy
    frozen = (weights.all - weights.trained) // share
    return {
        "weights": frozen + (0 if is_split else weights.trained),
        "gradients": wide,
        "float32 masters": wide if is_split else 4 * _num_narrow(weights),
        "Adam moments": 2 * wide,
        "teacher": teacher,
        "initial weights": initial,
    }


def _without_offloaded(config: RunConfig, standing: dict[str, int], mode: Mode) -> dict[str, int]:
    """What a card keeps of it: of sharded weights the float32 parameters themselves, which are
    their own masters, and their gradient. Adapters are never sharded."""
    moved = ("Adam moments",)
    if mode == "replicate" or not isinstance(config.model.adapter, FullWeightsConfig):
        moved = ("gradients", "float32 masters", "Adam moments")
    return {name: 0 if name in moved else size for name, size in standing.items()}


def _num_narrow(weights: WeightBytes) -> int:
    """Trained weights in bfloat16."""
    return weights.narrow // torch.bfloat16.itemsize


def _of_update(
    config: RunConfig, passes: Passes, student: PassBytes, cards: Cards, micro_batch: int
) -> dict[str, int]:
    """Of a micro-batch and of what it is compared with."""
    rows = samples_of_update(config, cards) * config.rollout.max_completion_tokens
    kept = rows * passes.hidden_row * _states(config)
    window = max(KEPT_BYTES, micro_batch * passes.hidden_row * _states(config))
    return {
        "activations": student.held,
        "head buffers": student.head,
        "teacher's hidden states": min(kept, window),
    }


def samples_of_update(config: RunConfig, cards: Cards) -> int:
    """Attempts that a rank trains on in one update, at most (`Learner.samples`)."""
    groups = -(-config.rollout.tasks_per_step // config.optim.updates_per_step)
    if groups >= cards.ranks:
        return -(-groups // cards.ranks) * config.rollout.group_size
    return -(-groups * config.rollout.group_size // cards.ranks)


def _compares(config: RunConfig) -> bool:
    """Whether the loss reads a teacher's hidden states."""
    return reads_contexts(config.objective) and not isinstance(config.objective, SftConfig)


def _reads_initial(config: RunConfig) -> bool:
    return config.objective.kl_coefficient > 0


def _states(config: RunConfig) -> int:
    """Hidden states that are kept for a token beside the student's."""
    mixes = isinstance(config.teacher.schedule, TrustRegionConfig) or mixes_with_initial(
        config.objective
    )
    return _compares(config) + _reads_initial(config) + mixes


def _sides(config: RunConfig) -> int:
    """Models whose logits the loss reads."""
    return 1 + _compares(config) + _reads_initial(config)


def _longest(config: RunConfig) -> int:
    """Tokens of the longest attempt under the student's prompt."""
    return config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens


def _of_sampling(
    config: RunConfig, passes: Passes, weights: WeightBytes, cards: Cards, mode: Mode
) -> dict[str, int]:
    """Of the engine, and of what it reads. vLLM's share is given back while the policy trains."""
    parts = {"whole weights to sample with": weights.all if mode == "shard" else 0}
    match config.rollout.engine:
        case VllmEngineConfig(memory_fraction=fraction):
            parts["vLLM's share"] = int(fraction * cards.gigabytes * 1e9)
        case LocalEngineConfig(max_sequences=rows):
            rollout = config.rollout
            # An evaluation fills all rows, whatever a step has, with fewer attempts a prompt.
            slots = -(-rows // min(rollout.group_size, config.eval.samples)) + 2
            columns = slots * rollout.max_prompt_tokens + rows * rollout.max_completion_tokens
            parts["key-value cache"] = columns * passes.cache_token()
            logits = rows * passes.vocabulary
            parts["sampled logits"] = logits * (dtype_of(config).itemsize + 4 * SAMPLED_LOGITS)
            if device_of(config) == "cpu":
                parts["weights laid out for sampling"] = weights.all
        case ServerEngineConfig():
            pass  # They sample on other cards.
        case other:
            assert_never(other)
    return parts


def _gathered(config: RunConfig, passes: Passes, weights: WeightBytes, mode: Mode) -> int:
    """Whole layers of sharded weights, with gradients that are not yet shared out, and the heads
    that the student is compared with."""
    if mode == "replicate":
        return 0
    is_full = weights.num_all == weights.num_trained
    heads = (_sides(config) - 1) * passes.vocabulary * passes.hidden_row
    return (weights.root + 2 * weights.layer) * (2 if is_full else 1) + heads


def _phases(
    config: RunConfig,
    parts: dict[str, int],
    passes: Passes,
    student: PassBytes,
    micro_batch: int,
) -> dict[str, int]:
    names = ("weights", "float32 masters", "Adam moments", "teacher", "initial weights")
    standing = sum(parts[name] for name in names)
    engine = ("vLLM's share", "key-value cache", "sampled logits", "whole weights to sample with",
              "weights laid out for sampling")  # fmt: skip
    sampling = standing + sum(parts.get(name, 0) for name in engine)
    if isinstance(config.rollout.engine, LocalEngineConfig):
        sampling += passes.forward(max(MAX_PREFILL_TOKENS, config.rollout.max_prompt_tokens))
    training = standing + parts["gradients"] + parts.get("gathered layers", 0)
    training += parts["teacher's hidden states"]
    phases = {"sampling": sampling}
    if _states(config):
        longest = config.teacher.context.max_tokens + config.rollout.max_completion_tokens
        read = max(BUDGET_WITHOUT_GRAPH * config.optim.micro_batch_tokens, longest)
        phases["teacher"] = training + passes.forward(read)
    phases["update"] = training + student.peak
    return phases


def _checkpoint(config: RunConfig, weights: WeightBytes, cards: Cards, mode: Mode) -> int:
    """The model's folder and the state for exact resume, of all ranks together."""
    is_full = isinstance(config.model.adapter, FullWeightsConfig)
    saved = weights.all if is_full else weights.trained
    standing = _standing(config, weights, cards, mode)
    ranks = _share(config, cards, mode) if is_full else 1
    state = ("float32 masters", "Adam moments", "teacher", "initial weights")
    # Sharded masters are more exact than the folder's weights and are saved beside them.
    return saved + ranks * sum(standing[name] for name in state)
