"""Reasoning Gym, the real library: any set by its name, scored in a confined process."""

from __future__ import annotations

from contextlib import closing

import pytest

from sdpo.config import schema
from sdpo.envs.adapters.reasoning_gym import last_answer
from sdpo.envs.base import Checking, Env, Solving
from sdpo.envs.opening import open_env
from sdpo.errors import ConfigError


def opened(tasks, **settings):
    pytest.importorskip("reasoning_gym")
    return closing(open_env(schema.ReasoningGymEnvConfig(tasks=tasks, **settings)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> a b </answer>", "a b"),
        ("<answer>a</answer> no: <answer>b</answer>", "b"),
        ("<answer>a</answer> <answer>b", "a"),
        ("a</answer>", None),
        ("<answer>a", None),
        ("", None),
    ],
)
def test_last_answer(text, answer):
    assert last_answer(text) == answer


def test_a_set_by_its_name_trains_and_evaluates_on_different_tasks():
    with opened("spell_backward", size=4, eval_size=3) as env:
        assert all(isinstance(env, part) for part in (Env, Checking, Solving))
        train, held_out = env.load("train"), env.load("eval")
        assert (len(train), len(held_out)) == (4, 3)
        assert not {t.messages[1]["content"] for t in train} & {
            t.messages[1]["content"] for t in held_out
        }
        assert "<answer>" in train[0].messages[0]["content"]
        report = env.check()
        assert (report.num_tasks, report.failures, report.skipped) == (7, {}, 0)
        right = env.judge_text(train[0], env.reference_answer(train[0]), is_truncated=False)
        assert (right.reward, right.solved, right.feedback) == (1.0, True, None)
        wrong = env.judge_text(train[0], "<answer>zq</answer>", is_truncated=False)
        assert not wrong.solved
        assert "'zq'" in wrong.feedback or "zq scores" in wrong.feedback
        assert env.judge_text(train[0], "zq", is_truncated=False).info["category"] == (
            "incorrect_format"
        )
        assert env.judge_text(train[0], "zq", is_truncated=True).info["category"] == "truncated"


def test_sets_pass_their_own_rule_behind_the_jail():
    names = (
        "basic_arithmetic,simple_equations,countdown,sudoku,knights_knaves,number_sorting,"
        "polynomial_equations,word_sorting,zebra_puzzles"
    )
    with opened(names, size=1, eval_size=1) as env:
        report = env.check()
        assert (report.num_tasks, report.failures) == (18, {})


def test_tasks_are_the_same_every_time_and_take_options():
    texts = []
    for options in ({}, {}, {"max_word_len": 3}):
        with opened("spell_backward", size=5, eval_size=1, options=options) as env:
            texts.append([task.messages[1]["content"] for task in env.load("train")])
    assert texts[0] == texts[1] != texts[2]


def test_what_a_model_writes_is_not_run_in_the_trainers_process(tmp_path):
    """sympy's parser evaluates Python; several sets give it the answer."""
    path = tmp_path / "canary"
    attack = f"__import__('os').system('touch {path}')"
    with opened("simple_equations,countdown,polynomial_equations", size=1, eval_size=1) as env:
        for task in env.load("train"):
            assert not env.judge_text(task, f"<answer>{attack}</answer>", is_truncated=False).solved
    assert not path.exists()


def test_unknown_sets_and_options_say_what_there_is():
    with (
        opened("spel_backward") as env,
        pytest.raises(ConfigError, match=r"no set 'spel_backward'; it has .*spell_backward"),
    ):
        env.load("train")
    with (
        opened("spell_backward", options={"wordlen": 3}) as env,
        pytest.raises(ConfigError, match=r"env.options do not fit the set .*wordlen"),
    ):
        env.load("train")


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        open_env(schema.ReasoningGymEnvConfig(tasks="spell_backward"))
