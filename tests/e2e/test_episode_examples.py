"""The examples of episodes and what docs/episodes.md shows: they run and they train."""

from __future__ import annotations

import importlib.util
import re
from contextlib import closing
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import sdpo
from sdpo.chat import Chat
from sdpo.config.load import load_config
from sdpo.config.schema import RunConfig
from sdpo.engines.base import Sampling
from sdpo.envs.base import Closing
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.record import read_rollouts
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.testing.scripted import ScriptedEngine

ROOT = Path(__file__).parents[2]
TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
)
CALL = '<tool_call>\n{"name": "list_tables", "arguments": {}}\n</tool_call>'
QWEN = Path.home() / ".cache" / "sdpo" / "models" / "qwen2.5-coder-0.5b-instruct"


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokenizer_with_tools():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOLS + tokenizer.chat_template
    return tokenizer


def group(env, task, respond, tokenizer, *, size=1, max_new_tokens=2000):
    chat = Chat(tokenizer, tools=getattr(env, "tools", ()))
    engine = ScriptedEngine(respond, encode=chat.text_ids, stop_id=chat.end_of_turn_id)
    collector = Collector(
        env=env, engine=engine, chat=chat, max_prompt_tokens=4000, max_turns=env.max_turns
    )
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_ids=chat.stop_ids)
    return collector.collect([task], group_size=size, sampling=sampling, seed=0).groups[0]


@pytest.fixture(scope="module")
def agent():
    with closing(example("sql_agent").make_env()) as env:
        yield env


@pytest.mark.parametrize("real", [False, True], ids=["byte template", "qwen template"])
def test_the_agent_that_asks_first_answers_right(agent, real):
    if real and not QWEN.is_dir():
        pytest.skip(f"no tokenizer in {QWEN}")
    tokenizer = AutoTokenizer.from_pretrained(QWEN) if real else tokenizer_with_tools()
    task = agent.load("train")[0]

    def respond(ids, seed):
        prompt = tokenizer.decode(list(ids))
        assert '"name": "list_tables"' in prompt
        assert prompt.count("<|im_start|>system") == 1
        return task.reference.query if "hr_" in prompt else CALL

    found = group(agent, task, respond, tokenizer)
    (rollout,), (verdict,) = found.rollouts, found.verdicts
    assert verdict.solved
    assert verdict.metrics["has_asked"] == 1
    assert [turn.text for turn in rollout.turns] == [CALL, task.reference.query]
    assert [turn.feedback for turn in rollout.turns] == [None, None]


def test_the_agent_that_does_not_ask_is_told_about_that_turn(agent):
    task = agent.load("train")[0]
    found = group(agent, task, lambda ids, seed: "SELECT 1", tokenizer_with_tools())
    (turn,) = found.rollouts[0].turns
    assert "Call list_tables" in turn.feedback
    assert not found.verdicts[0].solved
    for said in ("<tool_call>x", '<tool_call>{"name": "rm", "arguments": {}}'):
        found = group(agent, task, lambda ids, seed, t=said: t, tokenizer_with_tools())
        (turn,) = found.rollouts[0].turns
        assert "Call list_tables" in turn.feedback
        assert found.verdicts[0].info["category"] == "no_answer"


def test_the_agent_is_told_about_its_answer_where_it_stands(agent):
    task = agent.load("train")[0]
    for said, heard in ((CALL, "begins with SELECT"), ("SELECT 1", "expected")):
        texts = iter([CALL, said])
        found = group(agent, task, lambda ids, seed, t=texts: next(t), tokenizer_with_tools())
        asked, answered = found.rollouts[0].turns
        assert asked.feedback is None
        assert heard in answered.feedback
        assert found.verdicts[0].feedback is None
        assert not found.verdicts[0].solved


def test_every_pair_of_rooms_can_be_won_by_following_what_is_said():
    game = example("text_game")
    env = game.make_env()
    for task in env.load("train"):
        room, goal = task.reference
        texts = []
        while room != goal:
            texts.append(game.first_steps(goal)[room])
            room = game.HOUSE[room][texts[-1]]
        script = iter(texts)
        found = group(env, task, lambda ids, seed, s=script: next(s), byte_tokenizer())
        assert found.verdicts[0].solved
        assert all(turn.feedback is None for turn in found.rollouts[0].turns)
    task = next(task for task in env.load("train") if task.id == "hall-attic")
    script = iter(["north or south", "up", "west", "south", "north", "north"])
    found = group(env, task, lambda ids, seed: next(script), byte_tokenizer())
    assert not found.verdicts[0].solved
    said = [turn.feedback for turn in found.rollouts[0].turns]
    assert said[0] == "From the hall, the way to the attic leads east."
    assert "no door" in found.rollouts[0].turns[2].reply[0]["content"]


@pytest.mark.parametrize("name", ["sql_agent", "text_game"])
def test_an_example_trains(name, tmp_path):
    module = example(name)
    env = module.make_env()
    tiny_model(num_layers=1, hidden_size=16).save_pretrained(tmp_path / "model")
    tokenizer_with_tools().save_pretrained(tmp_path / "model")
    sdpo.train(
        *module.SETTINGS, f"model.name={tmp_path / 'model'}", f"run={tmp_path / 'run'}",
        "steps=1", "rollout.tasks_per_step=1", "rollout.group_size=2", "eval.max_tasks=1",
        "eval.samples=1", "rollout.max_completion_tokens=60", "rollout.max_prompt_tokens=900",
        "teacher.context.max_tokens=1900", "model.device=cpu", "model.adapter.type=full",
        env=env,
    )  # fmt: skip
    if isinstance(env, Closing):
        env.close()
    rows = list(read_rollouts(tmp_path / "run"))
    assert rows
    assert all("turns" in row for row in rows)


def test_the_settings_of_the_examples_are_a_recipe():
    for name in ("sql_agent", "text_game"):
        assert isinstance(load_config(example(name).SETTINGS), RunConfig)


BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "episodes.md").read_text(encoding="utf-8"), re.DOTALL
)


SCRIPTS = [
    ["50", "49", "1", "99", "0"],
    ["4", "4"],
    ["look", "open door"],
    ['<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>', "42"],
    ["knock", "open door"],
]


@pytest.mark.parametrize("place", range(5))
def test_every_block_of_the_page_is_an_environment_that_plays(place):
    script = SCRIPTS[place]
    space = {"sdpo": sdpo}
    exec(BLOCKS[place], space)
    env = space["env"]
    texts = iter(script)
    found = group(env, env.load("train")[0], lambda ids, seed: next(texts), tokenizer_with_tools())
    assert found.verdicts[0].solved
    assert [turn.text for turn in found.rollouts[0].turns] == script
    assert len(BLOCKS) == len(SCRIPTS)


def test_an_episode_of_the_page_is_short():
    assert BLOCKS[0].count("\n") < 20
