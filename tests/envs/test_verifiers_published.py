"""Published environments of verifiers' own repository: evaluated, and one training step each.

Their code is real and stays outside of this repository: `SDPO_VERIFIERS_CHECKOUT` names a checkout
of PrimeIntellect-ai/verifiers. Only the rows that they load from a hub are ours.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

import sdpo
from sdpo.envs.adapters.verifiers import from_verifiers
from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import read_rows
from sdpo.records import Rollout
from sdpo.rollouts.judging import judge_all
from sdpo.testing import byte_tokenizer, tiny_model

CHECKOUT = os.environ.get("SDPO_VERIFIERS_CHECKOUT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(
        not CHECKOUT,
        reason="SDPO_VERIFIERS_CHECKOUT names no checkout of PrimeIntellect-ai/verifiers",
    ),
]

vf = pytest.importorskip("verifiers.v1", reason="the package verifiers is not installed")
datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

NAMES = ["AdaLovelace", "AlanTuring", "GraceHopper", "JohnBackus", "KurtGodel", "EmmyNoether"]


def published(name, rows, monkeypatch):
    """The module of an environment, whose hub has `rows`."""
    monkeypatch.syspath_prepend(str(Path(CHECKOUT) / "environments" / name))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    sys.modules.pop(f"{name}.taskset", None)
    return __import__(f"{name}.taskset", fromlist=["taskset"])


class Sorting:
    """alphabet-sort as an episode: the user says its scripted turns, its own reward judges."""

    def __init__(self, task, attempt):
        self.theirs, self.said = task.reference, []
        self.to_say = iter(self.theirs.data.info["user_turns"][1:])

    def step(self, turn):
        self.said.append(turn.text)
        return next(self.to_say, None)

    async def verdict(self):
        theirs, kinds = self.theirs, (vf.UserMessage, vf.AssistantMessage)
        asked = theirs.data.info["user_turns"]
        messages = itertools.chain(*zip(asked, self.said, strict=False))
        nodes = [
            vf.MessageNode(
                parent=i - 1 if i else None, message=kinds[i % 2](content=text), sampled=i % 2 == 1
            )
            for i, text in enumerate(messages)
        ]
        trace = vf.Trace(
            task=vf.TraceTask(
                type=type(theirs).__name__, data=theirs.data, key=theirs.key, hash=theirs.hash
            ),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=nodes,
        )
        await theirs.score(trace)
        right = theirs.data.info["ground_truths"][0]
        return (trace.reward, None if trace.reward >= 1 else f"The first list is {right}.")


def evaluated_and_trained(env, tmp_path):
    """The evaluation's attempts and the training step's row."""
    settings = {
        "run": str(tmp_path / "run"), "steps": 1, "checkpoint": {"every": 0},
        "rollout": {
            "tasks_per_step": 1, "group_size": 2, "max_completion_tokens": 400,
            "max_prompt_tokens": 700,
        },
        "eval": {"samples": 2, "max_tasks": 1, "every": 0},
        "teacher": {"context": {"feedback": "always"}},
    }  # fmt: skip
    result = sdpo.train(
        "quickstart", "model.dtype=float32", "model.device=cpu", env=env,
        model=tiny_model("qwen2"), tokenizer=byte_tokenizer(), **settings,
    )  # fmt: skip
    written = list(read_rows(result.run_dir / "rollouts.jsonl"))
    last = list(read_rows(result.run_dir / "metrics.jsonl"))[-1]
    return [row for row in written if row["split"] == "eval"], last


def test_reverse_text_is_judged_by_its_own_reward_evaluated_and_trained(monkeypatch, tmp_path):
    rows = [{"prompt": text} for text in ("hello there", "a b c", "stressed", "drawer")]
    module = published("reverse_text", rows, monkeypatch)
    taskset = module.ReverseTextTaskset(module.ReverseTextConfig())
    env = from_verifiers(
        taskset, eval_taskset=taskset.take(2),
        feedback=lambda task, info: f"It is {task.reference.data.answer}.",
    )  # fmt: skip
    task = env.load("train")[0]
    texts = ("<reversed_text>ereht olleh</reversed_text>", "ereht olleh")
    attempts = [
        Rollout(task_id=task.id, index=0, prompt_ids=(1,), completion_ids=(5,),
                sampler_logprobs=(-0.1,), text=text, truncated=False, policy_version=0)
        for text in texts
    ]  # fmt: skip
    right, bare = judge_all(env, [(task, attempt) for attempt in attempts])
    assert (right.reward, right.solved, bare.reward, bare.solved) == (1.0, True, 0.0, False)
    held_out, step = evaluated_and_trained(env, tmp_path)
    assert len(held_out) >= 2
    assert step["step"] == 1


def test_alphabet_sort_is_an_episode_of_its_scripted_turns(monkeypatch, tmp_path):
    module = published("alphabet_sort", [{"names": NAMES}], monkeypatch)
    taskset = module.AlphabetSortTaskset(
        module.AlphabetSortConfig(min_turns=2, max_turns=2, max_names_per_turn=2)
    )
    with pytest.raises(ConfigError, match="never ends"):
        from_verifiers(taskset)
    with pytest.raises(ConfigError, match="has no prompt: its user begins"):
        from_verifiers(taskset.take(2))
    tasks = [
        sdpo.Task(
            id=str(i),
            messages=({"role": "user", "content": theirs.data.info["user_turns"][0]},),
            reference=theirs,
        )
        for i, theirs in enumerate(taskset.take(2))
    ]
    env = sdpo.env(tasks, eval_tasks=tasks, episode=Sorting, max_turns=2)
    held_out, step = evaluated_and_trained(env, tmp_path)
    assert len(held_out) >= 2
    assert step["step"] == 1
