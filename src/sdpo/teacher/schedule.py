"""Whose weights the self-teacher has: live, frozen, EMA, snapshot, gated, trust region (A.2).

A schedule keeps tensors for the *trainable* parameters only and lends them to the one module by
swapping storage pointers (`applied`), so a teacher costs its weights and never a second module;
with LoRA that is megabytes. It reads no batch and computes no loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sdpo.config.teacher import (
    EmaConfig,
    FrozenConfig,
    GatedConfig,
    LiveConfig,
    ScheduleConfig,
    SnapshotConfig,
    TrustRegionConfig,
)
from sdpo.errors import CheckpointError
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
        match config:
            case LiveConfig() | TrustRegionConfig():
                pass
            case FrozenConfig():
                self._weights = self.initial
            case SnapshotConfig() | GatedConfig():
                self._weights = copy_weights(student)
            case EmaConfig():
                self._weights = copy_weights(student)
                self._average = {
                    name: w if w.dtype == torch.float32 else w.float()
                    for name, w in self._weights.items()
                }
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
        self, student: torch.nn.Module, masters: Weights, *, mean_reward: float, length_p90: float
    ) -> bool:
        """Follow one whole step, however many updates it had; true when the teacher was refreshed
        from the student. `masters` are the student's weights in float32, unrounded; empty when the
        step changed none."""
        if self.is_frozen:
            return False
        if isinstance(self.config, EmaConfig):
            self._average_in(masters)
            return False
        if not isinstance(self.config, (SnapshotConfig, GatedConfig)):
            return False
        self._window.append((mean_reward, length_p90))
        if len(self._window) < self.config.every:
            return False
        if isinstance(self.config, GatedConfig) and not self._gate_opens(self.config):
            self._window.clear()
            return False
        self._window.clear()
        self._weights = copy_weights(student)
        return True

    @torch.no_grad()
    def _average_in(self, masters: Weights) -> None:
        """theta' <- (1 - rate) theta' + rate theta, in float32 and in place."""
        assert isinstance(self.config, EmaConfig)
        assert self._average is not None
        assert self._weights is not None
        for name, master in masters.items():
            average = self._average[name]
            average.lerp_(master.detach().float(), self.config.rate)
            if self._weights[name] is not average:
                self._weights[name].copy_(average)

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
        self.is_frozen = bool(state["is_frozen"])
