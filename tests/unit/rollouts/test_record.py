import gzip
import json
from dataclasses import replace

import pytest

from sdpo.records import Group, Rollout, Task, TeacherContext, Turn, Verdict
from sdpo.rollouts.credit import TokenCredit, read_credit
from sdpo.rollouts.record import RolloutRecorder, read_rollouts, rollout_rows

ASK = ({"role": "user", "content": "q"},)
SHOWN = TeacherContext(
    messages=({"role": "user", "content": "q + demo"},), demonstration=1, sources=("sibling",)
)
TOLD = TeacherContext(
    messages=({"role": "user", "content": "q + no"},), feedback_used=True, sources=("feedback",)
)


def attempt(index, turns=()):
    return Rollout(
        task_id="t",
        index=index,
        prompt_ids=(1, 2),
        completion_ids=(3, 4, 5),
        sampler_logprobs=(-0.1,) * 3,
        text="a\ud800b",
        truncated=index == 2,
        policy_version=7,
        turns=turns,
    )


def group(contexts=()):
    return Group(
        task=Task(id="t", messages=ASK),
        rollouts=tuple(attempt(i) for i in range(3)),
        verdicts=tuple(
            Verdict(
                reward=float(i == 1),
                solved=i == 1,
                feedback=None if i == 1 else "Wrong Answer",
                info={"category": "accepted" if i == 1 else "wrong_answer", "x": object()},
            )
            for i in range(3)
        ),
        contexts=contexts,
    )


CONTEXTS = (SHOWN, TOLD, SHOWN)


def test_a_line_per_rollout_with_what_the_teacher_read(tmp_path):
    with RolloutRecorder(tmp_path) as recorder:
        recorder.write(3, [group(CONTEXTS)], teacher_prompt_tokens={("t", 0): 9})
    found = gzip.decompress((tmp_path / "rollouts.jsonl.gz").read_bytes())
    lines = [json.loads(line) for line in found.splitlines()]
    assert [line["prompt"] for line in lines] == [list(ASK), 0, 0]
    assert lines[2]["teacher"] == 0
    rows = list(read_rollouts(tmp_path))
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert all(row["prompt"] == list(ASK) for row in rows)
    assert [row["teacher"][0]["content"] for row in rows] == ["q + demo", "q + no", "q + demo"]
    assert [row["sources"] for row in rows] == [["sibling"], ["feedback"], ["sibling"]]
    first = rows[0]
    assert (first["step"], first["split"], first["category"]) == (3, "train", "wrong_answer")
    assert (first["completion_tokens"], first["teacher_prompt_tokens"]) == (3, 9)
    assert (rows[2]["truncated"], rows[2]["policy_version"]) == (True, 7)


def test_evaluation_has_no_teacher():
    rows = rollout_rows(0, [group()], split="eval")
    assert [row["teacher"] for row in rows] == [None] * 3


def test_resuming_forgets_later_steps(tmp_path):
    recorder = RolloutRecorder(tmp_path)
    for step in (1, 2):
        recorder.write(step, [group(CONTEXTS)])
        recorder.record_credit([credit(step)])
    recorder.resume_at(1)
    assert {row["step"] for row in read_rollouts(tmp_path)} == {1}
    assert [item.step for item in read_credit(tmp_path)] == [1]


def test_turns_are_kept():
    turns = tuple(
        Turn(
            prompt_ids=(1,),
            completion_ids=(2,),
            sampler_logprobs=(0.0,),
            text=text,
            truncated=False,
            reply=reply,
        )
        for text, reply in (("call", ({"role": "tool", "content": "42"},)), ("42", ()))
    )
    one = Group(
        task=Task(id="t", messages=ASK),
        rollouts=(attempt(0, turns),),
        verdicts=(Verdict(reward=1.0, solved=True),),
    )
    (row,) = rollout_rows(1, [one])
    assert row["turns"][0]["reply"][0]["content"] == "42"
    assert (row["prompt_tokens"], row["completion_tokens"]) == (1, 2)


def credit(step=1):
    return TokenCredit(
        task_id="t",
        index=1,
        step=step,
        token_ids=(9, 2),
        student_logprobs=(-0.1, -2.0),
        teacher_logprobs=(-0.12345, -6.0),
        student_entropies=(0.2, 1.1),
        teacher_entropies=(0.1, 0.4),
        student_top=(((9, -0.1), (8, -9.0)), ((4, -0.6), (2, -2.0))),
        teacher_top=(((9, -0.1),), ((4, -0.1),)),
        texts={9: "return", 2: " x", 4: " y", 8: "never"},
        advantage=-0.25,
        trained=(True, False),
    )


def test_credit_round_trips_up_to_rounding(tmp_path):
    with RolloutRecorder(tmp_path) as recorder:
        recorder.record_credit([credit()])
    (back,) = read_credit(tmp_path)
    assert back.gaps == pytest.approx((-0.023, -4.0), abs=1e-9)
    assert back.student_top == (((9, -0.1),), ((4, -0.6), (2, -2.0)))
    assert back.texts == {9: "return", 2: " x", 4: " y"}
    assert back.trained == (True, False)
    assert back.advantage == -0.25


LONG = "a long attempt, word by word, " * 5
SAID = "what the judge says about it, at length, so that it is worth naming; " * 2


def long_group():
    """Attempt 1 is solved; the others are shown it, and what was said about them."""
    contexts = tuple(
        TeacherContext(
            messages=(
                {"role": "system", "content": "be right"},
                {"role": "user", "content": f"{ASKED}\nA solution:\n{LONG} 1\n\n{SAID} {i}\nNow."},
            ),
            demonstration=1,
            feedback_used=True,
            sources=("sibling", "feedback"),
        )
        for i in range(3)
    )
    return Group(
        task=Task(id="t", messages=({"role": "user", "content": ASKED},)),
        rollouts=tuple(replace(attempt(i), text=f"{LONG} {i}") for i in range(3)),
        verdicts=tuple(
            Verdict(reward=float(i == 1), solved=i == 1, feedback=f"{SAID} {i}") for i in range(3)
        ),
        contexts=contexts,
    )


ASKED = "a question that takes some room to ask, as most of those worth asking do; " * 2


def test_contexts_repeated_the_prompt_the_demonstration_and_the_feedback(tmp_path):
    with RolloutRecorder(tmp_path) as recorder:
        rows = recorder.write(1, [long_group()])
    assert rows[0]["teacher"][1]["content"] == [
        ["prompt", 0], "\nA solution:\n", ["text", 1], "\n\n", ["feedback", 0], "\nNow.",
    ]  # fmt: skip
    assert rows[0]["teacher"][0]["content"] == "be right"
    back = list(read_rollouts(tmp_path))
    for row, context in zip(back, long_group().contexts, strict=True):
        assert row["teacher"] == [dict(message) for message in context.messages]


@pytest.mark.parametrize(
    ("kept", "expected"), [("failures", [0, 2]), ("sample", []), ("all", [0, 1, 2])]
)
def test_texts_that_are_not_kept_leave_their_verdicts(tmp_path, kept, expected):
    whole = rollout_rows(1, [group(), group(), group(), group(), long_group()])
    with RolloutRecorder(tmp_path, kept=kept) as recorder:
        recorder.write(1, [group(), group(), group(), group(), long_group()])
    back = list(read_rollouts(tmp_path))[-3:]
    assert [row["index"] for row in back if row["text"] is not None] == expected
    texts = ("text", "prompt", "feedback", "teacher")
    for row, full in zip(back, whole[-3:], strict=True):
        assert {k: v for k, v in row.items() if k not in texts} == {
            k: v for k, v in full.items() if k not in texts
        }
        is_kept = row["index"] in expected
        assert all((row[name] is not None) == is_kept for name in texts)
        if is_kept:
            assert f"{LONG} 1" in row["teacher"][1]["content"]
            assert row["prompt"][0]["content"] == ASKED
