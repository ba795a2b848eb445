"""An environment of one's own to begin with: tasks and a judge in one file, its test, and the
settings that train on it."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

from sdpo.errors import ConfigError

ENV = '''"""{name}: tasks, and a judge that says what to change. Replace both by yours.

    sdpo check quickstart {name}.toml
    sdpo train quickstart {name}.toml
"""

import sdpo

WORDS = "pear fig banana apple plum cherry lemon mango melon peach quince grape olive date".split()


def task(word):
    prompt = f"Write the word {{word}} in capital letters. Answer with that word alone."
    return {{"id": word, "prompt": prompt, "reference": word.upper()}}


def judge(task, rollout):
    """What an attempt is worth, and why. Feedback names the correction; quoting the mistake would
    only teach the mistake."""
    answer = rollout.text.strip()
    if answer == task.reference:
        return sdpo.Verdict(reward=1.0, solved=True)
    if task.reference in answer.upper():
        return sdpo.Verdict(reward=0.5, solved=False, feedback="Capitals only, and nothing else.")
    return sdpo.Verdict(reward=0.0, solved=False, feedback=f"The answer is {{task.reference}}.")


env = sdpo.env(
    [task(word) for word in WORDS[:10]], judge, eval_tasks=[task(word) for word in WORDS[10:]]
)
'''

TEST = '''"""The judge accepts what is right and explains what is wrong: pytest test_{name}.py"""

import pytest
from {name} import env

import sdpo

TASKS = [*env.load("train"), *env.load("eval")]


def verdict(task, text):
    return env.judge(task, sdpo.Rollout.written(task, text))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_the_reference_is_solved_and_an_empty_answer_is_not(task):
    assert verdict(task, task.reference).solved
    assert not verdict(task, "").solved


def test_feedback_says_what_is_wrong():
    assert "Capitals only" in verdict(TASKS[0], TASKS[0].reference.lower()).feedback
    assert TASKS[0].reference in verdict(TASKS[0], "something else").feedback


def test_no_task_is_trained_and_evaluated():
    assert not {{t.id for t in env.load("train")}} & {{t.id for t in env.load("eval")}}
'''

RECIPE = """# Settings for {name}.py; every other: sdpo config show quickstart {name}.toml --explain
run = "runs/{name}"
steps = 10

[env]
type = "custom"
path = "{name}.py:env"

[objective]
type = "hybrid"  # learns from feedback and from rewards

[rollout]
max_completion_tokens = 32
"""


def write_env(name: str, folder: Path) -> list[Path]:
    """Write `NAME.py`, `test_NAME.py` and `NAME.toml` into `folder` and return them. Raises
    `ConfigError` for a name that Python cannot import and for files that are there."""
    if not name.isidentifier() or keyword.iskeyword(name):
        close = "".join(c if c.isalnum() else "_" for c in name).lstrip("0123456789_") or "my_env"
        raise ConfigError(
            f"init env {name!r}: Python imports it by this name, so take letters, digits and _, "
            f"such as {close if not keyword.iskeyword(close) else close + '_env'}"
        )
    if name in sys.stdlib_module_names or name in ("sdpo", "torch", "pytest"):
        raise ConfigError(
            f"init env {name!r}: a module of that name exists already and would be hidden; take "
            f"another, such as {name}_env"
        )
    files = {
        folder / f"{name}.py": ENV,
        folder / f"test_{name}.py": TEST,
        folder / f"{name}.toml": RECIPE,
    }
    there = [str(path) for path in files if path.exists()]
    if there:
        raise ConfigError(f"init env {name!r}: {', '.join(there)} exists; take another name")
    try:
        for path, text in files.items():
            path.write_text(text.format(name=name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"init env {name!r}: {folder} cannot be written ({error.strerror})"
        ) from error
    return list(files)
