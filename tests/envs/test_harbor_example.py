"""The environment of docs/environments.md whose judge is Harbor's command, with a stub of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sdpo.errors import Unjudged
from sdpo.records import Rollout

TEXT = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCK = re.search(r"^### Harbor\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

STUB = """#!{python}
import json, pathlib, sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert (sys.argv[1], given["-a"], sys.argv[-2:]) == ("run", "oracle", ["-q", "-y"]), sys.argv
solution = pathlib.Path(given["-p"], "solution")
assert [path.name for path in solution.iterdir()] == ["solve.sh"], "the reference was left there"
script = (solution / "solve.sh").read_text()
trial = pathlib.Path(given["-o"], "2026-11-29__07-00-00", "hello__abc")
(trial / "verifier").mkdir(parents=True)
(trial / "verifier" / "test-stdout.txt").write_text("hello.txt is missing")
rewards = None if "crash" in script else dict(reward=float("hello.txt" in script))
(trial.parent / "result.json").write_text("{{}}")
(trial / "result.json").write_text(json.dumps(dict(
    verifier_result=rewards and dict(rewards=rewards), exception_info=None)))
"""


@pytest.fixture
def env(tmp_path, monkeypatch):
    task = tmp_path / "tasks" / "hello"
    (task / "solution").mkdir(parents=True)
    (task / "solution" / "help.py").write_text("the answer")
    (task / "task.toml").write_text('version = "1.0"\n')
    (task / "instruction.md").write_text("Write hello.txt.")
    stub = tmp_path / "bin" / "harbor"
    stub.parent.mkdir()
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCK[1], names)
    return names["env"]


def judged(env, text):
    rollout = Rollout(
        task_id="0", index=0, prompt_ids=(1,), completion_ids=(5,), sampler_logprobs=(-0.1,),
        text=text, truncated=False, policy_version=0,
    )  # fmt: skip
    return env.judge(env.load("train")[0], rollout)


def test_harbor_judges_the_script_and_its_tests_are_the_feedback(env):
    assert "Write hello.txt." in env.load("train")[0].messages[-1]["content"]
    right, wrong = judged(env, "#!/bin/bash\ntouch hello.txt"), judged(env, "#!/bin/bash\nls")
    assert (right.reward, right.feedback) == (1.0, None)
    assert (wrong.reward, wrong.feedback) == (0.0, "hello.txt is missing")


def test_a_trial_without_a_reward_is_not_a_wrong_answer(env):
    with pytest.raises(Unjudged, match="Harbor gave no reward"):
        judged(env, "#!/bin/bash\ncrash")
