"""AdamW with float32 master weights, float32 gradient accumulation and one clip of the global norm.

Parameters in bfloat16 keep a float32 copy here, and gradients of every micro-batch are added in
float32 as autograd produces them, in the order of micro-batches whichever is ready first: the sum
does not depend on the number of micro-batches beyond rounding, nor on threads at all.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch

from sdpo.config.schema import Optim
from sdpo.errors import NonFiniteLossError
from sdpo.teacher.schedule import trainable
from sdpo.training.parallel import Parallel


class _Turn(threading.local):
    """The micro-batch whose backward pass a thread is in. A device's own threads never hear of it
    and stay at 0, which adds at once: there is one pass at a time on a device."""

    number = 0


class _Sum:
    """The float32 sum of one parameter's gradients, in the order of turns: those that come too
    early wait, in their own type."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None
        self._next = 0
        self._early: dict[int, torch.Tensor | None] = {}
        self._lock = threading.Lock()

    def reserve(self, gradient: torch.Tensor | None) -> None:
        """Called before autograd puts a gradient where the caller of `add` finds it: nobody else
        may put one there in between."""
        if gradient is not None:
            self._lock.acquire()

    def add(self, turn: int, gradient: torch.Tensor) -> None:
        """Called after `reserve`, by the same thread."""
        try:
            if turn < self._next:
                self._add(gradient)
            else:
                self._early[turn] = gradient
                self._advance()
        finally:
            self._lock.release()

    def skip(self, turn: int) -> None:
        """Nothing more comes in this turn."""
        with self._lock:
            if turn >= self._next and turn not in self._early:
                self._early[turn] = None
                self._advance()

    def finished(self) -> torch.Tensor | None:
        """The sum, handed over; turns are counted from 0 again."""
        value, self.value, self._next = self.value, None, 0
        self._early.clear()
        return value

    def _advance(self) -> None:
        while self._next in self._early:
            gradient = self._early.pop(self._next)
            self._next += 1
            if gradient is not None:
                self._add(gradient)

    def _add(self, gradient: torch.Tensor) -> None:
        if self.value is None:
            self.value = gradient.float()
        else:
            self.value.add_(gradient)


class Optimizer:
    """Owns the master weights and gradients of a module's trainable parameters.

    Memory per trained weight: 8 bytes of moments and 4 of gradient, plus 4 for the master copy when
    the module is not float32.
    """

    def __init__(self, config: Optim, module: torch.nn.Module) -> None:
        self._config = config
        self._parameters = trainable(module)
        self._masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float())
            for name, p in self._parameters.items()
        }
        decayed = [m for m in self._masters.values() if m.ndim >= 2]
        plain = [m for m in self._masters.values() if m.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.lr,
            fused=True,
        )
        self._sums = {name: _Sum() for name in self._parameters}
        self._turn = _Turn()
        self.num_updates = 0
        self.lr_scale = 1.0
        """Factor on the learning rate; a canary's rollback halves it."""

    @property
    def lr(self) -> float:
        """The rate of the next update: linear warm-up, then constant."""
        warmup = self._config.warmup_steps
        ramp = min(1.0, (self.num_updates + 1) / warmup) if warmup else 1.0
        return self._config.lr * self.lr_scale * ramp

    @contextmanager
    def accumulating(self) -> Generator[None]:
        """Inside the block `backward()` adds the gradient of every parameter to its float32 sum and
        frees it, as soon as it is there: the narrow gradients of a whole model never exist at once.
        Threads that go backward at the same time say which `turn` is theirs.
        """
        handles = []
        for name, parameter in self._parameters.items():
            total, master = self._sums[name], self._masters[name]
            total.value, master.grad = master.grad, None
            take = functools.partial(self._take_gradient, total)
            handles.append(parameter.register_hook(total.reserve))
            handles.append(parameter.register_post_accumulate_grad_hook(take))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, total in self._sums.items():
                self._masters[name].grad = total.finished()

    def _take_gradient(self, total: _Sum, parameter: torch.nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        total.add(self._turn.number, gradient)

    @contextmanager
    def turn(self, number: int) -> Generator[None]:
        """A block for the `backward()` of micro-batch `number`, counted from 0: its gradients are
        added after those of the ones before it, whatever threads they come from. Every number must
        have its turn, also one without a gradient."""
        self._turn.number = number
        try:
            yield
        finally:
            self._turn.number = 0
            for total in self._sums.values():
                total.skip(number)

    @torch.no_grad()
    def update(self, parallel: Parallel, *, where: str) -> float:
        """One AdamW step on the accumulated gradients; the global norm before clipping.

        Raises `NonFiniteLossError` before any weight changes when the norm is not finite; `where`
        names step and tasks.
        """
        gradients = []
        for master in self._masters.values():
            # Every rank and every parameter takes part, whatever its micro-batches reached.
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            gradients.append(master.grad)
        parallel.sum_gradients(gradients)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.clear()
            raise NonFiniteLossError(
                f"{where}: the gradient norm is {norm}; no weight was changed. "
                "Lower optim.lr, or resume from the last checkpoint with another seed"
            )
        if norm > self._config.grad_clip:
            torch._foreach_mul_(gradients, self._config.grad_clip / norm)
        for group in self._adamw.param_groups:
            group["lr"] = self.lr
        self._adamw.step()
        for name, master in self._masters.items():
            parameter = self._parameters[name]
            if parameter is not master:
                parameter.copy_(master)
        self.clear()
        self.num_updates += 1
        return norm

    def clear(self) -> None:
        """Forget the accumulated gradients."""
        for parameter in (*self._parameters.values(), *self._masters.values()):
            parameter.grad = None

    def state(self) -> dict[str, object]:
        """Masters (where they differ from the parameters), moments and counters."""
        return {
            "adamw": self._adamw.state_dict(),
            "masters": {
                name: m.detach()
                for name, m in self._masters.items()
                if m is not self._parameters[name]
            },
            "num_updates": self.num_updates,
            "lr_scale": self.lr_scale,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, object]) -> None:
        """Continue from `state()`; the module's own weights must already be the checkpoint's."""
        self._adamw.load_state_dict(state["adamw"])  # ty: ignore[invalid-argument-type]
        for name, master in state["masters"].items():  # ty: ignore[missing-attribute]
            self._masters[name].copy_(master)
        self.num_updates = int(state["num_updates"])  # ty: ignore[invalid-argument-type]
        self.lr_scale = float(state["lr_scale"])  # ty: ignore[invalid-argument-type]
