"""`open_env`: every config has its environment; custom ones are found or refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sdpo.config import schema
from sdpo.config.environments import CodeEnvConfig
from sdpo.envs.base import Env
from sdpo.envs.code import CodeEnv
from sdpo.envs.opening import check_env, open_env
from sdpo.errors import ConfigError, TaskError

MODULE = """
import sdpo

class Own:
    def load(self, split): return []
    def judge(self, task, rollout): return None

instance = Own()
def make(): return sdpo.env(["a"], lambda task, rollout: 1.0)
def needy(tasks): return instance
class Space: inner = instance
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_envs").mkdir()
    (tmp_path / "own_envs" / "__init__.py").write_text("")
    (tmp_path / "own_envs" / "first.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("own_envs", "needs_more"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "config",
    [
        schema.CodeEnvConfig(),
        schema.ChoiceEnvConfig(tasks="x.json"),
        schema.ToolsEnvConfig(tasks="x.json"),
        schema.SqlEnvConfig(),
        schema.CustomEnvConfig(path="sdpo.testing:toy_env"),
    ],
    ids=lambda config: config.type,
)
def test_every_config_has_an_environment(config):
    assert isinstance(open_env(config), Env)


@pytest.mark.parametrize(
    "path",
    [
        "own_envs.first:Own",
        "own_envs.first:instance",
        "own_envs.first:make",
        "own_envs.first:Space.inner",
        "own_envs/first.py:make",
    ],
)
def test_custom_environments_in_the_current_directory_are_found(folder, path):
    env = open_env(schema.CustomEnvConfig(path=path))
    assert isinstance(env, Env)
    assert not isinstance(env, type)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("own_envs.first", "write package.module:Name"),
        (":make", "write package.module:Name"),
        ("own_envs.first:", "write package.module:Name"),
        ("own_envs.first:nope", "own_envs.first has no 'nope'; it has sdpo, Own, instance, make"),
        ("own_envs.second:make", "no module 'own_envs.second'"),
        ("nowhere.at.all:make", "no module 'nowhere' in"),
        ("own_envs/none.py:make", "does not exist"),
        ("own_envs.first:number", "has the type int, which is not an"),
        ("own_envs.first:needy", "must be callable without arguments"),
        ("own_envs.first:Space", "has the type Space, which is not an"),
        ("needs_more:make", "needs_more imports 'not_there_at_all', which is not installed"),
        ("needs_more.py:make", "needs_more.py imports 'not_there_at_all'"),
        ("..first:make", "is not a module name"),
    ],
)
def test_custom_environments_that_cannot_be_had_say_why(folder, path, says):
    with pytest.raises(ConfigError) as error:
        open_env(schema.CustomEnvConfig(path=path))
    assert says in str(error.value)
    assert path in str(error.value)


def test_an_error_inside_the_module_keeps_its_traceback(folder):
    (folder / "own_envs" / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        open_env(schema.CustomEnvConfig(path="own_envs.broken:make"))


def test_opening_imports_no_torch():
    code = (
        "import sys; from sdpo.envs.opening import open_env; from sdpo.config import schema\n"
        "open_env(schema.ChoiceEnvConfig(tasks='x')); open_env(schema.ToolsEnvConfig(tasks='x'))\n"
        "print(sorted({'torch', 'transformers', 'math_verify'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def a_row(split):
    return {
        "id": f"two-{split}", "prompt": "Return 2.", "kind": "asserts", "entry_point": "two",
        "tests": {"public": ["assert two() == 2"]}, "split": split,
    }  # fmt: skip


def a_file(folder, *splits):
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(a_row(split)) + "\n" for split in splits))
    return CodeEnv(CodeEnvConfig(tasks=str(path), sandbox="none"))


def test_a_file_without_training_rows_could_not_be_searched(tmp_path):
    env = a_file(tmp_path, "eval")
    check_env(env)
    with pytest.raises(TaskError, match="no training task"):
        env.load("train")


def test_a_file_that_is_not_there_is_still_an_error(tmp_path):
    env = CodeEnv(CodeEnvConfig(tasks=str(tmp_path / "none.jsonl"), sandbox="none"))
    with pytest.raises(TaskError):
        check_env(env)
