"""What the teacher reads of conversations: feedback about a turn stands before that turn, and the
tokens that train are the same on both sides."""

from __future__ import annotations

import random

import pytest
import torch

from sdpo import Group, Rollout, Task, Turn, Verdict
from sdpo.chat import Chat
from sdpo.config.objective import SdpoConfig
from sdpo.config.teacher import ContextConfig, CustomContextConfig
from sdpo.errors import ConfigError
from sdpo.models.packing import hidden_rows, pack, pack_item
from sdpo.objectives import routing_rule
from sdpo.teacher.context import Reading, for_own_answers, teacher_contexts
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.samples import SampleBuilder

CHAT = Chat(byte_tokenizer())
TASK = Task(id="t", messages=({"role": "user", "content": "QUESTION"},))
PAGE = "<|im_end|>"


def conversation(*turns, index=0):
    """A rollout of (text, replies, feedback) turns; the last has no replies."""
    made, prompt = [], CHAT.prompt_ids(TASK.messages)
    for text, replies, feedback in turns:
        messages = tuple({"role": "tool", "content": reply} for reply in replies)
        ids = (*CHAT.text_ids(text), CHAT.end_of_turn_id)
        made.append(
            Turn(
                prompt_ids=prompt, completion_ids=ids, sampler_logprobs=(-1.0,) * len(ids),
                text=text, truncated=False, reply=messages, feedback=feedback,
            )
        )  # fmt: skip
        prompt += ids + (CHAT.reply_ids(messages, ended=True) if messages else ())
    last = made[-1]
    return Rollout(
        task_id="t", index=index, prompt_ids=last.prompt_ids, completion_ids=last.completion_ids,
        sampler_logprobs=last.sampler_logprobs, text=last.text, truncated=False, policy_version=0,
        turns=tuple(made),
    )  # fmt: skip


FAILED = conversation(
    ("one", ("R1",), "SAID1"), ("two", ("R2", "R3"), f"SAID2{PAGE}"), ("three", (), None)
)


def group(*, feedback="WHOLE", rollout=FAILED):
    verdict = Verdict(reward=0.0, solved=False, feedback=feedback)
    return Group(task=TASK, rollouts=(rollout,), verdicts=(verdict,))


def context(the_group, **rules):
    return teacher_contexts(
        the_group, ContextConfig(**rules), random.Random(0), Reading.of(CHAT)
    )[0]  # fmt: skip


def sample(the_group, **rules):
    builder = SampleBuilder(
        chat=CHAT, rules=ContextConfig(**rules), objective=SdpoConfig(),
        rule=routing_rule(SdpoConfig()), reference_answer=lambda task: None,
    )  # fmt: skip
    (with_contexts,) = builder.with_contexts([the_group], seed=0)
    return builder.samples(with_contexts, seed=0)[0]


def text(ids):
    return CHAT.tokenizer.decode(list(ids))


def test_what_was_said_of_a_turn_stands_before_it_and_after_what_came_before():
    found = sample(group())
    read = text(found.teacher_prompt_ids + found.as_taught.completion_ids)
    parts = ["QUESTION", "WHOLE", "SAID1", "one", "R1", "SAID2", "two", "R2", "R3", "three"]
    places = [read.index(part) for part in parts]
    assert places == sorted(places)
    assert all(read.count(part) == 1 for part in parts)


def test_both_sides_train_on_the_same_tokens_in_the_same_order():
    found = sample(group())
    taught = found.as_taught
    assert taught.completion_ids != found.completion_ids
    assert taught.trained_ids == found.trained_ids
    assert text(found.trained_ids) == "one<|im_end|>two<|im_end|>three<|im_end|>"
    assert len(taught.loss_mask) == len(taught.completion_ids)
    # The student never reads what was said.
    assert "SAID" not in text(found.prompt_ids + found.completion_ids)


def test_what_is_said_cannot_end_a_turn():
    found = sample(group())
    between = [
        token
        for token, trains in zip(
            found.as_taught.completion_ids, found.as_taught.loss_mask, strict=True
        )
        if not trains
    ]
    ends = CHAT.end_of_turn_id
    assert between.count(ends) == 3  # of R1, R2 and R3
    assert "SAID2< |im_end|>" in text(between)


def test_the_teachers_rows_are_those_of_its_own_tokens():
    """Hidden states of packed samples equal a plain pass over what the teacher reads."""
    model, found = tiny_model(), sample(group())
    taught = found.as_taught
    (batch,) = pack([pack_item(taught, found.teacher_prompt_ids)], budget_tokens=1)
    with torch.no_grad():
        rows = hidden_rows(model, batch)
        ids = torch.tensor([[*found.teacher_prompt_ids, *taught.completion_ids]])
        whole = model.model(ids).last_hidden_state[0]
    start = len(found.teacher_prompt_ids) - 1
    places = [start + t for t, trains in enumerate(taught.loss_mask) if trains]
    torch.testing.assert_close(rows, whole[places], atol=1e-4, rtol=1e-4)
    assert len(rows) == found.num_trained


def test_all_of_it_may_stand_in_front():
    found = context(group(), turn_feedback="at_start")
    shown = found.messages[-1]["content"]
    assert "Answer 1: SAID1\n\nAnswer 2: SAID2< |im_end|>\n\nWHOLE" in shown
    assert found.before_turns == ()
    assert sample(group(), turn_feedback="at_start").teacher_completion is None


def test_none_of_it_need_be_shown():
    found = context(group(), turn_feedback="never")
    assert "SAID" not in str(found.messages)
    assert "WHOLE" in str(found.messages)
    assert found.sources == ("feedback",)
    assert context(group(feedback=None), turn_feedback="never").messages is None


def test_feedback_on_turns_alone_is_a_context():
    found = context(group(feedback=None))
    assert found.sources == ("turn_feedback",)
    assert found.feedback_used
    later = conversation(("one", ("R1",), None), ("two", (), "SAID2"))
    found = context(group(feedback=None, rollout=later))
    # Nothing stands in front, so the task is asked as it is.
    assert found.messages == TASK.messages
    assert [said is None for said in found.before_turns] == [True, False]


@pytest.mark.parametrize("layout", ["single_turn", "turns"])
def test_a_solved_attempt_is_told_nothing_about_its_turns(layout):
    solved = Verdict(reward=1.0, solved=True)
    failed = Verdict(reward=0.0, solved=False, feedback="WHOLE")
    two = Group(
        task=TASK, rollouts=(FAILED, conversation(("four", (), "SAID4"), index=1)),
        verdicts=(solved, failed),
    )  # fmt: skip
    rules = ContextConfig(feedback="always", layout=layout)
    first, second = teacher_contexts(two, rules, random.Random(0), Reading.of(CHAT))
    assert first.messages is None
    # The other reads the whole solved conversation, and what was said of its own turn.
    shown = str(second.messages)
    parts = ["one", "R1", "two", "R2", "R3", "three", "WHOLE", "SAID4"]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    assert "SAID1" not in shown


def test_feedback_on_turns_is_cut_to_the_teachers_budget():
    long = conversation(*[("a", ("r",), "x" * 600)] * 5, ("b", (), "y" * 600))
    found = context(group(rollout=long), max_tokens=1100)
    frame = CHAT.prompt_ids([{"role": "user", "content": ""}])
    used = len(CHAT.prompt_ids(found.messages)) + sum(
        len(CHAT.prompt_ids([{"role": "user", "content": f"\n\n{said}"}])) - len(frame)
        for said in found.before_turns
        if said
    )
    assert used <= 1100
    assert found.reason.startswith("cut ")


def test_more_turns_than_the_budget_has_frames_for_are_left_out():
    many = conversation(*[("a", ("r",), "said")] * 30, ("b", (), None))
    found = context(group(rollout=many), max_tokens=300)
    assert found.before_turns == ()
    assert "WHOLE" in str(found.messages)
    assert found.reason.startswith("cut ")


def test_a_teacher_that_answers_itself_reads_everything_first():
    assert for_own_answers(ContextConfig()).turn_feedback == "at_start"
    assert for_own_answers(ContextConfig(turn_feedback="never")).turn_feedback == "never"


def test_a_function_of_the_users_own_says_something_of_each_turn(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def shown(group, index, others, rng, said=('A', None, 'B')):\n"
        "    return {'turn_feedback': said}\n"
    )
    rules = CustomContextConfig(path=f"{file}:shown")
    (found,) = teacher_contexts(group(), rules, random.Random(0), Reading.of(CHAT))
    assert "earlier answer at this point:\n\nA" in found.messages[-1]["content"]
    assert [bool(said) for said in found.before_turns] == [False, False, True]
    assert found.sources == ("turn_feedback",)
    short = CustomContextConfig(path=f"{file}:shown", options={"said": ["A"]})
    with pytest.raises(ConfigError, match="each of the attempt's 3 turns"):
        teacher_contexts(group(), short, random.Random(0), Reading.of(CHAT))
