"""What docs/environments.md shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sdpo.config.load import load_config
from sdpo.envs.base import Env, Opening, Recorded
from sdpo.records import Rollout
from sdpo.rollouts.judging import judge_all

TEXT = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^sdpo (.*)$", TEXT, re.MULTILINE)
RUN = re.sub(r"^<!-- read, not run.*?-->\n\n```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```python\n(.*?)^```", RUN, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_whole_recipe(command):
    verb, *arguments = shlex.split(command)
    assert verb in ("check", "train")
    assert load_config(arguments).env.type in command or arguments[0] != "quickstart"


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_a_program_makes_an_environment_that_judges(block):
    names: dict[str, object] = {}
    exec(block, names)
    env = names["env"]
    assert isinstance(env, Env)
    task = env.load("train")[0]
    if isinstance(env, Opening | Recorded):
        return  # What is played or given beforehand is judged in tests of its own.
    texts = {"no": False, "2 xq": True}
    for text, is_solved in texts.items():
        rollout = Rollout(
            task_id=task.id, index=0, prompt_ids=(1,), completion_ids=(5,),
            sampler_logprobs=(-0.1,), text=text, truncated=False, policy_version=0,
        )  # fmt: skip
        (verdict,) = judge_all(env, [(task, rollout)])
        assert (verdict.solved, verdict.feedback is None) == (is_solved, is_solved)
