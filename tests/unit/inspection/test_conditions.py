"""A run's prompts are recorded, so that neither another template nor another day changes them
unseen."""

from __future__ import annotations

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

import sdpo
from sdpo.chat import Chat
from sdpo.config.load import load_config
from sdpo.errors import ConfigError
from sdpo.inspection.conditions import clock_note, prompt_facts, record_prompts
from sdpo.testing import byte_tokenizer, tiny_model

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "<|im_start|>system\nToday Date: {{ date_string }}<|im_end|>\n" + TURNS
)
GPT_OSS = "<|im_start|>system\nCurrent date: {{ strftime_now('%Y-%m-%d') }}<|im_end|>\n" + TURNS
UNREAD = "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + TURNS


def chat_with(template, **kwargs):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, template_kwargs=kwargs)


@pytest.fixture
def today(monkeypatch):
    """Sets the day that templates see; the compiled ones keep it."""

    def set_day(day):
        moment = datetime.fromisoformat(day)
        clock = SimpleNamespace(now=lambda: moment)
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        monkeypatch.setattr("sdpo.inspection.conditions.datetime", clock)

    set_day("2026-11-27")
    return set_day


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"steps": 1}}))
    return tmp_path


def test_a_template_without_a_clock_is_recorded_and_not_spoken_of(today, run_dir):
    assert record_prompts(run_dir, chat_with(TURNS)) is None
    recorded = json.loads((run_dir / "config.json").read_text())
    assert recorded["prompts"]["clock"] == {}
    assert recorded["config"] == {"steps": 1}
    today("2026-11-28")
    assert record_prompts(run_dir, chat_with(TURNS)) is None


@pytest.mark.parametrize(
    ("template", "cure"),
    [
        (LLAMA_3_2, "set 'model.chat_template_kwargs={date_string = \"27 Nov 2026\"}'"),
        (GPT_OSS, "replace strftime_now('%Y-%m-%d') by '2026-11-27' in the model's chat_template"),
    ],
)
def test_prompts_changed_between_days_unseen(template, cure, today, run_dir):
    said = record_prompts(run_dir, chat_with(template))
    assert said is not None
    assert cure in said
    assert record_prompts(run_dir, chat_with(template)) == said
    today("2026-11-28")
    with pytest.raises(ConfigError) as refused:
        record_prompts(run_dir, chat_with(template))
    assert cure in str(refused.value), "the cure names the day the run began"


@pytest.mark.parametrize(
    "pinned",
    [
        (LLAMA_3_2, {"date_string": "27 Nov 2026"}),
        (GPT_OSS.replace("{{ strftime_now('%Y-%m-%d') }}", "2026-11-27"), {}),
    ],
)
def test_the_cure_continues_the_run(pinned, today, run_dir):
    template, kwargs = pinned
    record_prompts(run_dir, chat_with(LLAMA_3_2 if kwargs else GPT_OSS))
    today("2026-11-30")
    assert record_prompts(run_dir, chat_with(template, **kwargs)) is None


def test_a_clock_that_prompts_do_not_show_is_none(today):
    the_chat = chat_with(UNREAD)
    facts = prompt_facts(the_chat)
    assert facts.clock == {}
    assert clock_note(the_chat, facts) is None


def test_an_edited_template_is_refused(today, run_dir):
    record_prompts(run_dir, chat_with(LLAMA_3_2))
    with pytest.raises(ConfigError, match="renders prompts otherwise"):
        record_prompts(run_dir, chat_with(LLAMA_3_2.replace("Today", "The")))


def test_a_run_goes_on_with_the_day_it_began_on(today, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = LLAMA_3_2
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model().save_pretrained(tmp_path / "model")
    env = sdpo.env([{"id": "t", "prompt": "say"}], lambda task, rollout: 0.0)

    def train(*changes):
        return sdpo.train(
            load_config(
                [
                    f"run={tmp_path}/run", f"model.name={tmp_path}/model", "model.device=cpu",
                    "model.dtype=float32", "rollout.tasks_per_step=1", "rollout.group_size=2",
                    "rollout.max_completion_tokens=2", "rollout.max_prompt_tokens=200",
                    "teacher.context.max_tokens=400", "eval.samples=1", *changes,
                ]
            ),
            env=env,
        )  # fmt: skip

    train("steps=1")
    assert any("2026" in note for note in sdpo.check(f"{tmp_path}/run", env=env).notes)
    today("2026-11-28")
    with pytest.raises(ConfigError, match='date_string = "27 Nov 2026"'):
        train("steps=2")
    pinned = 'model.chat_template_kwargs={date_string = "27 Nov 2026"}'
    assert train("steps=2", pinned).step == 2
    # What is wrong with other arguments of the template is what it makes of prompts.
    with pytest.raises(ConfigError, match="renders prompts otherwise"):
        train("steps=3", 'model.chat_template_kwargs={date_string = "1 May 1999"}')
