"""Adapters, against fakes of the foreign interfaces built by hand."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

import sdpo
from sdpo.envs.adapters.datasets import tasks_from_rows
from sdpo.envs.adapters.reward_functions import from_trl, from_verl
from sdpo.envs.adapters.verifiers import from_verifiers
from sdpo.envs.base import Env
from sdpo.errors import ConfigError, JudgeError, TaskError, Unjudged
from sdpo.records import Rollout
from sdpo.rollouts.judging import judge_all


def attempt(text, truncated=False):
    return Rollout(
        task_id="0", index=0, prompt_ids=(1,), completion_ids=(5, 6), sampler_logprobs=(-0.1, -0.2),
        text=text, truncated=truncated, policy_version=0,
    )  # fmt: skip


def judged(env, text, number=0):
    (verdict,) = judge_all(env, [(env.load("train")[number], attempt(text))])
    return verdict


class FakeDataset:
    """What is used of `datasets.Dataset`: it is iterated and yields dicts."""

    def __init__(self, rows):
        self._rows = rows

    def __iter__(self):
        return iter(self._rows)


# --- rows of datasets -------------------------------------------------------------------------


def test_dataset_rows_become_tasks():
    rows = FakeDataset([{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}])
    first, second = tasks_from_rows(rows, prompt="question", system="Be brief.")
    assert first.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
    )
    assert (first.id, second.id, second.reference) == ("0", "1", "4")
    env = sdpo.env([first], lambda task, rollout: float(rollout.text == task.reference))
    assert judged(env, "2").solved


def test_dataset_rows_of_messages_keep_every_turn_and_drop_empty_columns():
    turns = [
        {"role": "user", "content": "Hi", "name": None},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1+1?"},
    ]
    rows = [{"prompt": turns, "uid": 9}]
    (task,) = tasks_from_rows(rows, reference=None, id="uid")
    assert [message["content"] for message in task.messages] == ["Hi", "Yes?", "1+1?"]
    assert "name" not in task.messages[0]
    assert (task.id, task.reference) == ("9", rows[0])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no row"),
        ([{"question": "a"}], "row 0: no column 'prompt'; the columns are question"),
        ([{"prompt": "a"}], "row 0: no column 'answer'"),
        ([{"prompt": 3, "answer": 1}], "row 0: prompt: expected a string or a list of messages"),
        ([{"prompt": [], "answer": 1}], "row 0: prompt: expected a string or a list"),
        ([{"prompt": [{"role": "user"}], "answer": 1}], "a message has role and content"),
        (
            [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}],
            "content must be a string",
        ),
        (
            [{"prompt": [{"role": "assistant", "content": "x"}], "answer": 1}],
            "last message is from",
        ),
    ],
)
def test_dataset_rows_that_are_wrong_name_row_and_column(rows, says):
    with pytest.raises(TaskError) as error:
        tasks_from_rows(rows)
    assert says in str(error.value)


# --- TRL --------------------------------------------------------------------------------------


def trl_reward(prompts, completions, answer, **kwargs):
    assert set(kwargs) >= {"completion_ids"}
    assert len(prompts) == len(completions) == len(answer)
    return [float(wanted in text) for text, wanted in zip(completions, answer, strict=True)]


TRL_ROWS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]


def test_trl_reward_function_judges_one_attempt_with_its_columns():
    env = from_trl(trl_reward, FakeDataset(TRL_ROWS))
    assert isinstance(env, Env)
    assert (judged(env, "it is 2").reward, judged(env, "it is 2").solved) == (1.0, True)
    assert judged(env, "it is 2", number=1).reward == 0.0
    assert judged(env, "it is 3").feedback is None


def test_trl_conversations_get_completions_of_messages():
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.append((prompts, completions))
        return [0.5]

    turns = [{"role": "user", "content": "1+1?"}]
    env = from_trl(reward, [{"prompt": turns}], solved_at=0.5)
    assert judged(env, "2").solved
    assert seen == [([turns], [[{"role": "assistant", "content": "2"}]])]


def test_trl_functions_without_kwargs_and_async_ones_work():
    async def reward(completions, answer):
        return [1.0 if completions == ["2"] and answer == ["2"] else 0.0]

    assert judged(from_trl(reward, TRL_ROWS), "2").solved


def test_trl_feedback_is_written_by_the_user():
    env = from_trl(
        trl_reward,
        TRL_ROWS,
        eval_rows=TRL_ROWS[:1],
        feedback=lambda task, text, reward: f"{text} earned {reward} of {task.reference['answer']}",
    )
    assert judged(env, "3").feedback == "3 earned 0.0 of 2"
    assert len(env.load("eval")) == 1


@pytest.mark.parametrize("returned", [[], [1.0, 2.0], 1.0])
def test_trl_reward_that_is_no_single_number_stops_the_run(returned):
    env = from_trl(lambda prompts, completions, **kwargs: returned, TRL_ROWS)
    with pytest.raises(JudgeError, match="for one completion"):
        judge_all(env, [(env.load("train")[0], attempt("x"))])


@pytest.mark.parametrize(
    "returned",
    [numpy.array([0.25]), torch.tensor([0.25]), (0.25,), [numpy.float32(0.25)]],
    ids=["numpy", "torch", "tuple", "scalar"],
)
def test_trl_arrays_and_tensors_were_no_sequences(returned):
    env = from_trl(lambda completions: returned, TRL_ROWS)
    assert judged(env, "x").reward == 0.25


def test_trl_none_says_that_the_function_does_not_apply():
    """TRL's accuracy_reward returns it for a gold answer that cannot be parsed; the run died."""

    def nothing(completions):
        return [None]

    env = from_trl([nothing, nothing], TRL_ROWS)
    with pytest.raises(Unjudged, match="all returned None"):
        env.judge(env.load("train")[0], attempt("x"))
    assert judged(from_trl([nothing, trl_reward], TRL_ROWS), "2").reward == 1.0


def test_trl_functions_add_up_and_one_of_them_says_what_is_solved():
    def form(completions):
        return [1.0]

    async def short(completions):
        return [0.5]

    env = from_trl(
        [trl_reward, form, short], TRL_ROWS, weights=[0.5, 0.25, 0.5], solved_by="trl_reward"
    )
    wrong = judged(env, "3")
    assert (wrong.reward, wrong.solved) == (0.5, False)
    assert wrong.metrics == {"trl_reward": 0.0, "form": 1.0, "short": 0.5}
    assert judged(env, "2").solved
    twice = from_trl([lambda completions: [0.25], lambda completions: [0.5]], TRL_ROWS)
    assert judged(twice, "3").metrics == {"<lambda>": 0.25, "<lambda>#2": 0.5}
    with pytest.raises(TaskError, match="the functions are trl_reward, form"):
        from_trl([trl_reward, form], TRL_ROWS, solved_by="accuracy")
    with pytest.raises(TaskError, match="2 reward functions and 1 weights"):
        from_trl([trl_reward, form], TRL_ROWS, weights=[1.0])


def test_trl_state_and_logging_were_unknown_arguments():
    def reward(completions, trainer_state, log_metric, log_extra):
        log_metric("length", len(completions[0]))
        log_extra("said", [completions[0]])
        return [float(trainer_state.global_step == 0)]

    verdict = judged(from_trl(reward, TRL_ROWS), "abc")
    assert (verdict.reward, verdict.metrics) == (1.0, {"length": 3.0})
    assert verdict.info["said"] == "abc"


@pytest.mark.parametrize("make", [
    lambda slow: from_trl(lambda completions: slow() or [1.0], TRL_ROWS),
    lambda slow: from_verl(lambda **_: slow() or 1.0, VERL_ROWS),
])  # fmt: skip
def test_waiting_rewards_wait_at_the_same_time(make):
    """32 rewards of a quarter of a second took eight."""
    together = threading.Barrier(8, timeout=20)
    env = make(lambda: together.wait() * 0)
    attempts = [(env.load("train")[0], attempt("x")) for _ in range(8)]
    assert [verdict.reward for verdict in judge_all(env, attempts)] == [1.0] * 8


def test_trls_own_reward_functions(monkeypatch):
    rewards = pytest.importorskip("trl.rewards")
    rows = [
        {"prompt": [{"role": "user", "content": "1+1?"}], "solution": "\\boxed{2}"},
        {"prompt": [{"role": "user", "content": "Why?"}], "solution": "because"},
    ]
    env = from_trl(
        [rewards.accuracy_reward, rewards.think_format_reward], rows,
        weights=[1.0, 0.1], solved_by="accuracy_reward",
    )  # fmt: skip
    task, unparsable = env.load("train")
    right = env.judge(task, attempt("<think>\nadd\n</think>\n\\boxed{2}"))
    assert (round(right.reward, 6), right.solved) == (1.1, True)
    wrong = env.judge(task, attempt("<think>\nadd\n</think>\n\\boxed{3}"))
    assert (round(wrong.reward, 6), wrong.solved) == (0.1, False)
    assert "accuracy_reward" not in env.judge(unparsable, attempt("\\boxed{3}")).metrics


# --- verl -------------------------------------------------------------------------------------

VERL_ROWS = [
    {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "split": "train"},
    }
]


def test_verl_score_function_judges():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        assert (data_source, extra_info["index"]) == ("gsm8k", 0)
        return float(solution_str == ground_truth)

    env = from_verl(compute_score, VERL_ROWS)
    assert judged(env, "2").solved
    assert not judged(env, "3").solved


def test_verl_dict_gives_feedback_and_metrics():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return {"score": 0.25, "acc": False, "pred": "x", "feedback": f"not {solution_str}"}

    verdict = judged(from_verl(compute_score, VERL_ROWS), "3")
    assert (verdict.reward, verdict.solved, verdict.feedback) == (0.25, False, "not 3")
    assert verdict.metrics == {"acc": 0.0}


def test_verls_own_score_function():
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        pytest.skip("verl is not installed")
    # The package itself imports ray; the function needs nothing.
    path = Path(spec.origin).parent / "utils" / "reward_score" / "gsm8k.py"
    loaded = importlib.util.spec_from_file_location("verl_gsm8k", path)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return module.compute_score(solution_str, ground_truth)

    env = from_verl(compute_score, VERL_ROWS)
    assert judged(env, "so\n#### 2").solved
    assert judged(env, "so\n#### 3").reward == 0


def test_verl_numbers_of_numpy_are_numbers():
    score = {"score": numpy.float32(1.0), "acc": numpy.bool_(True), "many": numpy.ones(2)}
    verdict = judged(from_verl(lambda **_: score, VERL_ROWS), "2")
    assert (verdict.reward, verdict.metrics) == (1.0, {"acc": 1.0})


def test_verl_prompts_may_be_arrays():
    class Array:
        def __iter__(self):
            return iter(VERL_ROWS[0]["prompt"])

    env = from_verl(lambda **kwargs: 1.0, [{**VERL_ROWS[0], "prompt": Array()}])
    assert env.load("train")[0].messages == ({"role": "user", "content": "1+1?"},)


def test_verl_rows_and_scores_that_are_wrong_are_told():
    with pytest.raises(TaskError, match="row 0: reward_model"):
        from_verl(lambda **kwargs: 1.0, [{"prompt": "a"}])
    with pytest.raises(TaskError, match="row 0: prompt"):
        from_verl(lambda **kwargs: 1.0, [{"reward_model": {"ground_truth": 1}}])
    env = from_verl(lambda **kwargs: {"reward": 1.0}, VERL_ROWS)
    with pytest.raises(JudgeError, match="no key 'score'"):
        judged(env, "2")


# --- verifiers --------------------------------------------------------------------------------


class FakeParser:
    def parse_answer(self, completion):
        return completion[-1]["content"].removeprefix("answer: ")


def correct(parser, completion, answer, **kwargs):
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


async def short(completion, state):
    state["feedback"] = f"{len(completion[0]['content'])} characters"
    return float(len(completion[0]["content"]) < 10)


class FakeEnvironment:
    """What is used of `verifiers.SingleTurnEnv`."""

    def __init__(self, funcs, weights, **extra):
        self.rubric = SimpleNamespace(
            funcs=funcs, weights=weights, class_objects={"parser": FakeParser()}
        )
        self.eval_dataset = None
        vars(self).update(extra)

    def get_dataset(self):
        return FakeDataset(
            [{"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2", "example_id": 0}]
        )

    def get_eval_dataset(self):
        return self.eval_dataset


@pytest.mark.filterwarnings("ignore:the judge returns rewards outside")
def test_verifiers_rubric_is_the_weighted_sum_of_its_functions():
    env = from_verifiers(FakeEnvironment([correct, short], [1.0, 0.5], max_turns=1))
    verdict = judged(env, "answer: 2")
    assert (verdict.reward, verdict.solved) == (1.5, True)
    assert verdict.metrics == {"correct": 1.0, "short": 1.0}
    assert verdict.feedback == "9 characters"
    assert judged(env, "answer: 3").reward == 0.5


def parts(completion, **kwargs):
    return {"lines": 3, "ok": True}


def test_verifiers_functions_without_weight_may_log_their_parts():
    """As published environments do (staros-stardata); a dict is no number, and the run stopped."""
    verdict = judged(from_verifiers(FakeEnvironment([correct, parts], [1.0, 0.0])), "answer: 2")
    assert (verdict.reward, verdict.solved) == (1.0, True)
    assert verdict.metrics == {"correct": 1.0, "lines": 3.0, "ok": 1.0}
    with pytest.raises(JudgeError, match="float"):
        judged(from_verifiers(FakeEnvironment([correct, parts], [0.5, 0.5])), "answer: 2")


def test_verifiers_questions_get_the_system_prompt_and_groups_of_rubrics_add_up():
    rubric = SimpleNamespace(
        rubrics=[
            SimpleNamespace(funcs=[correct], weights=[1.0], parser=FakeParser()),
            SimpleNamespace(funcs=[short], weights=[0.0], parser=FakeParser()),
        ]
    )
    environment = FakeEnvironment(
        [], [], rubric=rubric, system_prompt="Be brief.",
        eval_dataset=FakeDataset([{"question": "2+2?", "answer": "4"}]),
    )  # fmt: skip
    env = from_verifiers(environment, feedback=lambda task, state: state["answer"] + "!")
    assert env.load("eval")[0].messages[0] == {"role": "system", "content": "Be brief."}
    (verdict,) = judge_all(env, [(env.load("eval")[0], attempt("answer: 4"))])
    assert (verdict.reward, verdict.feedback) == (1.0, "4!")


def test_verifiers_wrong_answer_in_the_right_form_was_solved():
    def form(completion):
        return 1.0

    def brief(completion):
        return 1.0

    environment = FakeEnvironment([correct, form, brief], [0.5, 0.25, 0.25])
    assert not judged(from_verifiers(environment), "answer: 3").solved
    assert judged(from_verifiers(environment), "answer: 2").solved
    assert not judged(from_verifiers(environment, solved_by="correct"), "answer: 3").solved
    assert judged(from_verifiers(environment, solved_by="form"), "answer: 3").solved
    with pytest.raises(JudgeError, match="the rewards are correct, form, brief"):
        judged(from_verifiers(environment, solved_by="exact"), "answer: 3")


def test_verifiers_reward_that_raises_stops_the_run_instead_of_becoming_zero():
    def broken(completion):
        raise KeyError("boom")

    env = from_verifiers(FakeEnvironment([broken], [1.0]))
    with pytest.raises(JudgeError, match="boom"):
        judge_all(env, [(env.load("train")[0], attempt("x"))])


def test_verifiers_environments_that_cannot_be_adapted_are_refused():
    with pytest.raises(ConfigError, match="max_turns = 10"):
        from_verifiers(FakeEnvironment([correct], [1.0], max_turns=10))
    with pytest.raises(ConfigError, match="no reward function"):
        from_verifiers(FakeEnvironment([], []))
    environment = FakeEnvironment([lambda completions: [0.0 for _ in completions]], [1.0])
    with pytest.raises(ConfigError, match="judges groups"):
        from_verifiers(environment)
