"""TRL's side of `step.py`: steps of its `SDPOTrainer`, by TRL's own interpreter; knows no `sdpo`.

The trainer is used as it comes. Three of its methods are wrapped: sampling and the teacher's
forward pass to be timed, and the builder of teacher contexts to give each rollout its own feedback,
which a data set of prompts cannot carry.
"""

from __future__ import annotations

import time
from typing import Any

from datasets import Dataset
from gate import Gate, finish_kernels
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer


class Turns(TrainerCallback):
    """Starts each step when the gate opens and reports it when everything, teacher's average
    included, is done."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._start = self._start_cpu = 0.0
        self.sample_s = self.teacher_s = 0.0
        self.losses: list[float] = []
        self.num_tokens = self.num_distilled = 0

    def on_step_begin(self, args, state, control, **kwargs):
        if not self._gate.wait():
            raise SystemExit(0)
        self.sample_s = self.teacher_s = 0.0
        self.losses = []
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        finish_kernels()
        step_s = time.perf_counter() - self._start
        self._gate.answer(
            {
                "step_s": step_s,
                "cpu_s": time.process_time() - self._start_cpu,
                "sample_s": self.sample_s,
                "teacher_s": self.teacher_s,
                "rest_s": step_s - self.sample_s - self.teacher_s,
                "num_tokens": self.num_tokens,
                "num_distilled": self.num_distilled,
                "loss": sum(self.losses) / len(self.losses),
            }
        )


def build_trainer(spec: dict[str, Any]) -> SDPOTrainer:
    """The trainer that `spec` describes."""
    num_rollouts = len(spec["tasks"]) * spec["group"]
    config = SDPOConfig(
        output_dir=spec["run"],
        use_cpu=spec["device"] == "cpu",
        bf16=spec["dtype"] == "bfloat16",
        model_init_kwargs={"dtype": "float32"},
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["trl_batch"],
        gradient_accumulation_steps=num_rollouts // spec["trl_batch"],
        gradient_checkpointing=spec["trl_checkpointing"],
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        weight_decay=spec["weight_decay"],
        max_grad_norm=1.0,
        num_generations=spec["group"],
        max_prompt_length=8192,
        max_completion_length=spec["new_tokens"],
        generation_kwargs={"min_new_tokens": spec["new_tokens"]},
        distillation_mode="topk_logits",
        distillation_topk=spec["top_k"],
        distillation_alpha=0.5,
        distillation_add_tail=True,
        teacher_model_kind="ema",
        teacher_update_rate=spec["teacher_rate"],
        include_environment_feedback=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [
        {"prompt": [{"role": "user", "content": t["prompt"]}], "privileged_context": t["prompt"]}
        for t in spec["tasks"]
    ]
    return SDPOTrainer(
        model=spec["model"],
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(
            spec["model"], padding_side="left", truncation_side="left"
        ),
    )


def watch(trainer: SDPOTrainer, turns: Turns, spec: dict[str, Any]) -> None:
    """Wrap the trainer's methods so that `turns` knows times and counts."""
    generate, forward = trainer._generate, trainer._forward_logits
    build = trainer.teacher_context_builder.build
    feedback = {task["prompt"]: task["feedback"] for task in spec["tasks"]}

    def timed_generate(prompt_ids):
        start = time.perf_counter()
        result = generate(prompt_ids)
        turns.sample_s += time.perf_counter() - start
        return result

    def timed_forward(model, *args, **kwargs):
        finish_kernels()
        start = time.perf_counter()
        result = forward(model, *args, **kwargs)
        if model is trainer.teacher_model:
            finish_kernels()
            turns.teacher_s += time.perf_counter() - start
        return result

    def build_with_feedback(output, prompts, rewards, feedbacks=None):
        own = [
            feedback[prompt[-1]["content"]][place % spec["group"]]
            for place, prompt in enumerate(prompts)
        ]
        result = build(output, prompts, rewards, feedbacks=own)
        turns.num_tokens = int(output["completion_mask"].sum())
        turns.num_distilled = int(result["self_distillation_mask"].sum())
        return result

    trainer._generate = timed_generate
    trainer._forward_logits = timed_forward
    trainer.teacher_context_builder.build = build_with_feedback
    log_loss = trainer._log_self_distillation_metric

    def noted_loss(mode, value):
        turns.losses.append(value)
        log_loss(mode, value)

    trainer._log_self_distillation_metric = noted_loss


def main() -> None:
    gate = Gate()
    trainer = build_trainer(gate.spec)
    turns = Turns(gate)
    watch(trainer, turns, gate.spec)
    # Added last, so that its end of the step comes after the teacher's.
    trainer.add_callback(turns)
    trainer.train()


if __name__ == "__main__":
    main()
