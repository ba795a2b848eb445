"""`examples/nano_sdpo.py`, the method in one file, computes what the package computes: same
contexts, loss and gradient on the same rollouts."""

from __future__ import annotations

import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from sdpo.chat import Chat
from sdpo.config.objective import GrpoConfig, JSDConfig, SdpoConfig
from sdpo.config.schema import OptimConfig
from sdpo.config.teacher import ContextConfig, EmaConfig, LiveConfig
from sdpo.models import policy as library_model
from sdpo.models.weights import trainable
from sdpo.objectives import objective_spec, routing_rule
from sdpo.parallel import Parallel
from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.teacher.context import Reading, teacher_contexts
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training import step as training_step
from sdpo.training import targets
from sdpo.training.optim import Optimizer
from sdpo.training.samples import SampleBuilder
from sdpo.training.step import Updater

TOLERANCE = 1e-5
PATH = Path(__file__).parents[2] / "examples" / "nano_sdpo.py"


@pytest.fixture(scope="module")
def nano():
    spec = importlib.util.spec_from_file_location("nano_sdpo", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


class Watching(Parallel):
    """A single process that keeps what it would have exchanged: the whole gradient of an update."""

    kept: ClassVar[list[torch.Tensor]] = []

    def sum_gradients(self, gradients):
        Watching.kept = [part.clone() for part in gradients]


def judged_groups(nano):
    """Three tasks as nano knows them: one partly solved, one all failed, one with one solved."""
    rng = random.Random(3)
    found = []
    for name, outcomes in (("2 + 2", "SFFS"), ("3 + 5", "FFF"), ("1 + 7", "FSF")):
        task = nano.Task(prompt=f"What is {name}?", judge=lambda text: (False, ""))
        prompt = nano.encode(byte_tokenizer(), task.prompt)
        group = []
        for number, outcome in enumerate(outcomes):
            ids = [rng.randrange(97, 123) for _ in range(rng.randrange(1, 7))]
            attempt = nano.Attempt(
                prompt_ids=prompt, completion_ids=ids, text=byte_tokenizer().decode(ids)
            )
            attempt.solved = outcome == "S"
            attempt.feedback = "" if attempt.solved else f"Attempt {number} is wrong."
            group.append(attempt)
        found.append((task, group))
    return found


@torch.no_grad()
def logprobs(nano, model, attempt):
    logits = nano.completion_logits(model, attempt.prompt_ids, attempt.completion_ids)
    ids = torch.tensor(attempt.completion_ids)[:, None]
    return tuple(nano.log_probs(logits).gather(1, ids)[:, 0].tolist())


def as_records(nano, model, judged):
    """The same rollouts as the package's records, sampled by `model`."""
    return [
        Group(
            task=Task(id=str(row), messages=({"role": "user", "content": task.prompt},)),
            rollouts=tuple(
                Rollout(
                    task_id=str(row),
                    index=index,
                    prompt_ids=tuple(attempt.prompt_ids),
                    completion_ids=tuple(attempt.completion_ids),
                    sampler_logprobs=logprobs(nano, model, attempt),
                    text=attempt.text,
                    truncated=False,
                    policy_version=0,
                )
                for index, attempt in enumerate(group)
            ),
            verdicts=tuple(
                Verdict(reward=float(a.solved), solved=a.solved, feedback=a.feedback or None)
                for a in group
            ),
        )
        for row, (task, group) in enumerate(judged)
    ]


def library(model, objective, teacher_weights, groups, schedule=None):
    """Loss and gradient of the package's updater, in two micro-batches or more. The teacher is an
    average of given weights, or what `schedule` makes of the model."""
    chat = Chat(byte_tokenizer())
    # A rate that leaves every weight as it is.
    config = OptimConfig(micro_batch_tokens=200, lr=1e-30, weight_decay=0)
    schedule = TeacherSchedule(schedule or EmaConfig(), model)
    schedule._weights = teacher_weights
    builder = SampleBuilder(
        chat=chat,
        rules=ContextConfig(),
        objective=objective,
        rule=routing_rule(objective),
        reference_answer=lambda task: None,
    )
    samples = [
        sample
        for group in builder.with_contexts(groups, seed=0)
        for sample in builder.samples(group, seed=0)
    ]
    updater = Updater(
        model, byte_tokenizer(), Optimizer(config, model), schedule,
        config=config, objective=objective, parallel=Watching(),
    )  # fmt: skip
    spec = objective_spec(objective, step=0, temperature=1.0, max_completion_tokens=8, trust=None)
    result = updater.step([samples], spec, where="test")
    gradient = dict(zip(trainable(model), Watching.kept, strict=True))
    return result.metrics.reduce()["loss/total"], gradient, samples


def by_hand(loss, model):
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return loss.item(), gradient


def assert_equal(ours, nanos):
    assert ours[0] == pytest.approx(nanos[0], rel=TOLERANCE)
    assert ours[1].keys() == nanos[1].keys()
    largest = max(float(part.abs().max()) for part in nanos[1].values())
    assert largest > 1e-3
    for name, part in nanos[1].items():
        difference = (ours[1][name].double() - part.double()).abs().max()
        assert float(difference) <= TOLERANCE * largest, name


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request):
    # Larger weights than a fresh model's, so that student and teacher differ visibly.
    model = tiny_model(num_layers=2, dtype=request.param)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model


def test_sdpo_loss_and_gradient(nano, model):
    judged = judged_groups(nano)
    groups = as_records(nano, model, judged)
    teacher = nano.EmaTeacher(model)
    generator = torch.Generator().manual_seed(1)
    for weight in teacher.weights.values():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.add_(0.02 * noise.to(weight.dtype))
    objective = SdpoConfig(divergence=JSDConfig(top_k=nano.TOP_K, beta=nano.BETA))
    loss, gradient, samples = library(model, objective, teacher.weights, groups)
    for (_, group), name in zip(judged, "012", strict=True):
        of_task = [sample for sample in samples if sample.task_id == name]
        for attempt, sample in zip(group, of_task, strict=True):
            ids = sample.teacher_prompt_ids
            attempt.teacher_ids = None if ids is None else list(ids)
    attempts = [attempt for _, group in judged for attempt in group]
    assert any(attempt.teacher_ids is None for attempt in attempts)
    nanos = by_hand(nano.sdpo_loss(model, teacher, attempts), model)
    assert_equal((loss, gradient), nanos)


def live_teacher(nano, model):
    """((loss, gradient) of the package, of nano) where the teacher has the student's weights."""
    judged = judged_groups(nano)
    groups = as_records(nano, model, judged)
    objective = SdpoConfig(divergence=JSDConfig(top_k=nano.TOP_K, beta=nano.BETA))
    loss, gradient, samples = library(model, objective, None, groups, LiveConfig())
    for attempt, sample in zip((a for _, g in judged for a in g), samples, strict=True):
        ids = sample.teacher_prompt_ids
        attempt.teacher_ids = None if ids is None else list(ids)
    attempts = [attempt for _, group in judged for attempt in group]
    nanos = by_hand(nano.sdpo_loss(model, nano.EmaTeacher(model), attempts), model)
    return (loss, gradient), nanos


def test_a_live_teacher_is_a_constant(nano, model):
    assert_equal(*live_teacher(nano, model))


def test_a_gradient_through_a_live_teacher_is_noticed(nano, model, monkeypatch):
    """Jensen-Shannon with equal weights is symmetric: exchanging the sides gives the gradient that
    the teacher's side would get."""
    right = training_step.objective_loss
    score = targets.score_targets.__wrapped__
    monkeypatch.setattr(training_step, "score_targets", score)

    def mutant(student, head, teacher, teacher_head, *arguments, **keywords):
        constant = None if teacher is None else teacher.detach()
        result = right(student, head, constant, teacher_head, *arguments, **keywords)
        if teacher is None or len(teacher) < len(student):
            return result
        keywords["top_n"] = 0
        other = right(teacher, head, student.detach(), teacher_head, *arguments, **keywords)
        return replace(result, loss=result.loss + other.loss - other.loss.detach())

    monkeypatch.setattr(training_step, "objective_loss", mutant)
    ours, nanos = live_teacher(nano, model)
    assert ours[0] == pytest.approx(nanos[0], rel=TOLERANCE)
    with pytest.raises(AssertionError):
        assert_equal(ours, nanos)


def test_grpo_loss_and_gradient(nano, model):
    judged = judged_groups(nano)
    loss, gradient, _ = library(model, GrpoConfig(), None, as_records(nano, model, judged))
    nanos_gradient = by_hand(nano.grpo_loss(model, [group for _, group in judged]), model)[1]
    assert_equal((0.0, gradient), (0.0, nanos_gradient))
    # The value differs by design: the surrogate is -advantage x ratio, nano's -advantage x log p.
    assert loss == pytest.approx(-surrogate(judged), abs=1e-6)


def surrogate(judged):
    """Mean over tokens of the advantage, which is the surrogate at ratio 1."""
    total = sum(len(attempt.completion_ids) for _, group in judged for attempt in group)
    return sum(
        (attempt.solved - sum(a.solved for a in group) / len(group)) * len(attempt.completion_ids)
        for _, group in judged
        for attempt in group
    ) / total  # fmt: skip


def test_teacher_contexts(nano):
    chat = Chat(byte_tokenizer())
    judged = judged_groups(nano)
    groups = as_records(nano, tiny_model(), judged)
    for (task, group), record in zip(judged, groups, strict=True):
        rng = random.Random(0)
        contexts = teacher_contexts(
            record, ContextConfig(), rng, Reading(count_tokens=lambda messages: 0)
        )
        order = [index for index, attempt in enumerate(group) if attempt.solved]
        random.Random(0).shuffle(order)
        for index, context in enumerate(contexts):
            prompt = nano.teacher_prompt(task, group, index, order)
            assert (prompt is None) == (context.messages is None)
            if prompt is not None:
                assert nano.encode(chat.tokenizer, prompt) == list(
                    chat.prompt_ids(context.messages)
                )


def test_main_trains_a_policy(nano, monkeypatch, capsys):
    policy = library_model.Policy(model=tiny_model(), tokenizer=byte_tokenizer(), name="tiny")
    before = [weight.clone() for weight in policy.model.parameters()]
    monkeypatch.setattr(library_model, "load_policy", lambda name: policy)
    monkeypatch.setattr(nano, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr("sys.argv", ["nano_sdpo.py", "2"])
    nano.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("solved 0.") for line in lines)
    after = policy.model.parameters()
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
