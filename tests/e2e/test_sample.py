"""`sdpo sample`: a run answers before and after training, judged where it has an environment."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

import sdpo
from sdpo.cli import run
from sdpo.commands.talk_view import show_answers
from sdpo.talk import answers, speakers


def settings(work, name, *more):
    return [
        "quickstart", f"run={work / name}", f"model.name={work / 'tiny'}", "model.dtype=float32",
        "steps=1", "rollout.tasks_per_step=2", "rollout.group_size=2", "optim.lr=1e-1",
        "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200", "eval.samples=1",
        "optim.warmup_steps=0", "objective.type=sdpo", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, work):
    env = ("env.type=custom", f"env.path={work / 'own.py'}:env")
    more = ("model.adapter.type=lora",) if request.param == "lora" else ()
    assert run(["train", *settings(work, request.param, *env, *more)]) == 0
    return work / request.param


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_a_run_answers_its_tasks_before_and_after(trained, work, capsys):
    capsys.readouterr()
    assert run(["sample", str(trained)]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[0] == f"before: {work / 'tiny'}"
    assert shown[1] == f"after: {trained / 'checkpoints' / 'step-1'}"
    assert [line for line in shown if line.startswith("task ")] == ["task t0", "task t1", "task t2"]
    assert sum(line.startswith("before: ") and "solved" in line for line in shown) == 3
    assert shown[-1].startswith("solved: before ")
    assert shown[-1].endswith(" of 3")


def test_the_answers_are_those_of_the_two_models_evaluations(trained, work):
    before, after = speakers([str(trained)], needs_env=True)
    for who, name in ((before, work / "tiny"), (after, trained)):
        found = answers(who, None, samples=1)
        expected = sdpo.evaluate(str(trained), f"model.name={name}")
        texts = {g.task.id: g.rollouts[0].text for g in expected.groups}
        assert all(a.text == texts[task.id] for task, (a,) in found)


def test_one_task_and_more_samples(trained, capsys):
    assert run(["sample", str(trained), "--task", "t3", "--samples", "2", "--only", "after"]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown.count("task t3") == 1
    assert not any(line.startswith("before") for line in shown)
    assert shown[-1].endswith(" of 2")
    assert run(["sample", str(trained), "--task", "t9"]) == 2
    assert "ids look like 't0'" in capsys.readouterr().err


def test_a_prompt_is_answered_and_not_judged(trained, work, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("hello")
    for prompt in ("hello", f"@{tmp_path / 'p.txt'}"):
        assert run(["sample", str(trained), "--prompt", prompt, "eval.temperature=0.5"]) == 0
        shown = capsys.readouterr().out
        assert "hello" in shown
        assert "solved" not in shown
    assert run(["sample", str(work / "tiny"), "--prompt", "hello", "model.dtype=float32"]) == 0
    assert lines(capsys.readouterr().out)[0] == f"after: {work / 'tiny'}"


def test_chat_goes_on_with_what_was_said(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand again\n"))
    assert run(["sample", str(trained), "--chat"]) == 0
    shown = lines(capsys.readouterr().out)
    assert sum(line.startswith("before:") for line in shown) == 2
    assert sum(line.startswith("after:") for line in shown) == 2


def test_side_by_side_where_there_is_room(trained):
    who = speakers([str(trained)], needs_env=True)
    found = [answers(one, None, samples=1) for one in who]
    wide = Console(file=io.StringIO(), width=120)
    show_answers(who, found, wide)
    assert any("before:" in line and "after:" in line for line in wide.file.getvalue().splitlines())


def test_what_cannot_be_sampled_names_the_fix(trained, work, capsys):
    tiny = str(work / "tiny")
    for arguments, said in (
        ([tiny], "add --prompt TEXT or --chat"),
        ([str(trained), "--chat", "--prompt", "a"], "give one of them"),
        (["steps=3", "--prompt", "a"], "name a run, a recipe or a model first"),
        ([str(work / "nowhere"), "--prompt", "a"], "there is no such folder"),
    ):
        assert run(["sample", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_run_of_a_python_environment_still_answers_prompts(work, capsys):
    env = sdpo.env(["say 1"], lambda task, rollout: 0.0)
    sdpo.train(*settings(work, "python"), env=env)
    assert run(["sample", str(work / "python")]) == 2
    assert "given in Python" in capsys.readouterr().err
    assert run(["sample", str(work / "python"), "--prompt", "hello"]) == 0
    shutil.rmtree(work / "python")
