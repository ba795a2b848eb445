"""What a run says first: which model trains where, on what, and what happens before the first
step."""

from __future__ import annotations

from sdpo.config.schema import LoraConfig, RunConfig
from sdpo.machine import usable_cores
from sdpo.rollouts.sampler import Sampler


def opening_line(sampler: Sampler, config: RunConfig) -> str:
    """One line for the user, once model and tasks are there."""
    policy = sampler.policy
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    dtype = str(policy.dtype).removeprefix("torch.")
    where = str(policy.device)
    if policy.device.type == "cpu":
        cores = usable_cores()
        where = f"cpu ({cores} {'core' if cores == 1 else 'cores'})"
    adapter = config.model.adapter
    lora = f", LoRA of rank {adapter.rank}" if isinstance(adapter, LoraConfig) else ""
    num_train, num_eval = (len(sampler.env.load(split)) for split in ("train", "eval"))
    evaluated = min(num_eval, config.eval.max_tasks or num_eval)
    per_step = config.rollout.tasks_per_step * config.rollout.group_size
    return (
        f"{policy.name}: {size(parameters)} weights{lora}, {dtype}, {where}; {num_train} tasks, "
        f"{config.steps} steps of {per_step} attempts; first an evaluation: {evaluated} held-out "
        f"tasks x {config.eval.samples}"
    )


def size(count: int) -> str:
    """A number of weights as people say it: `135M`, `0.5B`, `141k`."""
    for unit, divisor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= divisor * 0.5:
            scaled = count / divisor
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return str(count)
