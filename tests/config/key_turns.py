"""For each setting another value, what it needs around it to matter, and how its effect is seen.

Keyed by `Class.field`; a field of a base class serves every class that inherits it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from key_observers import (
    asked,
    counted,
    discovered,
    isolated,
    judge_calls,
    judged,
    learned,
    learned_beside_flat,
    loaded,
    mirrored,
    placed,
    recorded,
    refused_or_sampled,
    sampled_with,
    trained,
    trained_single_turn,
    worked,
    written_by,
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
PER_LOGIT = (
    *OFF_POLICY, "objective.divergence.type=reverse_kl", "objective.divergence.top_k=9",
    "objective.importance=logit",
)  # fmt: skip
TOGGLE = "the other"
"""For a flag whose default differs between variants: what it is not."""

NEEDS = {
    "CodeEnvConfig": ("env.tasks={folder}/code.jsonl", "env.sandbox=none"),
    "ChoiceEnvConfig": ("env.tasks={folder}/choice.jsonl", "env.eval_fraction=0.5"),
    "ToolsEnvConfig": ("env.tasks={folder}/tools.jsonl", "env.eval_fraction=0.5"),
    "MathEnvConfig": ("env.tasks={folder}/math.jsonl", "env.eval_fraction=0.5"),
    "SqlEnvConfig": (
        "env.tasks={folder}/sql.jsonl",
        "env.eval_fraction=0.5",
        "env.sandbox=none",
        "env.time_limit_s=0.4",
    ),
    "LlmJudgeEnvConfig": (
        "env.tasks={folder}/choice.jsonl",
        "env.model=judge",
        "env.eval_fraction=0.5",
    ),
    "ReasoningGymEnvConfig": ("env.tasks=one", "env.size=2", "env.eval_size=2"),
    "CustomEnvConfig": ("env.path={folder}/custom.py:ENV",),
    # A refresh within the steps that are watched, and a reward that rises before the second.
    "SnapshotConfig": ("teacher.schedule.every=2",),
    "GatedConfig": ("teacher.schedule.every=2", "steps=5"),
    "SelectConfig": ("discover.select.pass_at=4",),
    "RlcsdConfig": ("objective.tau=0.1",),
    "CustomContextConfig": ("teacher.context.path={folder}/doors.py:shown",),
    "CustomScheduleConfig": ("teacher.schedule.path={folder}/doors.py:share",),
    "CustomObjectiveConfig": ("objective.path={folder}/doors.py:rule",),
    "CustomWeightingConfig": ("objective.weighting.path={folder}/doors.py:weights",),
    "CustomDivergenceConfig": ("objective.divergence.path={folder}/doors.py:divergence",),
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
    "RunConfig.seeds": turn("2", observe=placed),
    "RunConfig.steps": turn("3", observe=trained_single_turn),
    "RunConfig.run": turn("{folder}/elsewhere", observe=placed),
    "ModelConfig.name": turn("{folder}/other_model", observe=loaded),
    "ModelConfig.dtype": turn("bfloat16", observe=loaded),
    "ModelConfig.device": turn("cuda:63", observe=loaded),
    "ModelConfig.parallel": turn("shard", observe=counted),
    "ModelConfig.chat_template_kwargs": turn("{{aloud = true}}", observe=loaded),
    "LoraConfig.rank": turn("2", observe=loaded),
    "LoraConfig.alpha": turn("64", observe=loaded),
    # Refused where bitsandbytes is not installed.
    "LoraConfig.quantization": turn("nf4", observe=loaded),
    "LoraConfig.options": turn("{{target_modules = ['q_proj']}}", observe=loaded),
    "JudgingConfig.retries": turn("0", "env.retries=1", observe=judge_calls),
    "JudgingConfig.timeout_s": turn("0.05", "env.retries=0", observe=judge_calls),
    "JudgingConfig.concurrency": turn("2", "env.retries=0", observe=judge_calls),
    "JudgingConfig.max_unjudged": turn("0.05", "env.retries=0", observe=judge_calls),
    "CodeEnvConfig.tasks": turn("{folder}/other_code.jsonl", observe=judged),
    "CodeEnvConfig.contest_dates": turn(
        '["2025-02-01", "2025-05-01"]', "env.tasks={folder}/contests.jsonl", observe=judged
    ),
    "CodeEnvConfig.worked_example": turn("true", observe=judged),
    "CodeEnvConfig.sandbox": turn("auto", observe=isolated),
    "CodeEnvConfig.reward": turn("fraction", observe=judged),
    "CodeEnvConfig.stop_after_failures": turn("1", observe=judged),
    "CodeEnvConfig.max_feedback_chars": turn("60", observe=judged),
    "CodeEnvConfig.eval_tasks": turn("{folder}/other_code.jsonl", observe=judged),
    "ChoiceEnvConfig.eval_tasks": turn("{folder}/other_choice.jsonl", observe=judged),
    "ToolsEnvConfig.eval_tasks": turn("{folder}/other_tools.jsonl", observe=judged),
    "MathEnvConfig.eval_tasks": turn("{folder}/other_math.jsonl", observe=judged),
    "CodeEnvConfig.fields": turn('{{prompt = "id", id = "id"}}', observe=judged),
    "ChoiceEnvConfig.fields": turn('{{system = "prompt", prompt = "prompt"}}', observe=judged),
    "ToolsEnvConfig.fields": turn('{{system = "prompt", prompt = "prompt"}}', observe=judged),
    "MathEnvConfig.fields": turn('{{system = "problem", problem = "problem"}}', observe=judged),
    "ChoiceEnvConfig.tasks": turn("{folder}/other_choice.jsonl", observe=judged),
    "ChoiceEnvConfig.eval_fraction": turn("0.1", observe=judged),
    "ChoiceEnvConfig.grading": turn("paper", observe=judged),
    "ToolsEnvConfig.grading": turn("paper", observe=judged),
    "ToolsEnvConfig.tasks": turn("{folder}/other_tools.jsonl", observe=judged),
    "ToolsEnvConfig.eval_fraction": turn("0.1", observe=judged),
    "MathEnvConfig.tasks": turn("{folder}/other_math.jsonl", observe=judged),
    "MathEnvConfig.eval_fraction": turn("0.1", observe=judged),
    "SqlEnvConfig.tasks": turn("{folder}/other_sql.jsonl", observe=judged),
    "SqlEnvConfig.eval_fraction": turn("0.1", observe=judged),
    "SqlEnvConfig.tables": turn("shown", observe=judged),
    "SqlEnvConfig.evidence": turn("false", observe=judged),
    "SqlEnvConfig.worked_examples": turn("false", observe=judged),
    "SqlEnvConfig.hints": turn("none", observe=judged),
    "SqlEnvConfig.time_limit_s": turn("0.2", observe=judged),
    "SqlEnvConfig.max_rows": turn("3", observe=judged),
    "SqlEnvConfig.sandbox": turn("auto", observe=isolated),
    "SqlEnvConfig.max_feedback_chars": turn("60", observe=judged),
    "LlmJudgeEnvConfig.tasks": turn("{folder}/other_choice.jsonl", observe=asked),
    "LlmJudgeEnvConfig.eval_fraction": turn("0.1", observe=asked),
    "LlmJudgeEnvConfig.eval_tasks": turn("{folder}/other_choice.jsonl", observe=asked),
    "LlmJudgeEnvConfig.fields": turn('{{system = "prompt", prompt = "prompt"}}', observe=asked),
    "LlmJudgeEnvConfig.url": turn("http://elsewhere/v1", observe=asked),
    "LlmJudgeEnvConfig.model": turn("other", observe=asked),
    "LlmJudgeEnvConfig.principles": turn('["Be brief."]', observe=asked),
    "LlmJudgeEnvConfig.template": turn("{{attempt}}?", observe=asked),
    "LlmJudgeEnvConfig.reward": turn("score", observe=asked),
    "LlmJudgeEnvConfig.cache": turn("{folder}/replies.jsonl", observe=asked),
    "ReasoningGymEnvConfig.tasks": turn("one,two", observe=judged),
    "ReasoningGymEnvConfig.options": turn("{{words = 3}}", observe=judged),
    "ReasoningGymEnvConfig.size": turn("3", observe=judged),
    "ReasoningGymEnvConfig.eval_size": turn("3", observe=judged),
    "CustomEnvConfig.path": turn("{folder}/other_custom.py:ENV", observe=judged),
    "LocalEngineConfig.max_sequences": turn("2", observe=worked),
    "VllmEngineConfig.memory_fraction": turn("0.9", observe=sampled_with),
    # Refused where there is one process.
    "VllmEngineConfig.tensor_parallel": turn("2", observe=refused_or_sampled),
    "ServerEngineConfig.urls": turn('["http://a:1", "http://b:2"]', observe=sampled_with),
    "ServerEngineConfig.timeout_s": turn("3", observe=sampled_with),
    "FolderTransferConfig.path": turn("{folder}/elsewhere", observe=sampled_with),
    "NcclTransferConfig.address": turn("10.0.0.1", observe=sampled_with),
    "RolloutConfig.tasks_per_step": turn("1", observe=trained_single_turn),
    "RolloutConfig.group_size": turn("3", observe=trained_single_turn),
    "RolloutConfig.redraws": turn(
        "1", "rollout.max_completion_tokens=2", "rollout.group_size=2", observe=trained_single_turn
    ),
    "RolloutConfig.max_prompt_tokens": turn("5", observe=trained_single_turn),
    "RolloutConfig.max_completion_tokens": turn("7", observe=trained_single_turn),
    "RolloutConfig.temperature": turn("0.7", observe=trained_single_turn),
    "RolloutConfig.stop": turn(
        '["a", "b", "c", "d", "e", "f", "g", "h"]', observe=trained_single_turn
    ),
    # Refused beside the local engine; with servers: tests/unit/engines/test_staleness.py.
    "RolloutConfig.staleness": turn("1"),
    "RolloutConfig.max_turns": turn("2", "rollout.max_completion_tokens=80", observe=trained),
    "ContextConfig.demonstration": turn("none"),
    "ContextConfig.own_demonstration": turn("true"),
    "ContextConfig.feedback": turn("always"),
    "ContextConfig.attempt": turn("true"),
    "ContextConfig.control": turn("plain"),
    "ContextConfig.turn_feedback": turn(
        "never",
        "rollout.max_completion_tokens=80",
        "teacher.context.feedback=always",
        observe=trained,
    ),
    "ContextConfig.experience": turn("true"),
    "TemplatesConfig.demonstration": turn('"Look: {{demonstration}}"'),
    "TemplatesConfig.feedback": turn('"Said: {{feedback}}"'),
    "TemplatesConfig.turn_feedback": turn(
        '"Now: {{feedback}}"',
        "rollout.max_completion_tokens=80",
        "rollout.group_size=1",
        observe=trained,
    ),
    "TemplatesConfig.attempt": turn('"Tried: {{attempt}}"', "teacher.context.attempt=true"),
    "TemplatesConfig.solve": turn('"Go."'),
    "TemplatesConfig.correct": turn('"Yes."', "teacher.context.layout=turns"),
    "TemplatesConfig.wrong": turn(
        '"No."', "teacher.context.layout=turns", "teacher.context.attempt=true"
    ),
    "TemplatesConfig.again": turn('"Again: {{task}}"', "teacher.context.layout=turns"),
    "_ShownConfig.layout": turn("turns"),
    "_ShownConfig.max_tokens": turn("300"),
    "CustomContextConfig.path": turn("{folder}/doors.py:other_shown"),
    "CustomContextConfig.options": turn("{{say = 'Oh!'}}"),
    "CustomScheduleConfig.path": turn("{folder}/doors.py:other_share"),
    "CustomScheduleConfig.options": turn("{{rate = 0.1}}"),
    "CustomObjectiveConfig.path": turn("{folder}/doors.py:other_rule"),
    "CustomObjectiveConfig.options": turn("{{mix = 0.1}}"),
    "CustomWeightingConfig.path": turn("{folder}/doors.py:other_weights"),
    "CustomWeightingConfig.options": turn("{{slope = 3}}"),
    "CustomWeightingConfig.relative": turn("false"),
    "CustomDivergenceConfig.path": turn("{folder}/doors.py:other_divergence"),
    "CustomDivergenceConfig.options": turn("{{alpha = 0.9}}"),
    # The teacher of a random model solves little: one of forty answers opens the gate.
    "ProbeGateConfig.attempts": turn(
        "40", "teacher.gate.min_solved=0.02", "teacher.gate.min_gain=-1"
    ),
    "ProbeGateConfig.min_solved": turn("0.0", "teacher.gate.min_gain=-1"),
    "ProbeGateConfig.min_gain": turn("-1", "teacher.gate.min_solved=0"),
    "EmaConfig.rate": turn("0.5"),
    "SnapshotConfig.every": turn("1"),
    "GatedConfig.every": turn("1"),
    "GatedConfig.min_gain": turn("0.9"),
    "GatedConfig.max_tail_growth": turn("0.5"),
    "TrustRegionConfig.mix": turn("0.5"),
    "OptimConfig.lr": turn("2e-2"),
    "OptimConfig.warmup_steps": turn("10"),
    "OptimConfig.decay_steps": turn("1"),
    "OptimConfig.weight_decay": turn("0.5"),
    "OptimConfig.grad_clip": turn("1e-9"),
    "OptimConfig.updates_per_step": turn("2"),
    "OptimConfig.passes": turn("2"),
    "OptimConfig.micro_batch_tokens": turn("40", observe=worked),
    "OptimConfig.gradient_checkpointing": turn("true", observe=worked),
    "OptimConfig.offload": turn("true", observe=counted),
    "EvalConfig.every": turn("1", observe=trained_single_turn),
    "EvalConfig.samples": turn("2", observe=trained_single_turn),
    "EvalConfig.max_tasks": turn("2", observe=trained_single_turn),
    "EvalConfig.probe_tasks": turn("2", observe=trained_single_turn),
    "EvalConfig.holdout": turn('["{folder}/holdout.toml"]', observe=trained_single_turn),
    "EvalConfig.temperature": turn("1.5", observe=trained_single_turn),
    "EvalConfig.top_p": turn("0.01", observe=trained_single_turn),
    "CheckpointConfig.every": turn("1", observe=trained_single_turn),
    "CheckpointConfig.keep": turn("1", "checkpoint.every=1", observe=trained_single_turn),
    "CheckpointConfig.background": turn("true", observe=written_by),
    "CreditConfig.rollouts": turn("1", observe=trained_single_turn),
    "CanariesConfig.action": turn("stop", *CANARY, observe=trained_single_turn),
    "CanariesConfig.patience": turn("3", *CANARY, observe=trained_single_turn),
    "LogConfig.rollouts": turn("failures", observe=recorded),
    "LogConfig.backends": turn('["trackio"]', observe=mirrored),
    "LogConfig.project": turn("mine", 'log.backends=["trackio"]', observe=mirrored),
    "LogConfig.name": turn("first", 'log.backends=["trackio"]', observe=mirrored),
    "LogConfig.tags": turn('["a"]', 'log.backends=["trackio"]', observe=mirrored),
    "DiscoverConfig.methods": turn('["best_of_k"]', observe=discovered),
    "DiscoverConfig.tasks": turn('["t2"]', observe=discovered),
    "DiscoverConfig.split": turn("train", observe=discovered),
    "DiscoverConfig.budget": turn("3", observe=discovered),
    "DiscoverConfig.batch": turn("4", observe=discovered),
    "DiscoverConfig.restart_every": turn("1", "discover.budget=6", observe=discovered),
    "DiscoverConfig.seeds": turn("2", observe=discovered),
    "DiscoverConfig.select": turn("{{pass_at = 4}}", observe=discovered),
    "DiscoverConfig.window_tokens": turn("140", observe=discovered),
    "DiscoverConfig.show_attempts": turn("true", observe=discovered),
    "SelectConfig.pass_at": turn("1", "discover.select.below=1", observe=discovered),
    "SelectConfig.attempts": turn("6", "discover.select.below=0.4", observe=discovered),
    "SelectConfig.below": turn("0.0", observe=discovered),
    # Objectives
    "_SupportConfig.top_k": turn("5"),
    "_SupportConfig.support": turn("teacher", "objective.divergence.top_k=20"),
    "_SupportConfig.tail": turn("false", "objective.divergence.top_k=20"),
    "JSDConfig.beta": turn("0.1"),
    "PositionWeightingConfig.w_min": turn("0.75"),
    "PositionWeightingConfig.tau": turn("0.8"),
    "PositionWeightingConfig.s": turn("0.5"),
    "EntropyWeightingConfig.beta": turn("3"),
    "SignWeightingConfig.agree": turn("0.3"),
    "SignWeightingConfig.differ": turn("0.0"),
    "SignWeightingConfig.per": turn("rollout"),
    "GrpoSurrogateConfig.eps_low": turn("0.9", *OFF_POLICY),
    "GrpoSurrogateConfig.eps_high": turn("5", *OFF_POLICY),
    # Ratios of whole rollouts hardly leave 1: a step that is far too long moves them below it.
    "GspoSurrogateConfig.eps_low": turn(
        "0.9", *LEARNING, "optim.updates_per_step=2", "optim.lr=0.3", "optim.grad_clip=100"
    ),
    "GspoSurrogateConfig.eps_high": turn("5", *OFF_POLICY),
    "CispoSurrogateConfig.eps_low": turn("0.0", *OFF_POLICY),
    "CispoSurrogateConfig.eps_high": turn("5", *OFF_POLICY),
    "_SurrogateConfig.ratio_cap": turn("0.5"),
    "_SurrogateConfig.normalization": turn("fixed"),
    "_SurrogateConfig.std": turn(TOGGLE),
    "_SurrogateConfig.flat_groups": turn(
        "excluded", "teacher.context.feedback=never", observe=learned_beside_flat
    ),
    "_ObjectiveConfig.kl_coefficient": turn("0.3"),
    "DistillingConfig.teacher_exponent": turn("1.5"),
    "DistillingConfig.granularity": turn("token"),
    "DistillingConfig.advantage_clip": turn("1e-3"),
    "DistillingConfig.ratio_cap": turn("0.5"),
    "DistillingConfig.importance": turn(
        "logit", *OFF_POLICY, "objective.divergence.type=reverse_kl", "objective.divergence.top_k=9"
    ),
    "DistillingConfig.importance_eps_low": turn("0.9", *PER_LOGIT),
    "DistillingConfig.importance_eps_high": turn("0.0", *PER_LOGIT),
    "DistillingConfig.sequence_estimator": turn("0.5"),
    "ContextDistillingConfig.distilled": turn("failed"),
    "HybridConfig.mix": turn("0.2"),
    "RlsdConfig.mix": turn("0.9"),
    "RlsdConfig.decay_steps": turn("1"),
    "RlsdConfig.clip": turn("0.01"),
    "RlcsdConfig.scale": turn("0.3"),
    "RlcsdConfig.mix": turn("0.1"),
    "RlcsdConfig.tau": turn("5"),
    "RlcsdConfig.num_negatives": turn("1"),
    "SdpgConfig.coefficient": turn("0.5"),
}

TYPES: dict[str, Turn] = {
    "model.adapter": turn("", observe=loaded),
    "env": turn("", observe=judged),
    "rollout.engine": turn("", observe=sampled_with),
    "rollout.engine.weights": turn("", observe=sampled_with),
    "teacher.context": turn(""),
    "teacher.schedule": turn("", "steps=5"),
    "teacher.gate": turn(""),
    "objective": turn(""),
    "objective.divergence": turn(""),
    "objective.policy_gradient": turn(""),
    "objective.weighting": turn(""),
}
"""How the choice of a variant is seen, by section."""
