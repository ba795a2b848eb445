"""Mathematics: boxes, symbolic comparison from threads, time limits, rows."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from sdpo.config import schema
from sdpo.envs.math import INSTRUCTION, Math, last_box
from sdpo.envs.opening import open_env
from sdpo.errors import ConfigError, TaskError

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    path = tmp_path_factory.mktemp("math") / "math.jsonl"
    rows = [
        {"id": "half", "problem": "What is 1/2?", "answer": "\\frac{1}{2}"},
        {"id": "set", "problem": "Roots? Use \\boxed{}.", "answer": "\\{1, 2\\}"},
        {"id": "day", "problem": "Which day?", "answer": "\\text{Tuesday}"},
        {"id": "boxed", "problem": "What is 2 x?", "answer": "So \\boxed{2x}"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with closing(
        Math(schema.MathEnvConfig(tasks=str(path), eval_fraction=0), time_limit_s=4.0)
    ) as made:
        yield made


def task(env, task_id):
    return next(task for task in env.load("train") if task.id == task_id)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1}", "1"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{a\\\\}", "a\\\\"),
        ("\\boxed{1", None),
        ("\\boxed{1} \\boxed{2", None),
        ("boxed{1}", None),
        ("\\boxed 1", None),
    ],
)
def test_last_box(text, content):
    assert last_box(text)[0] == content


def test_prompts_ask_for_a_box_once(env):
    assert task(env, "half").messages[-1]["content"] == f"What is 1/2?\n\n{INSTRUCTION}"
    assert task(env, "set").messages[-1]["content"] == "Roots? Use \\boxed{}."
    assert task(env, "boxed").reference == "2x"


@pytest.mark.parametrize(
    ("task_id", "text"),
    [
        ("half", "It is \\boxed{0.5}."),
        ("half", "First \\boxed{3}, but no: \\boxed{\\dfrac{2}{4}}"),
        ("set", "\\boxed{\\{2, 1\\}}"),
        ("day", "\\boxed{\\text{Tuesday}}"),
        ("day", "\\boxed{Tuesday}"),
        ("boxed", "\\boxed{x + x}"),
    ],
)
def test_right_answers_are_solved(env, task_id, text):
    assert env.judge_text(task(env, task_id), text, is_truncated=False).solved


@pytest.mark.parametrize(
    ("text", "category", "says"),
    [
        ("one half", "incorrect_format", "There is no \\boxed{...}"),
        ("\\boxed{0.5", "incorrect_format", "not closed"),
        ("\\boxed{ }", "incorrect_format", "is empty"),
        ("\\boxed{\\frac{}", "incorrect_format", "not closed"),
        ("\\boxed{((((}", "incorrect_format", "cannot be read as mathematics: (((("),
        ("\\boxed{" + "1+" * 2000 + "1}", "incorrect_format", "cannot be read"),
        ("\\boxed{0.25}", "wrong_answer", "0.25 is not correct"),
        ("<think>\\boxed{0.5}</think>\\boxed{2}", "wrong_answer", "2 is not correct"),
    ],
)
def test_wrong_answers_are_told_what_is_wrong(env, text, category, says):
    found = env.judge_text(task(env, "half"), text, is_truncated=False)
    assert (found.solved, found.info["category"]) == (False, category)
    assert says in found.feedback
    assert "\\frac{1}{2}" not in found.feedback


def test_an_endless_formula_is_ended_in_a_thread_and_the_next_one_judged(env):
    with ThreadPoolExecutor(3) as pool:
        texts = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{1/2}", "\\boxed{3}"]
        found = list(
            pool.map(
                lambda text: env.judge_text(task(env, "half"), text, is_truncated=False), texts
            )
        )
    assert [v.info["category"] for v in found] == ["time_limit", "accepted", "wrong_answer"]
    assert "in time: 9^{9^{9^{9}}}" in found[0].feedback
    assert env.judge_text(task(env, "half"), "\\boxed{0.5}", is_truncated=False).solved


def test_truncated_attempts_are_told_so_unless_they_answered(env):
    cut = env.judge_text(task(env, "half"), "So \\boxed{0.", is_truncated=True)
    assert cut.info["category"] == "truncated"
    assert env.judge_text(task(env, "half"), "\\boxed{0.5} so", is_truncated=True).solved


def test_check_passes(env):
    report = env.check()
    assert (report.num_tasks, report.failures) == (4, {})


def test_malformed_rows_name_file_line_and_key(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "p", "answer": 3}\n')
    with pytest.raises(TaskError, match=r"bad.jsonl:1: answer: expected a non-empty string, got 3"):
        open_env(schema.MathEnvConfig(tasks=str(path))).load("train")


def test_rows_without_id_are_known_by_their_problem(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\n{"problem": "q", "answer": "1"}\n')
    config = schema.MathEnvConfig(tasks=str(path), eval_fraction=0)
    first = [task.id for task in open_env(config).load("train")]
    assert len(set(first)) == 2
    path.write_text('{"problem": "q", "answer": "1"}\n')
    assert [task.id for task in open_env(config).load("train")] == first[1:]


def test_missing_math_verify_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sdpo\[math\]'"):
        open_env(schema.MathEnvConfig(tasks="x.jsonl"))
