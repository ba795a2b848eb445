"""The toy world: what feedback reveals, and that the taught model reads it and knows no code."""

from __future__ import annotations

import random

import pytest
import torch

from sdpo.chat import Chat
from sdpo.config.teacher import ContextConfig
from sdpo.records import Group, Rollout
from sdpo.teacher.context import Reading, teacher_contexts
from sdpo.testing import tiny_model, toy_env, toy_model, toy_policy, toy_tokenizer
from sdpo.testing.toy_reader import lessons_digest, shipped_lessons
from sdpo.testing.toy_world import CODE_PLACES, feedback_text, is_well_formed, random_code


def attempt(task, text, index=0):
    return Rollout(
        task_id=task.id, index=index, prompt_ids=(), completion_ids=(), sampler_logprobs=(),
        text=text, truncated=False, policy_version=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reveal", "text", "feedback"),
    [
        ("all", "Be11", "The code is not Be11. The right code is Ka47."),
        ("all", "hm", "A code is a syllable and two digits. The right code is Ka47."),
        ("part", "Be47", "The code is not Be47. The right code begins with Ka."),
        ("part", "Ka11", "The code is not Ka11. The right code is Ka47."),
        ("part", "Ka", "A code is a syllable and two digits. The right code begins with Ka."),
        ("none", "Be11", "The code is not Be11."),
    ],
)
def test_feedback_reveals_what_it_was_told_to(reveal, text, feedback):
    assert feedback_text(text if is_well_formed(text) else None, "Ka47", reveal) == feedback


def test_judge_solves_the_code_only():
    env = toy_env(2)
    task = env.load("train")[0]
    assert env.judge(task, attempt(task, task.reference)).solved
    verdict = env.judge(task, attempt(task, f" {task.reference}"))
    assert not verdict.solved
    assert verdict.info["category"] == "incorrect_format"


def test_worlds_differ_by_seed_only():
    codes = [[task.reference for task in toy_env(8, seed).load("train")] for seed in (0, 0, 1)]
    assert codes[0] == codes[1] != codes[2]
    assert len(set(codes[0])) == 8
    assert all(map(is_well_formed, codes[0]))


@pytest.mark.parametrize("reveal", ["all", "part", "none"])
def test_check_passes(reveal):
    report = toy_env(5, reveal=reveal).check()
    assert (report.num_tasks, report.failures, report.skipped) == (5, {}, 0)


def test_tokenizer_round_trips_and_keeps_conversations_short():
    tokenizer = toy_tokenizer()
    chat = Chat(tokenizer)
    text = "Ka47 and é\n\nWhat is the code of item gbah?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert all(len(tokenizer.encode(part)) == 1 for place in CODE_PLACES for part in place)
    assert len(chat.prompt_ids(toy_env().load("train")[0].messages)) == 12


def answers(model, chat, conversations, *, wrong_first=False):
    """One sampled answer to each; with `wrong_first` the digits follow a wrong syllable."""
    tokenizer = chat.tokenizer
    generator = torch.Generator().manual_seed(0)
    found = []
    for messages in conversations:
        ids = list(chat.prompt_ids(messages))
        taken = []
        for place in range(3):
            with torch.no_grad():
                logits = model(torch.tensor([ids + taken]), logits_to_keep=1).logits[0, -1]
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            if wrong_first and place == 0:
                token = tokenizer.encode("Zu")[0]
            taken.append(token)
        found.append(chat.decode(taken))
    return found


def teacher_conversations(env, reveal, rules, *, solved_sibling=False):
    rng = random.Random(5)
    conversations = []
    for task in env.load("train"):
        texts = [random_code(rng), *([task.reference] if solved_sibling else [])]
        rollouts = tuple(attempt(task, text, index) for index, text in enumerate(texts))
        group = Group(
            task=task, rollouts=rollouts, verdicts=tuple(map(env._verdict, [task] * 2, rollouts))
        )
        context = teacher_contexts(group, rules, rng, Reading(count_tokens=lambda messages: 0))[0]
        conversations.append(context.messages)
    return conversations


def test_the_weights_in_the_package_were_taught_todays_lessons():
    """Otherwise the demo would teach for half a minute; toy_reader.py says how to write them."""
    assert shipped_lessons() == lessons_digest(toy_tokenizer())


def test_taught_model_knows_no_code_and_reads_every_revealed_one():
    chat, model, num_tasks = Chat(toy_tokenizer()), toy_model(), 40
    env = toy_env(num_tasks, seed=123)
    tasks = env.load("train")

    def rate(conversations):
        said = answers(model, chat, conversations)
        return sum(a == task.reference for a, task in zip(said, tasks, strict=True)) / num_tasks

    bare = answers(model, chat, [task.messages for task in tasks])
    assert sum(map(is_well_formed, bare)) >= 0.95 * num_tasks
    assert len(set(bare)) >= 0.9 * num_tasks
    assert rate([task.messages for task in tasks]) == 0
    for layout in ("single_turn", "turns"):
        rules = ContextConfig(layout=layout)
        assert rate(teacher_conversations(env, "all", rules)) >= 0.8
        assert rate(teacher_conversations(env, "all", rules, solved_sibling=True)) >= 0.8
    silent = toy_env(num_tasks, seed=123, reveal="none")
    assert rate(teacher_conversations(silent, "none", ContextConfig())) == 0


def test_taught_model_knows_the_digits_after_a_wrong_syllable():
    chat, model = Chat(toy_tokenizer()), toy_model()
    env = toy_env(40, seed=124)
    said = answers(
        model, chat, teacher_conversations(env, "all", ContextConfig()), wrong_first=True
    )
    right = [a[2:] == task.reference[2:] for a, task in zip(said, env.load("train"), strict=True)]
    assert sum(right) >= 0.8 * len(right)


def test_teaching_is_repeatable_and_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_policy, "LEARNT_LOSS", 100.0)
    monkeypatch.setattr(toy_policy, "DECAY", 3)
    first, second = (toy_model(3, cache=tmp_path / name) for name in "ab")
    monkeypatch.setattr(toy_policy, "_teach", None)
    again = toy_model(3, cache=tmp_path / "a")
    untaught = tiny_model(vocab_size=len(toy_tokenizer()), num_layers=3, seed=3)
    weights = [list(model.parameters()) for model in (first, second, again, untaught)]
    for one, two, three, before in zip(*weights, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert not torch.equal(one, before)
