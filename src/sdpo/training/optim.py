"""AdamW with float32 master weights, float32 gradient accumulation and one clip of the global norm.

Parameters in bfloat16 keep a float32 copy here, and gradients of every micro-batch are added in
float32 as autograd produces them, so the sum does not depend on the number of micro-batches beyond
rounding. For float32 parameters that sum is autograd's own `.grad`.

Sharded parameters are float32: their master is this process's part itself, and FSDP adds the
gradients of all processes to its gradient after every micro-batch. With `optim.offload` masters are
copies on the CPU, whatever the parameters are.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor

from sdpo.config.schema import OptimConfig
from sdpo.errors import NonFiniteLossError
from sdpo.models.weights import own_part, reshard, trainable
from sdpo.parallel import GradientSums, Parallel


class Optimizer:
    """Owns the master weights and gradients of a module's trainable parameters.

    Memory per trained weight: 8 bytes of moments and 4 of gradient, plus 4 for the master copy when
    the module is not float32. With `optim.offload` that is CPU memory, the gradient of sharded
    weights aside.
    """

    def __init__(self, config: OptimConfig, module: torch.nn.Module) -> None:
        self._config = config
        self._module = module
        self._parameters = trainable(module)
        self._masters = {
            name: _master(p, offload=config.offload) for name, p in self._parameters.items()
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
        self.num_updates = 0
        """Updates that changed the weights; also the version that the engine publishes."""
        self.num_steps = 0
        """Training steps completed, which warm-up counts as the paper's scheduler does."""
        self.lr_scale = 1.0
        """Factor on the learning rate; a canary's rollback halves it."""
        self._sums: GradientSums | None = None
        """Gradients on their way to the other ranks."""

    @property
    def lr(self) -> float:
        """The rate of this step's updates: linear warm-up over steps t, then lr / (1 + t / d)."""
        warmup, decay = self._config.warmup_steps, self._config.decay_steps
        ramp = min(1.0, (self.num_steps + 1) / warmup) if warmup else 1.0
        fall = 1 + max(0, self.num_steps - warmup) / decay if decay else 1.0
        return self._config.lr * self.lr_scale * ramp / fall

    @property
    def masters(self) -> Mapping[str, torch.Tensor]:
        """The trained weights by name, in float32 and unrounded."""
        return self._masters

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the trained weights as AdamW numbers them in its state."""
        names = {id(master): name for name, master in self._masters.items()}
        return tuple(names[id(p)] for g in self._adamw.param_groups for p in g["params"])

    @contextmanager
    def accumulating(self) -> Generator[None]:
        """Inside the block, `backward()` adds the gradient of each parameter that has a master copy
        to its float32 sum as soon as it is computed, and frees it: the narrow gradients of a whole
        model never exist at once. The gradient of a float32 parameter already is its sum.

        Enter it before the first forward pass, since it allocates what outlives the pass.
        """
        self._make_room()

        def add(parameter: torch.nn.Parameter, master: torch.nn.Parameter) -> None:
            assert parameter.grad is not None
            assert master.grad is not None
            if parameter is not master:
                master.grad.add_(parameter.grad.to(master.device))
                parameter.grad = None
            if self._sums is not None:
                self._sums.complete(master.grad)

        handles = [
            parameter.register_post_accumulate_grad_hook(
                lambda parameter, master=self._masters[name]: add(parameter, master)
            )
            for name, parameter in self._parameters.items()
            if not isinstance(parameter, DTensor)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin_sums(self, parallel: Parallel) -> None:
        """The next backward pass is this rank's last of an update: what it completes travels to
        the other ranks while it goes on. Not where weights are sharded, adapters or not: ranks
        gather them together, in passes of which some have nothing to train."""
        if parallel.world_size > 1:
            self._sums = GradientSums(self._whole_gradients())

    @torch.no_grad()
    def finish_sums(self, parallel: Parallel) -> None:
        """Complete the gradient of an update, before anything else is exchanged: afterwards every
        rank has the sum over all, whatever its micro-batches reached. Sharded weights have theirs
        since the backward pass. Collective."""
        self._make_room()
        if self._sums is None:
            parallel.sum_gradients(self._whole_gradients())
        else:
            self._sums.finish()
        self._sums = None
        if not self._config.offload:
            return
        for name, parameter in self._parameters.items():
            if isinstance(parameter, DTensor):
                assert parameter.grad is not None
                self._masters[name].grad = own_part(parameter.grad).to("cpu")
                parameter.grad = None

    def _whole_gradients(self) -> list[torch.Tensor]:
        """The gradient sums of weights that are not sharded."""
        return [
            master.grad
            for name, master in self._masters.items()
            if master.grad is not None and not isinstance(self._parameters[name], DTensor)
        ]

    @torch.no_grad()
    def update(self, parallel: Parallel, *, where: str) -> float:
        """One AdamW step on gradients that are complete (`finish_sums`); the global norm before
        clipping. A gradient that is zero on all ranks changes nothing.

        Raises `NonFiniteLossError` before any weight changes when the norm is not finite; `where`
        names step and tasks.
        """
        gradients = [m.grad for m in self._masters.values() if m.grad is not None]
        norm = self._norm(parallel)
        if not math.isfinite(norm):
            self.clear()
            raise NonFiniteLossError(
                f"{where}: the gradient norm is {norm}; no weight was changed. "
                "Lower optim.lr, or resume from the last checkpoint with another seed"
            )
        if norm == 0.0:
            # AdamW would still move the weights, by its momentum and by decay.
            self.clear()
            return norm
        if norm > self._config.grad_clip:
            torch._foreach_mul_(gradients, self._config.grad_clip / norm)
        for group in self._adamw.param_groups:
            group["lr"] = self.lr
        # First: weights of which an error leaves some moved belong to no step.
        self.num_updates += 1
        self._adamw.step()
        for name, master in self._masters.items():
            self._take(name, master)
        reshard(self._module)
        self.clear()
        return norm

    def _take(self, name: str, master: torch.Tensor) -> None:
        """Give the parameter `name` the value of its master, where that is a copy."""
        own = own_part(self._parameters[name])
        if own.data_ptr() != master.data_ptr():
            own.copy_(master)

    def _norm(self, parallel: Parallel) -> float:
        """The norm of the whole gradient."""
        norm = float(torch.nn.utils.get_total_norm(self._whole_gradients()))
        sharded = {name: p for name, p in self._parameters.items() if isinstance(p, DTensor)}
        if not sharded:
            return norm
        shards = [g for name in sharded if (g := self._masters[name].grad) is not None]
        # Nodes repeat each other's parts.
        copies = parallel.world_size // next(iter(sharded.values())).device_mesh.size(-1)
        (squares,) = parallel.sum([float(torch.nn.utils.get_total_norm(shards)) ** 2])
        return math.sqrt(squares / copies + norm**2)

    def _make_room(self) -> None:
        """The gradient sums, allocated as zeros where there are none yet, like the moments before
        the first update. Allocated lazily they would land between activations and fragment the
        heap, so that a CPU's allocator could not reuse the memory around them."""
        for name, master in self._masters.items():
            parameter = self._parameters[name]
            if isinstance(parameter, DTensor):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if not self._config.offload:
                    master.grad = own_part(parameter.grad)
            elif master.grad is None:
                master.grad = torch.zeros_like(master)
            if master not in self._adamw.state:
                self._adamw.state[master] = {
                    "step": torch.zeros((), dtype=torch.float32, device=master.device),
                    "exp_avg": torch.zeros_like(master),
                    "exp_avg_sq": torch.zeros_like(master),
                }

    def clear(self) -> None:
        """Forget the accumulated gradients."""
        self._sums = None
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
            "num_steps": self.num_steps,
            "lr_scale": self.lr_scale,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, object]) -> None:
        """Continue from `state()`; the module's own weights must already be the checkpoint's."""
        self._adamw.load_state_dict(state["adamw"])  # ty: ignore[invalid-argument-type]
        for name, master in state["masters"].items():  # ty: ignore[missing-attribute]
            self._masters[name].copy_(master)
            self._take(name, self._masters[name])
        self.num_updates = int(state["num_updates"])  # ty: ignore[invalid-argument-type]
        self.num_steps = int(state["num_steps"])  # ty: ignore[invalid-argument-type]
        self.lr_scale = float(state["lr_scale"])  # ty: ignore[invalid-argument-type]


def _master(parameter: torch.nn.Parameter, *, offload: bool) -> torch.nn.Parameter:
    """What AdamW moves for `parameter`: itself if that is float32 and whole, else a float32
    copy, with `offload` always, on the CPU; of a sharded one this process's part, in the same
    memory."""
    own = own_part(parameter)
    if offload:
        return torch.nn.Parameter(own.to("cpu", torch.float32, copy=True))
    if isinstance(parameter, DTensor):
        return torch.nn.Parameter(own)
    return parameter if own.dtype == torch.float32 else torch.nn.Parameter(own.float())
