"""What people stumble over, one test for each: the right thing happens, or the message names the
fix. Whole commands and public functions, with a tiny model."""

from __future__ import annotations

import json
import re
import time

import pytest
from click.shell_completion import ShellComplete

import sdpo
from sdpo.cli import main, run
from sdpo.config.load import load, load_config
from sdpo.config.toml import to_toml
from sdpo.errors import ConfigError, ModelError, TaskError
from sdpo.models.policy import load_policy
from sdpo.models.quiet import quiet
from sdpo.printable import mend
from sdpo.rollouts.responses import judge_file
from sdpo.testing import byte_tokenizer, tiny_model

NO_TEXT = b"caf\xe9".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with quiet():
        tiny_model().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def small(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {
        "model": tiny, "run": tmp_path / "run", "steps": 1, "eval": {"samples": 1},
        "rollout": {
            "tasks_per_step": 2, "group_size": 2, "max_completion_tokens": 4,
            "max_prompt_tokens": 400,
        },
        "objective": {"type": "sdpo"},
    }  # fmt: skip


def failure(capsys, *arguments, status=2):
    capsys.readouterr()
    assert run(list(arguments)) == status
    return " ".join(capsys.readouterr().err.split())


def test_bytes_that_were_no_text_broke_the_tokenizer_in_mid_run(small):
    env = sdpo.env([f"say {NO_TEXT}", "b"], lambda task, rollout: (0.0, f"not {NO_TEXT}"))
    result = sdpo.train("quickstart", env=env, **small)
    assert result.finished
    rows = list(result.run.rollouts("train"))
    read = [json.dumps(row["teacher"], ensure_ascii=False) for row in rows]
    assert read
    assert all(f"not {NO_TEXT}" in text for text in read), "records keep what the judge wrote"
    assert mend(NO_TEXT) == "caf\ufffd"
    assert result.metrics["rollouts/mended"] == 1


def test_text_that_is_text_is_not_counted_as_mended(small):
    env = sdpo.env(["say é", "b"], lambda task, rollout: (0.0, "not caf\ufffd, é"))
    assert sdpo.train("quickstart", env=env, **small).metrics["rollouts/mended"] == 0


def test_blank_feedback_counted_as_feedback(small):
    env = sdpo.env(["a", "b"], lambda task, rollout: sdpo.Verdict(
        reward=0.0, solved=False, feedback=" \n"))  # fmt: skip
    result = sdpo.train("quickstart", env=env, **small)
    assert {row["feedback"] for row in result.run.rollouts()} == {None}
    assert result.metrics["teacher/context_fraction"] == 0


class NoTasks:
    def load(self, split):
        return []

    def judge(self, task, rollout):
        return 0.0


class Mappings(NoTasks):
    def load(self, split):
        return [{"id": "a", "messages": [{"role": "user", "content": "a"}]}]


class NoSplit(NoTasks):
    def load(self):
        return []


class Twice(NoTasks):
    def load(self, split):
        return [sdpo.Task(id="a", messages=({"role": "user", "content": "a"},))] * 2


class OneArgument(Twice):
    def load(self, split):
        return super().load(split)[:1]

    def judge(self, task):
        return 0.0


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (NoTasks, "NoTasks.load('train') returned no task"),
        (Mappings, "Mappings.load('train') holds dict; make each a sdpo.Task"),
        (NoSplit, "NoSplit.load is called as load('train')"),
        (Twice, "has the id 'a' twice"),
        (OneArgument, "OneArgument.judge is called as judge(task, rollout)"),
    ],
)
def test_a_wrong_environment_class_was_an_index_or_attribute_error(env, said, small):
    with pytest.raises(TaskError, match=re.escape(said)):
        sdpo.train("quickstart", env=env(), **small)
    assert not small["run"].exists()


def test_a_prompt_that_holds_messages_was_refused():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    env = sdpo.env([{"prompt": messages}], lambda task, rollout: 0.0)
    assert env.load("train")[0].messages == tuple(messages)
    with pytest.raises(TaskError, match="needs role and content"):
        sdpo.env([{"prompt": ["u"]}], lambda task, rollout: 0.0)


def test_a_setting_with_dashes_was_no_such_option(capsys):
    said = failure(capsys, "train", "quickstart", "--steps", "3")
    assert "settings have no dashes; write steps=3" in said
    assert "write optim.lr=1e-5" in failure(capsys, "eval", "quickstart", "--lr=1e-5")
    assert "write rollout.group_size=8" in failure(capsys, "check", "x", "--group-size", "8")
    assert "No such option '--nothing'" in failure(capsys, "train", "quickstart", "--nothing")


def test_spaces_around_the_equals_sign(capsys):
    said = failure(capsys, "train", "quickstart", "optim.lr", "=", "3e-5")
    assert "write optim.lr=3e-5" in said
    assert "write steps=3" in failure(capsys, "train", "quickstart", "steps", "3")
    assert "write steps=3" in failure(capsys, "train", "quickstart", "steps", "=3")
    assert "write steps=VALUE" in failure(capsys, "config", "show", "quickstart", "steps")


def test_one_word_where_a_list_is_wanted():
    config = load_config(["quickstart", "log.backends=wandb", "discover.tasks=a"])
    assert config.log.backends == ("wandb",)
    assert config.discover.tasks == ("a",)
    with pytest.raises(ConfigError, match="a list is needed"):
        load_config(["quickstart", "discover.tasks=3"])


def test_mps_where_there_is_none_was_a_raw_error(tiny, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ModelError, match="'mps' is not available here; use auto, cpu"):
        load_policy(str(tiny), device="mps")


def test_a_missing_vllm_was_found_after_the_model_was_loaded(small, monkeypatch):
    monkeypatch.setattr("sdpo.rollouts.sampler.load_policy", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    env = sdpo.env(["a"], lambda task, rollout: 0.0)
    settings = small | {"rollout": {"engine": {"type": "vllm"}}}
    with pytest.raises(ConfigError, match="pip install 'sdpo\\[vllm\\]'") as raised:
        sdpo.train("quickstart", env=env, **settings)
    assert raised.value.exit_code == 2
    assert not small["run"].exists()


def test_a_missing_response_file_was_called_a_task_file(capsys):
    said = failure(capsys, "judge", "--tasks", "python-basics", "--responses", "nothere")
    assert "responses = 'nothere': there is no such file" in said
    assert "task file" not in said


def test_a_folder_of_runs_had_no_report(small, tmp_path, capsys):
    env = sdpo.env(["a"], lambda task, rollout: 0.0)
    for name in ("a", "b"):
        sdpo.train("quickstart", env=env, **small | {"run": tmp_path / "runs" / name})
    capsys.readouterr()
    assert run(["report", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / "report.html")
    said = failure(capsys, "report", str(tmp_path / "empty"))
    assert "has no metrics.jsonl" in said


def test_a_path_of_an_environment_without_its_type():
    with pytest.raises(ConfigError, match=r"belongs to env\.type = 'custom'.*add env\.type=custom"):
        load_config(["quickstart", "env.path=my.py:env"])
    with pytest.raises(ConfigError, match=r"add model\.adapter\.type=lora"):
        load_config(["quickstart", "model.adapter.rank=4"])


def test_wrong_tasks_or_a_wrong_model_left_an_empty_run_folder(small, tmp_path):
    for wrong in ({"env": None, "env.tasks": "nothere.jsonl"}, {"model": "./nothere"}):
        settings = small | wrong
        env = settings.pop("env", sdpo.env(["a"], lambda task, rollout: 0.0))
        with pytest.raises((TaskError, ModelError, ConfigError)):
            sdpo.train("quickstart", env=env, **settings)
        assert not small["run"].exists()


def test_a_longer_line_of_config_show_lost_the_space_before_its_comment():
    shown = to_toml(load(["hard-task", 'discover.tasks=["a-long-name-1", "a-long-name-2"]']))
    assert all(" # " in line for line in shown.splitlines() if "#" in line)


def test_no_line_of_the_help_was_whole(capsys):
    for arguments in (["--help"], ["config", "--help"], ["init", "--help"]):
        capsys.readouterr()
        assert run(arguments) == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_the_shell_completes_recipes_and_keys():
    def completions(*words):
        *before, last = words
        found = ShellComplete(main, {}, "sdpo", "_SDPO_COMPLETE").get_completions(before, last)
        return [item.value for item in found]

    assert "quickstart" in completions("train", "quick")
    assert completions("train", "quickstart", "optim.l") == ["optim.lr="]
    assert "discover.budget=" in completions("discover", "hard-task", "discover.b")


@pytest.fixture
def search(small, tmp_path):
    """A search without a solution: the arguments that continue it."""
    (tmp_path / "own.py").write_text(
        "import sdpo\n"
        "env = sdpo.env(['say a'], lambda task, rollout: (0.0, 'say a'))\n"
    )  # fmt: skip
    return [
        "discover", "hard-task", f"model.name={small['model']}", "run=search",
        "env.type=custom", "env.path=own.py:env", "discover.tasks=task-0", "discover.seeds=1",
        "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=300",
        "teacher.context.max_tokens=300", "rollout.group_size=2",
    ]  # fmt: skip


def test_a_larger_budget_was_another_run(search, tmp_path, capsys):
    assert run([*search, "discover.budget=2"]) == 0
    shown = capsys.readouterr().out
    assert "sdpo discover search discover.budget=4" in shown
    assert run(["discover", "search", "discover.budget=4"]) == 0
    lines = (tmp_path / "search" / "discovery.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["budget"], row["attempts"]) for row in rows] == [(4, 4)]
    recorded = json.loads((tmp_path / "search" / "config.json").read_text())
    assert recorded["config"]["discover"]["budget"] == 4
    assert "already holds a run with other settings (discover.budget)" in failure(
        capsys, *search, "discover.budget=3"
    )


def test_training_in_the_folder_of_a_search_began_a_run_inside_it(search, capsys):
    assert run([*search, "discover.budget=2"]) == 0
    said = failure(capsys, "train", "search")
    assert "holds a search; `sdpo discover search` continues it" in said


def test_one_search_for_one_task_showed_tables_and_no_file(search, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "import sdpo\nenv = sdpo.env(['say a'], lambda task, rollout: 1.0)\n"
    )
    assert run([*search, "discover.budget=2"]) == 0
    shown = capsys.readouterr().out
    assert "discovery@k" not in shown
    assert "task-0, self_distillation, seed 0: solved at attempt 1" in shown
    assert f"solution: {'search/solutions/task-0.txt'}" in shown
    assert "next: sdpo report search" in shown


def test_a_file_of_tasks_was_not_iterable(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "say a", "reference": "a"}\n{"prompt": "say b"}\n')
    first, second = sdpo.env(path, lambda task, rollout: 0.0).load("train")
    assert (first.reference, second.messages[-1]["content"]) == ("a", "say b")
    with pytest.raises(TaskError, match=r"write Path\('t\.jsonl'\) for a file"):
        sdpo.env("t.jsonl", lambda task, rollout: 0.0)
    with pytest.raises(TaskError, match=r"nothere\.jsonl"):
        sdpo.env(tmp_path / "nothere.jsonl", lambda task, rollout: 0.0)


def test_verdicts_of_a_killed_judge_were_lost_with_its_buffer(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"id": "task-0", "response": "a"}\n' * 3)
    out, seen = tmp_path / "out.jsonl", []

    def judge(task, rollout):
        while rollout.index and len(out.read_text().splitlines()) < rollout.index:
            time.sleep(0.01)
        seen.append(out.read_text().count("\n"))
        return 0.0

    env = sdpo.env(["say a"], judge)
    judge_file(responses=tmp_path / "r.jsonl", out=out, env=env)
    assert sorted(seen) == [0, 1, 2]


def test_a_folder_of_runs_was_no_recipe_among_all_others(tmp_path):
    for seed in (0, 1):
        (tmp_path / "x" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "x" / f"seed-{seed}" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds runs and is none itself; name one: .*seed-0, .*"):
        load_config([str(tmp_path / "x")])
