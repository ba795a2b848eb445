"""Mathematics: boxes, symbolic comparison from threads, time limits, rows."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sdpo.config import schema
from sdpo.envs.math import INSTRUCTION, WORKER, Math, last_box
from sdpo.envs.opening import open_env
from sdpo.envs.workers import Worker
from sdpo.errors import ConfigError, TaskError

pytest.importorskip("math_verify")

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the jail is Linux's")


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
    path.write_text('{"problem": "p", "answer": []}\n')
    with pytest.raises(TaskError, match=r"bad.jsonl:1: answer: expected a non-empty string, got"):
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


@ON_LINUX
def test_workers_are_jailed_like_programs(env, monkeypatch):
    """Before: model text went through sympy with the trainer's environment and privileges."""
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    with closing(Worker(WORKER)) as worker:
        assert worker.ask(["\\frac{1}{2}", "0.5"], 30.0) == "right"
        proc = Path(f"/proc/{worker.pid}")
        status = dict(
            line.split(":\t", 1)
            for line in (proc / "status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        assert b"s3cr3t" not in (proc / "environ").read_bytes()
        assert "seccomp" in worker.level


CONFINED = """
import json, os, socket, sys
from sdpo.sandbox.confine import confine
outside = sys.argv[1]
level = confine([])
done = {}
def attempt(name, action):
    try:
        action()
        done[name] = "done"
    except OSError as error:
        done[name] = "refused"
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("socket", lambda: socket.socket())
attempt("write", lambda: open(outside + ".new", "w"))
attempt("append", lambda: open(outside, "a"))
attempt("unlink", lambda: os.unlink(outside))
attempt("rename", lambda: os.rename(outside, outside + ".x"))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("read", lambda: open(outside).read())
attempt("library", lambda: open(os.__file__).read())
print(json.dumps([level, done]))
"""


@ON_LINUX
@pytest.mark.parametrize("has_landlock", [True, False])
def test_a_confined_process_reads_and_nothing_else(tmp_path, has_landlock):
    outside = tmp_path / "outside"
    outside.write_text("x")
    without = "from sdpo.sandbox import landlock\nlandlock.abi = lambda: 0\n"
    result = subprocess.run(
        [sys.executable, "-c", ("" if has_landlock else without) + CONFINED, str(outside)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    level, done = json.loads(result.stdout)
    uses_landlock = "landlock" in level
    assert uses_landlock <= has_landlock
    assert done.pop("library") == "done"
    assert done.pop("read") == ("refused" if uses_landlock else "done")
    assert set(done.values()) == {"refused"}, done
    assert outside.read_text() == "x"
