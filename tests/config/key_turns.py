"""For each setting another value, what it needs around it to matter, and how its effect is seen.

Keyed by `Class.field`; a field of a base class serves every class that inherits it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from key_observers import (
    discovered,
    isolated,
    judged,
    learned,
    loaded,
    mirrored,
    placed,
    sampled_with,
    trained,
    trained_single_turn,
    worked,
)

from sdpo.config.schema import RunConfig

Observe = Callable[[RunConfig], Any]

BASE = (
    "run={folder}/run", "model.name={folder}/model", "model.device=cpu", "model.dtype=float32",
    "steps=2", "rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.max_prompt_tokens=300",
    "rollout.max_completion_tokens=8", "eval.samples=1", "eval.max_tasks=1", "checkpoint.every=0",
    "optim.lr=1e-2",
    "discover.budget=4", "discover.batch=2", "discover.seeds=1",
    "discover.window_tokens=400",
)  # fmt: skip
"""Settings under everything that is observed; `{folder}` is the test's world."""

LEARNING = ("rollout.tasks_per_step=4",)
OFF_POLICY = (*LEARNING, "optim.updates_per_step=2", "optim.lr=3e-2")

NEEDS = {
    "CodeEnv": ("env.tasks={folder}/code.jsonl", "env.sandbox=none"),
    "ChoiceEnv": ("env.tasks={folder}/choice.jsonl", "env.eval_fraction=0.5"),
    "ToolsEnv": ("env.tasks={folder}/tools.jsonl", "env.eval_fraction=0.5"),
    "MathEnv": ("env.tasks={folder}/math.jsonl", "env.eval_fraction=0.5"),
    "CustomEnv": ("env.path={folder}/custom.py:ENV",),
    # A refresh within the steps that are watched, and a reward that rises before the second.
    "Snapshot": ("teacher.schedule.every=2",),
    "Gated": ("teacher.schedule.every=2", "steps=5"),
    "Select": ("discover.select.pass_at=4",),
    "Rlcsd": ("objective.tau=0.1",),
}
"""What a variant needs to be itself, by class."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The other value as a TOML literal, settings that give both values an occasion, the
    observer."""

    value: str
    needs: tuple[str, ...] = ()
    observe: Observe = learned


def turn(value: str, *needs: str, observe: Observe = learned) -> Turn:
    return Turn(value=value, needs=needs, observe=observe)


CANARY = ("steps=12", "rollout.tasks_per_step=1", "optim.lr=1e-5", "canaries.patience=2")

TURNS = {
    "RunConfig.seed": turn("1", observe=trained_single_turn),
    "RunConfig.steps": turn("3", observe=trained_single_turn),
    "RunConfig.run": turn("{folder}/elsewhere", observe=placed),
    "Model.name": turn("{folder}/other_model", observe=loaded),
    "Model.dtype": turn("bfloat16", observe=loaded),
    "Model.device": turn("cuda:63", observe=loaded),
    "Model.chat_template_kwargs": turn("{{aloud = true}}", observe=loaded),
    "Lora.rank": turn("2", observe=loaded),
    "Lora.alpha": turn("64", observe=loaded),
    "CodeEnv.tasks": turn("{folder}/other_code.jsonl", observe=judged),
    "CodeEnv.worked_example": turn("true", observe=judged),
    "CodeEnv.sandbox": turn("auto", observe=isolated),
    "CodeEnv.reward": turn("fraction", observe=judged),
    "CodeEnv.stop_after_failures": turn("1", observe=judged),
    "CodeEnv.max_feedback_chars": turn("60", observe=judged),
    "ChoiceEnv.tasks": turn("{folder}/other_choice.jsonl", observe=judged),
    "ChoiceEnv.eval_fraction": turn("0.1", observe=judged),
    "ToolsEnv.tasks": turn("{folder}/other_tools.jsonl", observe=judged),
    "ToolsEnv.eval_fraction": turn("0.1", observe=judged),
    "MathEnv.tasks": turn("{folder}/other_math.jsonl", observe=judged),
    "MathEnv.eval_fraction": turn("0.1", observe=judged),
    "CustomEnv.path": turn("{folder}/other_custom.py:ENV", observe=judged),
    "LocalEngine.max_sequences": turn("2", observe=worked),
    "VllmEngine.memory_fraction": turn("0.9", observe=sampled_with),
    "Rollout.tasks_per_step": turn("1", observe=trained_single_turn),
    "Rollout.group_size": turn("3", observe=trained_single_turn),
    "Rollout.max_prompt_tokens": turn("5", observe=trained_single_turn),
    "Rollout.max_completion_tokens": turn("7", observe=trained_single_turn),
    "Rollout.temperature": turn("0.7", observe=trained_single_turn),
    "Rollout.ignore_eos": turn("true", observe=trained_single_turn),
    "Rollout.max_turns": turn("3", observe=trained),
    "Context.demonstration": turn("none"),
    "Context.own_demonstration": turn("true"),
    "Context.feedback": turn("always"),
    "Context.attempt": turn("true"),
    "Context.plain": turn("true"),
    "Context.layout": turn("turns"),
    "Context.max_tokens": turn("300"),
    "Ema.rate": turn("0.5"),
    "Snapshot.every": turn("1"),
    "Gated.every": turn("1"),
    "Gated.min_gain": turn("0.9"),
    "Gated.max_tail_growth": turn("0.5"),
    "TrustRegion.mix": turn("0.5"),
    "Optim.lr": turn("2e-2"),
    "Optim.warmup_steps": turn("10"),
    "Optim.weight_decay": turn("0.5"),
    "Optim.grad_clip": turn("1e-9"),
    "Optim.updates_per_step": turn("2"),
    "Optim.micro_batch_tokens": turn("40", observe=worked),
    "Optim.gradient_checkpointing": turn("true", observe=worked),
    "Eval.every": turn("1", observe=trained_single_turn),
    "Eval.samples": turn("2", observe=trained_single_turn),
    "Eval.max_tasks": turn("2", observe=trained_single_turn),
    "Eval.probe_tasks": turn("2", observe=trained_single_turn),
    "Eval.temperature": turn("1.5", observe=trained_single_turn),
    "Eval.top_p": turn("0.01", observe=trained_single_turn),
    "Checkpoint.every": turn("1", observe=trained_single_turn),
    "Checkpoint.keep": turn("1", "checkpoint.every=1", observe=trained_single_turn),
    "Credit.rollouts": turn("1", observe=trained_single_turn),
    "Canaries.action": turn("stop", *CANARY, observe=trained_single_turn),
    "Canaries.patience": turn("3", *CANARY, observe=trained_single_turn),
    "Log.backends": turn('["trackio"]', observe=mirrored),
    "Discover.methods": turn('["best_of_k"]', observe=discovered),
    "Discover.tasks": turn('["t2"]', observe=discovered),
    "Discover.split": turn("train", observe=discovered),
    "Discover.budget": turn("3", observe=discovered),
    "Discover.batch": turn("4", observe=discovered),
    "Discover.restart_every": turn("1", "discover.budget=6", observe=discovered),
    "Discover.seeds": turn("2", observe=discovered),
    "Discover.select": turn("{{pass_at = 4}}", observe=discovered),
    "Discover.window_tokens": turn("140", observe=discovered),
    "Discover.show_attempts": turn("true", observe=discovered),
    "Select.pass_at": turn("1", "discover.select.below=1", observe=discovered),
    "Select.below": turn("0.0", observe=discovered),
    # Objectives
    "_Support.top_k": turn("5"),
    "_Support.tail": turn("false", "objective.divergence.top_k=20"),
    "JSD.beta": turn("0.1"),
    "PositionWeighting.w_min": turn("0.75"),
    "PositionWeighting.tau": turn("0.8"),
    "PositionWeighting.s": turn("0.5"),
    "EntropyWeighting.beta": turn("3"),
    "PolicyGradient.kind": turn("cispo", *OFF_POLICY),
    "PolicyGradient.eps_low": turn("0.9", *OFF_POLICY),
    "PolicyGradient.eps_high": turn("5", *OFF_POLICY),
    "PolicyGradient.ratio_cap": turn("0.5"),
    "PolicyGradient.normalization": turn("sequence"),
    "PolicyGradient.std": turn("true"),
    "_Objective.kl_coefficient": turn("0.3"),
    "_Distilling.granularity": turn("token"),
    "_Distilling.advantage_clip": turn("1e-3"),
    "_Distilling.ratio_cap": turn("0.5"),
    "_Distilling.importance": turn(
        "logit", *OFF_POLICY, "objective.divergence.type=reverse_kl", "objective.divergence.top_k=9"
    ),
    "_Distilling.sequence_estimator": turn("0.5"),
    "Hybrid.mix": turn("0.2"),
    "Rlsd.mix": turn("0.9"),
    "Rlsd.decay_steps": turn("1"),
    "Rlsd.clip": turn("0.01"),
    "Rlcsd.scale": turn("0.3"),
    "Rlcsd.mix": turn("0.1"),
    "Rlcsd.tau": turn("5"),
    "Rlcsd.num_negatives": turn("1"),
    "Sdpg.coefficient": turn("0.5"),
}

TYPES: dict[str, Turn] = {
    "model.adapter": turn("", observe=loaded),
    "env": turn("", observe=judged),
    "rollout.engine": turn("", observe=sampled_with),
    "teacher.schedule": turn("", "steps=5"),
    "objective": turn(""),
    "objective.divergence": turn(""),
    "objective.weighting": turn(""),
}
"""How the choice of a variant is seen, by section."""
