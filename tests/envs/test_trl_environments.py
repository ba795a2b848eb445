"""Environments of TRL as episodes, and the same class through TRL's own trainer."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest

import sdpo
from sdpo.chat import Chat
from sdpo.config.environments import JudgingConfig
from sdpo.engines.base import Sampling
from sdpo.envs.adapters.trl_environments import from_trl_environment
from sdpo.errors import JudgeError, TaskError
from sdpo.records import Rollout
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.judging import judge_all
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.testing.scripted import ScriptedEngine, in_order

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Safe:
    """A safe with three dials, as TRL's documentation writes environments."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.secret = self.dials = None

    def reset(self, secret, **row):
        self.secret, self.dials = secret, {}
        return f"\nIt has {len(secret)} dials."

    def turn(self, dial: int, number: int) -> str:
        """Turn a dial.

        Args:
            dial: Which one, from 0.
            number: The number to turn it to.
        """
        if not 0 <= dial < len(self.secret):
            raise ValueError(f"there is no dial {dial}")
        self.dials[dial] = number
        return "click" if self._fits(dial) else "nothing"

    async def listen(self, dial: int) -> str:
        """Put an ear to the door.

        Args:
            dial: Which one to hear.
        """
        await asyncio.sleep(0)
        return "higher" if self.dials.get(dial, 0) < int(self.secret[dial]) else "not higher"

    def get_reward(self) -> float:
        return sum(map(self._fits, range(len(self.secret)))) / len(self.secret)

    def _fits(self, dial):
        return self.dials.get(dial) == int(self.secret[dial])


ROWS = [
    {"prompt": [{"role": "user", "content": "Open the safe."}], "secret": "42"},
    {"prompt": [{"role": "user", "content": "Open the other."}], "secret": "7"},
]


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


OPENED = [
    "I turn both." + call("turn", dial=0, number=4) + "\n" + call("turn", dial=1, number=1),
    call("listen", dial=1),
    call("turn", dial=1, number=2),
    "It is open.",
]
CLUMSY = [call("turn", dial=5, number=1) + call("kick"), "I give up."]


def chat_of(env, template=TEMPLATE):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, tools=env.tools)


def played(env, *scripts, task=0, max_turns=8, template=TEMPLATE):
    """The group of one attempt per script at one task; every script says its turns in order."""
    chat = chat_of(env, template)
    # Attempts play turn by turn together: interleave what they say.
    width = max(map(len, scripts))
    turns = [script[n] for n in range(width) for script in scripts if n < len(script)]
    engine = ScriptedEngine(in_order(turns), encode=chat.text_ids, stop_id=chat.end_of_turn_id)
    collector = Collector(
        env=env, engine=engine, chat=chat, max_turns=max_turns, max_prompt_tokens=5000
    )
    (group,) = collector.collect(
        [env.load("train")[task]],
        group_size=len(scripts),
        sampling=Sampling(max_new_tokens=5000, stop_ids=chat.stop_ids),
        seed=1,
    ).groups
    return group


def test_a_class_of_trls_kind_becomes_episodes():
    env = from_trl_environment(Safe, ROWS)
    assert [task.messages[-1]["content"] for task in env.load("train")] == [
        "Open the safe.\nIt has 2 dials.",
        "Open the other.\nIt has 1 dials.",
    ]
    assert [tool["function"]["name"] for tool in env.tools] == ["listen", "turn"]
    group = played(env, OPENED, CLUMSY)
    opened, clumsy = group.rollouts
    assert [verdict.reward for verdict in group.verdicts] == [1.0, 0.0]
    assert [verdict.solved for verdict in group.verdicts] == [True, False]
    assert [[m["content"] for m in turn.reply] for turn in opened.turns] == [
        ["click", "nothing"],
        ["higher"],
        ["click"],
        [],
    ]
    assert [m["content"] for m in clumsy.turns[0].reply] == [
        "{'error': 'there is no dial 5'}",
        "{'error': 'Tool kick not found.'}",
    ]


def test_instances_are_made_once_and_reset_often():
    made = Safe.made
    env = from_trl_environment(Safe, ROWS)
    for _ in range(3):
        assert len(played(env, OPENED, CLUMSY).rollouts) == 2
    assert Safe.made - made <= 3  # one for each row at most, two attempts at once


@pytest.mark.filterwarnings("ignore:the judge returns rewards outside")
def test_reward_functions_read_the_environments():
    seen = {}

    def clicks(prompts, completions, completion_ids, secret, environments, log_metric, **kwargs):
        seen.update(prompts=prompts, completions=completions, secret=secret)
        log_metric("dials", len(environments[0].dials))
        return [0.5 * environments[0].get_reward()]

    env = from_trl_environment(
        Safe, ROWS, clicks, weights=[2.0], solved_by="Safe",
        feedback=lambda task, safe, reward: f"dials {safe.dials} of {task.reference['secret']}",
    )  # fmt: skip
    (verdict,) = played(env, OPENED).verdicts
    assert verdict.metrics == {"clicks": 0.5, "Safe": 1.0, "dials": 2}
    assert (verdict.reward, verdict.solved) == (2.0, True)
    assert verdict.feedback == "dials {0: 4, 1: 2} of 42"
    assert seen["secret"] == ["42"]
    assert seen["prompts"][0][-1]["content"].endswith("2 dials.")
    assert [message["role"] for message in seen["completions"][0]] == [
        "assistant", "tool", "tool", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip


def test_an_attempt_that_is_written_down_is_judged_by_playing_it_again():
    env = from_trl_environment(Safe, ROWS)
    task = env.load("train")[1]
    attempt = Rollout.written(task, call("turn", dial=0, number=7))
    (verdict,) = judge_all(env, [(task, attempt)])
    assert verdict.solved


def test_a_call_that_cannot_be_read_is_answered():
    env = from_trl_environment(Safe, ROWS)
    (rollout,) = played(env, ["<tool_call>turn it</tool_call>", "Well."]).rollouts
    assert "cannot be read: it is not JSON" in rollout.turns[0].reply[0]["content"]


def test_a_tool_that_says_not_now_is_called_again_and_counted_once():
    class Busy(Safe):
        calls = 0

        def turn(self, dial: int, number: int) -> str:
            """Turn a dial.

            Args:
                dial: Which one.
                number: The number.
            """
            type(self).calls += 1
            if self.calls == 1:
                raise sdpo.Unjudged("busy")
            return super().turn(dial, number)

    seen = []
    env = from_trl_environment(
        Busy, ROWS, lambda completions: seen.append(completions) or [0.0], solved_by="Busy"
    )
    chat = chat_of(env)
    engine = ScriptedEngine(
        in_order([call("turn", dial=0, number=7), "Done."]),
        encode=chat.text_ids,
        stop_id=chat.end_of_turn_id,
    )
    collector = Collector(
        env=env, engine=engine, chat=chat, max_turns=4, max_prompt_tokens=5000,
        judging=JudgingConfig(retries=1),
    )  # fmt: skip
    sampling = Sampling(max_new_tokens=5000, stop_ids=chat.stop_ids)
    groups = collector.collect([env.load("train")[1]], group_size=1, sampling=sampling, seed=1)
    assert groups.groups[0].verdicts[0].solved
    assert [m["role"] for m in seen[0][0]] == ["assistant", "tool", "assistant"]


class Dice(Safe):
    rolls = 0

    def reset(self, secret, **row):
        super().reset(secret)
        type(self).rolls += 1
        return f"roll {self.rolls}"


class Undocumented(Safe):
    def peek(self, dial):
        return self.secret[dial]


class Several(Safe):
    def reset(self, secret, **row):
        return [{"type": "image"}]


def test_what_cannot_be_adapted_is_refused_by_name():
    with pytest.raises(TaskError, match="give one environment, not several by name"):
        from_trl_environment({"safe": Safe}, ROWS)
    with pytest.raises(TaskError, match="object has no method reset"):
        from_trl_environment(object, ROWS)
    with pytest.raises(TaskError, match=r"cannot be shown the tool peek: .*docstring"):
        from_trl_environment(Undocumented, ROWS)
    with pytest.raises(TaskError, match="row 0: reset returned list; only text"):
        from_trl_environment(Several, ROWS)
    with pytest.raises(TaskError, match="0 reward functions"):
        from_trl_environment(type("Mute", (), {"reset": lambda self, **row: None}), ROWS)
    with pytest.raises(TaskError, match="the functions are Safe"):
        from_trl_environment(Safe, ROWS, solved_by="opened")
    with pytest.raises(JudgeError, match=r"Dice\.reset said something else for task '0'"):
        played(from_trl_environment(Dice, ROWS), OPENED)


@pytest.mark.filterwarnings("ignore")
def test_the_same_class_in_trls_own_trainer(tmp_path, monkeypatch):
    """Prompt, tool results, completions and rewards of one step of GRPOTrainer and of ours."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    template = (folder / "qwen2_5.jinja").read_text()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    theirs, ours = {}, {}

    def watch(into):
        def spy(prompts, completions, completion_ids, secret, environments, **kwargs):
            for i, one in enumerate(completions):
                text = tokenizer.decode(completion_ids[i]).removesuffix("<|im_end|>")
                into[one[-1]["content"]] = (prompts[i], one, text, environments[i].get_reward())
            return [0.5] * len(completions)

        return spy

    trainer = trl.GRPOTrainer(
        model=tiny_model("qwen2"),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2,
            max_steps=1, max_completion_length=1500, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True, bf16=False,
        ),
        reward_funcs=watch(theirs),
        train_dataset=datasets.Dataset.from_list(ROWS[:1]),
        processing_class=tokenizer,
        environment_factory=Safe,
    )  # fmt: skip
    said = iter([[OPENED[0], CLUMSY[0]], [OPENED[1], CLUMSY[1]], [OPENED[2]], [OPENED[3]]])
    prompts = []

    def generate(prompt_ids, *args, **kwargs):
        prompts.append([tokenizer.decode(ids) for ids in prompt_ids])
        return [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in next(said)], None

    monkeypatch.setattr(trainer, "_generate_single_turn", generate)
    trainer.train()

    env = from_trl_environment(Safe, ROWS[:1], watch(ours))
    group = played(env, OPENED, CLUMSY, template=template)
    assert ours.keys() == theirs.keys() == {"It is open.", "I give up."}
    assert ours == theirs
    shown = [tokenizer.decode(rollout.turns[0].prompt_ids) for rollout in group.rollouts]
    assert shown == prompts[0]
    assert [verdict.reward for verdict in group.verdicts] == [1.5, 0.5]
    assert trainer.state.log_history[0]["rewards/Safe/mean"] == 0.5
    assert trainer.state.log_history[0]["reward"] == 1.0
