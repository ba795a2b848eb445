"""Tasks that a run cannot use are refused before anything is sampled, by `check` and `train`
alike."""

from __future__ import annotations

import pytest

import sdpo
from sdpo.errors import ConfigError, ModelError, PromptTooLongError
from sdpo.testing import byte_tokenizer, tiny_model

LONG = "x" * 300


def judge(task, rollout):
    return sdpo.Verdict(reward=0.0, solved=False, feedback="no")


def env_of(*prompts):
    tasks = [{"id": f"t{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]
    return sdpo.env(tasks, judge, eval_tasks=[{"id": "e", "prompt": "short"}])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("call", [sdpo.check, sdpo.train], ids=["check", "train"])
@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            ["rollout.max_prompt_tokens=200"],
            ["2 of 4 train tasks", "max_prompt_tokens = 200", "'t1' (3"],
        ),
        (
            ["rollout.max_prompt_tokens=600", "teacher.context.max_tokens=300"],
            ["2 of 4 train tasks", "teacher.context.max_tokens = 300", "'t1'", "raise it"],
        ),
        (
            ["rollout.max_prompt_tokens=600", "rollout.max_completion_tokens=1900"],
            ["2 of 4 train tasks", "2048 positions", "max_completion_tokens = 1900"],
        ),
        (
            ["rollout.max_prompt_tokens=600", "teacher.context.max_tokens=2041"],
            ["2048 positions", "lower teacher.context.max_tokens to 2040 or less"],
        ),
    ],
)
def test_all_long_tasks_are_named_at_once(model, tmp_path, call, settings, parts):
    arguments = [
        f"run={tmp_path / 'run'}", f"model.name={model}", "model.dtype=float32",
        "objective.type=sdpo", "steps=1", "rollout.max_completion_tokens=8",
        "rollout.group_size=2", "eval.samples=1", *settings,
    ]  # fmt: skip
    with pytest.raises(PromptTooLongError) as error:
        call(*arguments, env=env_of("a", LONG, LONG[:-1], "b"))
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "run" / "rollouts.jsonl").exists(), "nothing was sampled"


def test_without_a_teacher_its_frame_is_not_asked_for(model, tmp_path):
    report = sdpo.check(
        f"model.name={model}", "objective.type=grpo", "rollout.max_prompt_tokens=600",
        "teacher.context.max_tokens=50", env=env_of("a", LONG),
    )  # fmt: skip
    assert report.failures == {}


@pytest.mark.parametrize("call", [sdpo.check, sdpo.train], ids=["check", "train"])
def test_a_model_without_a_system_role_ended_a_run_in_the_step_that_drew_the_task(tmp_path, call):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model().save_pretrained(tmp_path / "model")
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say b"}]
    env = sdpo.env(["say a", {"id": "t1", "messages": brief}], judge)
    arguments = [
        f"run={tmp_path / 'run'}", f"model.name={tmp_path}/model", "model.dtype=float32",
        "steps=1", "rollout.tasks_per_step=1", "rollout.max_completion_tokens=2",
        "rollout.group_size=2", "eval.samples=1",
    ]  # fmt: skip
    with pytest.raises(ModelError) as error:
        call(*arguments, env=env)
    assert str(error.value).startswith("task 't1': prompt: the chat template of ")


class WithoutSolutions:
    """An environment with what every environment must have and no more."""

    def load(self, split):
        return [sdpo.Task(id="e", messages=({"role": "user", "content": "say a"},))]

    def judge(self, task, rollout):
        return judge(task, rollout)


@pytest.mark.parametrize(
    "env", [WithoutSolutions(), env_of("a", "b")], ids=["without the method", "without any"]
)
@pytest.mark.parametrize(
    "call",
    [sdpo.check, sdpo.train, lambda *a, env: sdpo.discover("e", *a, env=env)],
    ids=["check", "train", "discover"],
)
def test_reference_demonstrations_without_any_solution_are_refused(model, tmp_path, call, env):
    arguments = [
        f"run={tmp_path / 'run'}", f"model.name={model}", "model.dtype=float32",
        "objective.type=sdpo", "steps=1", "rollout.max_completion_tokens=2",
        "rollout.group_size=2", "eval.samples=1", "teacher.context.demonstration=reference",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"demonstration = 'reference' needs tasks with solu"):
        call(*arguments, env=env)


def test_nobody_asks_for_solutions_that_no_teacher_reads_or_that_some_task_has(model, tmp_path):
    arguments = [
        f"model.name={model}", "model.dtype=float32", "rollout.max_completion_tokens=2",
        "teacher.context.demonstration=reference",
    ]  # fmt: skip
    sdpo.check(*arguments, "objective.type=grpo", env=WithoutSolutions())
    some = sdpo.env(["say a", {"id": "t1", "prompt": "say b", "reference": "b"}], judge)
    sdpo.check(*arguments, "objective.type=sdpo", env=some)
