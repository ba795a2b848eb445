"""Any single attempt explained by any model: what the student thought of every token and what the
same weights think once they have read the feedback, a demonstration, or both.

Takes the way of training (teacher context, packed forward, fused head) without its sampling, judge
and update, so the numbers are those of a run's credit.jsonl. No [T, V] matrix of logits is made.

Legend: T completion tokens, D hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from sdpo.chat import Chat
from sdpo.config.teacher import ContextConfig
from sdpo.envs.base import Env, as_task
from sdpo.errors import ConfigError
from sdpo.inspection.tokens import CREDIT_ALTERNATIVES, credit_of
from sdpo.losses.head.chunks import HeadInputs
from sdpo.losses.head.fused import head_pass
from sdpo.losses.head.logits import Side
from sdpo.losses.head.outputs import TokenOutputs
from sdpo.losses.terms import Terms
from sdpo.models.head import lm_head
from sdpo.models.packing import hidden_rows, pack, pack_item
from sdpo.models.policy import Policy, load_policy
from sdpo.records import Group, Message, Rollout, Sample, Task, TeacherContext, Verdict
from sdpo.rollouts.credit import TokenCredit
from sdpo.rollouts.episodes import flatten_turns
from sdpo.rollouts.judging import judge_all
from sdpo.rollouts.sampler import chat_of
from sdpo.teacher.context import Reading, teacher_contexts

AnyTask = Task | str | Mapping[str, object] | Sequence[Message]
"""A task, a prompt, a mapping with the fields of a task, or a conversation."""


def credit(
    model: str | Policy,
    task: AnyTask,
    completion: str | Sequence[int] | Rollout,
    feedback: str | None = None,
    demonstration: str | None = None,
    *,
    env: Env | None = None,
    layout: Literal["single_turn", "turns"] = "single_turn",
    temperature: float = 1.0,
    max_context_tokens: int = 4096,
) -> TokenCredit:
    """Per token of `completion`: log p of the student, log q of the same weights reading `task`
    with `feedback` and/or `demonstration`, both entropies, and the likeliest tokens of both.

    `model` is a name (hub id, folder, GGUF file) or a loaded `Policy`. A `completion` given as text
    is followed by the token that ends a turn; token ids are taken as they are, and so is a
    `Rollout`, of which every turn is read. With `env` the completion is judged, and its feedback is
    used when neither feedback nor demonstration is given.
    What exceeds `max_context_tokens` is cut in the middle, and `info["context"]` says so. Raises
    `SdpoError`.

    Example:
        sdpo.credit("smollm2-135m-instruct", "What is 2 + 2?", "5", "The sum is even.").gaps
    """
    question = _task(task)
    policy = load_policy(model) if isinstance(model, str) else model
    chat = chat_of(policy)
    rollout = _rollout(question, completion, chat)
    verdict = None if env is None else judge_all(env, [(question, rollout)])[0]
    if verdict is not None and feedback is None and demonstration is None:
        feedback = verdict.feedback
    if feedback is None and demonstration is None:
        raise ConfigError(
            "credit: feedback and demonstration are both missing"
            + ("" if verdict is None else " (the judge accepts the completion and says nothing)")
            + "; give at least one, otherwise the teacher reads what the student read"
        )
    rules = ContextConfig(
        feedback="always", turn_feedback="at_start", layout=layout, max_tokens=max_context_tokens
    )
    context = _context(question, rollout, feedback, demonstration, rules, chat)
    assert context.messages is not None
    sample = sample_of(rollout, chat.prompt_ids(context.messages))
    tokens = token_outputs(policy, sample, temperature, top_n=CREDIT_ALTERNATIVES)
    (seen,) = credit_of(tokens, [sample], {sample.key}, policy.tokenizer)
    return replace(
        seen,
        advantage=None,
        prompt=question.messages,
        teacher=context.messages,
        feedback=feedback,
        solved=None if verdict is None else verdict.solved,
        info={
            "model": policy.name,
            "context": context.reason,
            "category": None if verdict is None else verdict.info.get("category"),
        },
    )


def find_task(env: Env, task_id: str) -> Task:
    """The task called `task_id`, of the training split first. Raises `ConfigError`."""
    tasks = [task for split in ("train", "eval") for task in env.load(split)]
    for task in tasks:
        if task.id == task_id:
            return task
    raise ConfigError(
        f"task = {task_id!r} is not among the {len({t.id for t in tasks})} tasks of the set; "
        f"ids look like {tasks[0].id!r}"
    )


def _task(task: AnyTask) -> Task:
    if isinstance(task, (Task, str, Mapping)):
        return as_task(task, 0)
    return Task(id="task-0", messages=tuple(task))


def _rollout(task: Task, completion: str | Sequence[int] | Rollout, chat: Chat) -> Rollout:
    """`completion` as an attempt at `task`."""
    if isinstance(completion, Rollout):
        return completion
    if isinstance(completion, str):
        ids = (*chat.text_ids(completion), chat.end_of_turn_id)
    else:
        ids = tuple(completion)
    if not ids:
        raise ConfigError("completion = []: give the text or the tokens of an attempt")
    return Rollout(
        task_id=task.id,
        index=0,
        prompt_ids=chat.prompt_ids(task.messages),
        completion_ids=ids,
        sampler_logprobs=(),
        text=chat.decode(ids),
        truncated=ids[-1] not in chat.stop_ids,
        policy_version=0,
    )


def _context(
    task: Task,
    rollout: Rollout,
    feedback: str | None,
    demonstration: str | None,
    rules: ContextConfig,
    chat: Chat,
) -> TeacherContext:
    """What training would show the teacher if `demonstration` were a solved sibling."""
    rollouts = [rollout]
    if demonstration is not None:
        rollouts.append(replace(rollout, index=1, text=demonstration, turns=()))
    verdicts = [
        Verdict(reward=0.0, solved=False, feedback=feedback),
        Verdict(reward=1.0, solved=True),
    ]
    return teacher_contexts(
        Group(task=task, rollouts=tuple(rollouts), verdicts=tuple(verdicts[: len(rollouts)])),
        rules,
        random.Random(0),
        Reading.of(chat),
    )[0]


def sample_of(rollout: Rollout, teacher_prompt_ids: tuple[int, ...]) -> Sample:
    """`rollout` with every token that the policy sampled to be looked at."""
    prompt_ids, completion_ids, loss_mask, sampler_logprobs = flatten_turns(rollout)
    return Sample(
        task_id=rollout.task_id,
        index=rollout.index,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        loss_mask=loss_mask,
        sampler_logprobs=sampler_logprobs,
        teacher_prompt_ids=teacher_prompt_ids,
        advantage=0.0,
        component_weights={},
    )


@torch.no_grad()
def token_outputs(
    policy: Policy, sample: Sample, temperature: float, *, top_n: int
) -> TokenOutputs:
    """What student and teacher think of every token of `sample`, with the `top_n` likeliest tokens
    of each."""
    head = lm_head(policy.model)

    def side(prompt_ids: tuple[int, ...]) -> Side:
        (batch,) = pack([pack_item(sample, prompt_ids)], budget_tokens=1)
        return Side(hidden_rows(policy.model, batch), head)

    inputs = HeadInputs(
        student=side(sample.prompt_ids),
        targets=torch.tensor(sample.trained_ids, device=policy.device),
        teacher=side(sample.teacher_prompt_ids or ()),
        temperature=temperature,
        vocabulary=policy.vocabulary,
        top_n=top_n,
    )
    return head_pass(inputs, None, lambda span, student, teacher: Terms()).tokens
