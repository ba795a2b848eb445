"""Our side of `step.py`: whole training steps of a real run, assembled as `sdpo.train` does.

Environment, contexts, engine, teacher, update and records are the library's; only the loop around
them is here, so that steps can be started one by one and nothing is evaluated or saved in between.
"""

from __future__ import annotations

import time
from typing import Any

from eos import ignoring_eos
from gate import Gate

import sdpo
from sdpo.config.objective import JSDConfig, SdpoConfig
from sdpo.config.schema import LocalEngineConfig, ModelConfig, OptimConfig, RolloutConfig, RunConfig
from sdpo.config.teacher import ContextConfig, EmaConfig, TeacherConfig
from sdpo.envs.base import Env
from sdpo.records import RolloutConfig as Attempt
from sdpo.records import Task, Verdict
from sdpo.rollouts.curriculum import tasks_of_step
from sdpo.rollouts.sampler import Sampler
from sdpo.training.opening import open_run
from sdpo.training.run import Run


def build_env(tasks: list[dict[str, Any]]) -> Env:
    """An environment in which every attempt fails and is told why, so that all are distilled."""
    feedback = {task["id"]: task["feedback"] for task in tasks}

    def judge(task: Task, attempt: Attempt) -> Verdict:
        return Verdict(reward=0.0, solved=False, feedback=feedback[task.id][attempt.index])

    return sdpo.env([{"id": task["id"], "prompt": task["prompt"]} for task in tasks], judge)


def build_config(spec: dict[str, Any]) -> RunConfig:
    """The run that `spec` describes."""
    return RunConfig(
        run=spec["run"],
        steps=spec["steps"],
        model=ModelConfig(name=spec["model"], dtype=spec["dtype"], device=spec["device"]),
        rollout=RolloutConfig(
            tasks_per_step=len(spec["tasks"]),
            group_size=spec["group"],
            max_prompt_tokens=8192,
            max_completion_tokens=spec["new_tokens"],
            engine=LocalEngineConfig(max_sequences=len(spec["tasks"]) * spec["group"]),
        ),
        teacher=TeacherConfig(
            context=ContextConfig(max_tokens=8192), schedule=EmaConfig(rate=spec["teacher_rate"])
        ),
        objective=SdpoConfig(divergence=JSDConfig(top_k=spec["top_k"])),
        optim=OptimConfig(
            lr=spec["lr"],
            weight_decay=spec["weight_decay"],
            micro_batch_tokens=spec["micro_batch_tokens"],
        ),
    )


def take_step(run: Run) -> dict[str, float]:
    """One step, as in `training/loop.py`, and where its time went."""
    config = run.config
    start, start_cpu = time.perf_counter(), time.process_time()
    tasks = tasks_of_step(
        run.env.load("train"),
        step=run.step,
        count=config.rollout.tasks_per_step,
        seed=config.seed,
    )
    collected = run.collect(tasks)
    groups = run.learner.with_contexts(collected.groups)
    losses = run.learner.update(run.learner.samples(groups))
    row = run.measure(groups, losses)
    row |= run.learner.follow(row)
    run.record_rollouts(groups, losses)
    step_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "step_s": step_s,
        "cpu_s": cpu_s,
        "sample_s": collected.generate_s,
        "teacher_s": row["time/teacher_s"],
        "rest_s": step_s - collected.generate_s - row["time/teacher_s"],
        "num_tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
        "num_distilled": sum(c.messages is not None for group in groups for c in group.contexts),
        "loss": row["loss/distill"],
    }


def main() -> None:
    gate = Gate()
    Sampler.sampling = ignoring_eos(Sampler.sampling)
    with open_run(build_config(gate.spec), build_env(gate.spec["tasks"])) as run:
        run.start()
        while gate.wait():
            gate.answer(take_step(run))


if __name__ == "__main__":
    main()
