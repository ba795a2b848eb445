"""Tool calls: what is right, what a wrong call is told, malformed JSON and rows."""

from __future__ import annotations

import json

import pytest

from sdpo.config import schema
from sdpo.envs.opening import open_env
from sdpo.errors import TaskError

PROMPT = """Tools:
Name: Weather
Documentation:
getWeather: Weather of a city.
Parameters: {"city": "string.", "days": "integer."}
Output: Weather.
getNews: News of a city.
Parameters: {"city": "string."}
Output: News.
Question: Weather of Bern, two days?"""
CALL = {"Action": "getWeather", "Action_Input": '{"city": "Bern", "days": 2}'}


def row(*calls, **changes):
    return {"idx": 1, "prompt": PROMPT, "answer": json.dumps(calls or [CALL]), **changes}


def env_of(tmp_path, *rows):
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return open_env(schema.ToolsEnvConfig(tasks=str(path), eval_fraction=0))


def answer(*calls):
    return "\n".join(
        f"Thought: call it\nAction: {name}\nAction Input: {arguments}" for name, arguments in calls
    )


def verdict(tmp_path, text, *calls, is_truncated=False):
    env = env_of(tmp_path, row(*calls))
    return env.judge_text(env.load("train")[0], text, is_truncated=is_truncated)


@pytest.mark.parametrize(
    "text",
    [
        answer(("getWeather", '{"city": "Bern", "days": 2}')),
        answer(("getWeather", '{"days": 2.0,\n "city": "Bern"}')),
        answer(("`getWeather`", '```json\n{"city": "Bern", "days": 2}\n```')),
        'Action: getWeather\nAction Input: {"city": "Bern", "days": 2}\nObservation: sunny',
        "<think>Action: x</think>" + answer(("getWeather", '{"city": "Bern", "days": 2}')),
    ],
)
def test_right_calls_are_solved(tmp_path, text):
    assert verdict(tmp_path, text).solved


@pytest.mark.parametrize(
    ("text", "category", "says"),
    [
        ("The weather is fine.", "incorrect_format", "There is no action"),
        ("Action: getWeather", "incorrect_format", "Action getWeather has no line `Action Input"),
        (answer(("getWeather", '{"city": "Bern",}')), "incorrect_format", "line 1, column 1"),
        (answer(("getWeather", '{"city": Bern}')), "incorrect_format", "at line 1, column 10"),
        (answer(("getWeather", '["Bern", 2]')), "incorrect_format", 'it is ["Bern", 2]'),
        (answer(("getWeather", '{"days": NaN}')), "incorrect_format", "NaN is not JSON"),
        (answer(("getWeather", "")), "incorrect_format", "Expecting value"),
        (answer(("getRain", "{}")), "wrong_answer", "no tool getRain. Tools: getWeather, getNews"),
        (answer(("getNews", '{"city": "Bern"}')), "wrong_answer", "getNews is not needed"),
        (answer(("getWeather", '{"city": "Bern"}')), "wrong_answer", "Missing argument: days"),
        (
            answer(("getWeather", '{"city": "Bern", "days": 2, "unit": "C"}')),
            "wrong_answer",
            "Unexpected argument: unit",
        ),
        (
            answer(("getWeather", '{"city": "Bonn", "days": 2}')),
            "wrong_answer",
            'The value of argument city is wrong: "Bonn"',
        ),
        (
            answer(("getWeather", '{"city": "Bern", "days": "2"}')),
            "wrong_answer",
            'argument days is wrong: "2"',
        ),
        (
            answer(*[("getWeather", '{"city": "Bern", "days": 2}')] * 2),
            "wrong_answer",
            "called 2 times",
        ),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(tmp_path, text, category, says):
    found = verdict(tmp_path, text)
    assert (found.reward, found.solved, found.info["category"]) == (0.0, False, category)
    assert says in found.feedback


def test_feedback_names_neither_right_values_nor_missing_actions(tmp_path):
    attempts = ("{}", '{"city": "Bonn"}', '{"city": "Bonn", "days": 3}', '{"town": 1}')
    for arguments in attempts:
        for name in ("getNews", "getWeather"):
            said = verdict(tmp_path, answer((name, arguments))).feedback
            assert "Bern" not in said
            assert name == "getWeather" or "getWeather" not in said


SIZES = [
    {"Action": "search", "Action_Input": {"size": size, "page": 1}} for size in ("s", "m", "l")
]


@pytest.mark.parametrize(
    ("sizes", "is_solved"), [("sml", True), ("lms", True), ("lll", False), ("ssl", False)]
)
def test_calls_may_come_in_any_order_but_none_may_be_faked(tmp_path, sizes, is_solved):
    text = answer(*(("search", json.dumps({"size": size, "page": 1})) for size in sizes))
    assert verdict(tmp_path, text, *SIZES).solved is is_solved


def test_too_few_calls_say_how_many(tmp_path):
    text = answer(("search", '{"size": "s", "page": 1}'))
    assert verdict(tmp_path, text, *SIZES).feedback == "Wrong Answer: 2 more calls are needed."


def test_optional_actions_may_be_left_out(tmp_path):
    calls = [CALL, {"Action": "[Optional]getNews", "Action_Input": '{"city": "Bern"}'}]
    needed = ("getWeather", '{"city": "Bern", "days": 2}')
    assert verdict(tmp_path, answer(needed), *calls).solved
    assert verdict(tmp_path, answer(needed, ("getNews", '{"city": "Bern"}')), *calls).solved
    assert not verdict(tmp_path, answer(("getNews", '{"city": "Bern"}')), *calls).solved


@pytest.mark.parametrize(
    ("left", "right", "is_solved"),
    [
        ("1", "true", False),
        ("0", "false", False),
        ("5", "5.0", True),
        ("null", "0", False),
        ('{"a": [1, 2]}', '{"a": [1.0, 2]}', True),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
    ],
)
def test_values_compare_as_json(tmp_path, left, right, is_solved):
    calls = [{"Action": "f", "Action_Input": f'{{"x": {left}}}'}]
    assert verdict(tmp_path, answer(("f", f'{{"x": {right}}}')), *calls).solved is is_solved


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": ' + "[" * 100_000,
        '{"city": ' + "[" * 950 + "]" * 950 + ', "days": 2}',
        '{"city": ' + "9" * 5_000 + "}",
        '{"city": 1e999, "days": 2}',
        '{"city": "\\ud800", "days": 2}',
        " " * 50_000 + "x",
    ],
)
def test_hostile_input_is_judged(tmp_path, arguments):
    found = verdict(tmp_path, answer(("getWeather", arguments)))
    assert not found.solved
    assert len(found.feedback) < 1500
    found.feedback.encode()


@pytest.mark.timeout(20)
def test_long_answers_are_judged_quickly_and_answered_shortly(tmp_path):
    many = answer(*((f"tool{i}", "{}") for i in range(3000)))
    for text in (many, "Action:" + " " * 50_000 + "x", "Action: a\n" * 5000):
        found = verdict(tmp_path, text)
        assert not found.solved
        assert len(found.feedback) < 1500


def test_truncated_attempts_are_told_so(tmp_path):
    text = 'Thought: hm\nAction: getWeather\nAction Input: {"city"'
    assert verdict(tmp_path, text, is_truncated=True).info["category"] == "truncated"


@pytest.mark.parametrize(
    ("answer_", "says"),
    [
        ("[", "tools.jsonl:1: answer: not JSON"),
        ("[]", "tools.jsonl:1: answer: expected a list"),
        ([{"Action": "f"}], "tools.jsonl:1: answer[0]: expected the keys"),
        ([{"Action": "", "Action_Input": "{}"}], "tools.jsonl:1: answer[0].Action: expected"),
        ([{"Action": "f", "Action_Input": "{x"}], "tools.jsonl:1: answer[0].Action_Input: Expect"),
        ([{"Action": "f", "Action_Input": 3}], "tools.jsonl:1: answer[0].Action_Input: expected"),
    ],
)
def test_malformed_rows_name_file_line_and_key(tmp_path, answer_, says):
    with pytest.raises(TaskError) as error:
        env_of(tmp_path, row(answer=answer_)).load("train")
    assert says in str(error.value)


def test_check_passes(tmp_path):
    report = env_of(tmp_path, row(), row(*SIZES, idx=2)).check()
    assert (report.num_tasks, report.failures) == (2, {})


@pytest.mark.slow
def test_toolalpaca_passes_its_check(shared_data):
    env = open_env(schema.ToolsEnvConfig(tasks=str(shared_data / "tooluse_test.json")))
    report = env.check()
    assert (report.num_tasks, report.failures) == (68, {})
    assert all(task.reference["tools"] for task in env.load("train"))
