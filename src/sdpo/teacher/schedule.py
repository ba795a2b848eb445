"""Whose weights the self-teacher has: live, frozen, EMA, snapshot, gated, trust region (A.2), or by
a function of the user's own.

A schedule keeps tensors for the *trainable* parameters only and lends them to the one module by
swapping storage pointers (`applied`), so a teacher costs its weights and never a second module;
with LoRA that is megabytes. It reads no batch and computes no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import torch

from sdpo.config.teacher import (
    CustomScheduleConfig,
    EmaConfig,
    FrozenConfig,
    GatedConfig,
    LiveConfig,
    ScheduleConfig,
    SnapshotConfig,
    TrustRegionConfig,
)
from sdpo.custom import load_function
from sdpo.errors import CheckpointError, ConfigError
from sdpo.metrics import names
from sdpo.models.weights import Weights, copy_weights


class TeacherSchedule:
    """The teacher's weights and how they follow the student.

    `weights` is None for a live teacher. `initial` are the starting weights, kept only when
    something needs them (frozen, trust region, KL to the initial model).
    """

    def __init__(
        self, config: ScheduleConfig, student: torch.nn.Module, *, keep_initial: bool = False
    ) -> None:
        """Reads `student` as the initial model."""
        self.config = config
        needs_initial = keep_initial or isinstance(config, (FrozenConfig, TrustRegionConfig))
        self.initial: Weights | None = copy_weights(student) if needs_initial else None
        self._average: dict[str, torch.Tensor] | None = None
        self._weights: Weights | None = None
        self._share_of = None
        match config:
            case LiveConfig() | TrustRegionConfig():
                pass
            case FrozenConfig():
                self._weights = self.initial
            case SnapshotConfig() | GatedConfig():
                self._weights = copy_weights(student)
            case EmaConfig():
                self._begin_average(student)
            case CustomScheduleConfig():
                self._share_of = share_function(config)
                self._begin_average(student)
            case _:
                assert_never(config)
        self._custom: dict[str, Any] = {}
        """What a function of the user's own remembers."""
        self._window: list[tuple[float, float]] = []
        self._last_refresh: tuple[float, float] | None = None
        self.is_frozen = False
        """Set by a canary's rollback: from then on the teacher stays as it is."""

    @property
    def weights(self) -> Weights | None:
        """What the teacher computes with; None means the student's own current weights."""
        return self._weights

    @property
    def trust(self) -> float | None:
        """Share of the student in the trust-region target, None without a trust region."""
        return self.config.mix if isinstance(self.config, TrustRegionConfig) else None

    def after_step(
        self,
        student: torch.nn.Module,
        masters: Weights,
        metrics: Mapping[str, float],
        *,
        has_moved: bool = True,
    ) -> bool:
        """Follow one whole step, however many updates it had; true when the teacher was refreshed
        from the student. `masters` are the student's weights in float32, unrounded; `has_moved`
        says whether the step changed them. Raises `ConfigError` for a share that is none."""
        if self.is_frozen:
            return False
        match self.config:
            case LiveConfig() | TrustRegionConfig() | FrozenConfig():
                return False
            case EmaConfig(rate=rate):
                if has_moved:
                    self._average_in(masters, rate)
                return False
            case CustomScheduleConfig():
                share = self._custom_share(self.config, metrics)
                if share:
                    self._average_in(masters, share)
                return share == 1.0
            case SnapshotConfig() | GatedConfig():
                return self._refresh(self.config, student, metrics)
            case _:
                assert_never(self.config)

    def _begin_average(self, student: torch.nn.Module) -> None:
        self._weights = copy_weights(student)
        self._average = {
            name: w if w.dtype == torch.float32 else w.float() for name, w in self._weights.items()
        }

    @torch.no_grad()
    def _average_in(self, masters: Weights, share: float) -> None:
        """theta' <- (1 - share) theta' + share theta, in float32 and in place."""
        assert self._average is not None
        assert self._weights is not None
        for name, master in masters.items():
            average = self._average[name]
            average.lerp_(master.detach().to(average.device, torch.float32), share)
            if self._weights[name] is not average:
                self._weights[name].copy_(average)

    def _custom_share(self, config: CustomScheduleConfig, metrics: Mapping[str, float]) -> float:
        assert self._share_of is not None
        share = self._share_of(metrics, self._custom)
        named = f"teacher.schedule.path = {config.path!r}"
        if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
            raise ConfigError(
                f"{named} gave {share!r}; return the share of the student in the teacher, "
                "a number from 0 to 1"
            )
        if not _is_plain(self._custom):
            raise ConfigError(
                f"{named} keeps {self._custom!r} in `state`; keep numbers, strings, None and lists "
                "or dicts of these, which a checkpoint can hold"
            )
        return float(share)

    def _refresh(
        self,
        config: SnapshotConfig | GatedConfig,
        student: torch.nn.Module,
        metrics: Mapping[str, float],
    ) -> bool:
        """Copy the student at the end of a window, if the gate opens."""
        self._window.append((metrics[names.TRAIN_REWARD], metrics[names.rollouts_length(90, "")]))
        if len(self._window) < config.every:
            return False
        opens = not isinstance(config, GatedConfig) or self._gate_opens(config)
        self._window.clear()
        if opens:
            self._weights = copy_weights(student)
        return opens

    def _gate_opens(self, config: GatedConfig) -> bool:
        """Reward rose since the last refresh and the length tail is safe; the first window sets the
        standard."""
        reward = sum(r for r, _ in self._window) / len(self._window)
        tail = sum(length for _, length in self._window) / len(self._window)
        if self._last_refresh is None:
            self._last_refresh = (reward, tail)
            return False
        last_reward, last_tail = self._last_refresh
        opens = (
            reward > last_reward + config.min_gain and tail <= last_tail * config.max_tail_growth
        )
        if opens:
            self._last_refresh = (reward, tail)
        return opens

    def freeze(self, student: torch.nn.Module) -> None:
        """Keep the teacher as it is from now on; where it has the student's own weights (live, the
        student's part of a trust region) it gets a copy of them."""
        self.is_frozen = True
        if self._weights is None:
            self._weights = copy_weights(student)

    def state(self) -> dict[str, object]:
        """Everything exact resume needs; the student's own weights are the checkpoint's
        business."""
        return {
            "type": self.config.type,
            "initial": None if self.initial is None else dict(self.initial),
            "weights": None if self._weights is None else dict(self._weights),
            "average": self._average,
            "window": self._window,
            "last_refresh": self._last_refresh,
            "custom": self._custom,
            "is_frozen": self.is_frozen,
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Continue from `state()`. Raises `CheckpointError` when it belongs to another kind of
        schedule."""
        if state["type"] != self.config.type:
            raise CheckpointError(
                f"checkpoint has teacher.schedule.type = {state['type']!r}, "
                f"the run has {self.config.type!r}"
            )
        self.initial = state["initial"]  # ty: ignore[invalid-assignment]
        self._weights = state["weights"]  # ty: ignore[invalid-assignment]
        self._average = state["average"]  # ty: ignore[invalid-assignment]
        if self._average is not None and self._weights is not None:
            # In float32 the average *is* the teacher; restore the sharing so that one update moves
            # both.
            self._weights = {
                name: self._average[name] if w.dtype == torch.float32 else w
                for name, w in self._weights.items()
            }
        self._window = list(state["window"])  # ty: ignore[invalid-argument-type]
        self._last_refresh = state["last_refresh"]  # ty: ignore[invalid-assignment]
        self._custom = dict(state["custom"])  # ty: ignore[no-matching-overload]
        self.is_frozen = bool(state["is_frozen"])


def share_function(config: CustomScheduleConfig) -> Callable[..., object]:
    """The function that `config` names. Raises `ConfigError`."""
    return load_function("teacher.schedule", config.path, config.options, "metrics", "state")


def _is_plain(value: object) -> bool:
    """Whether a checkpoint can hold `value`."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
