"""The teacher probe tells contexts that help from those that do not."""

from __future__ import annotations

import re

from click.testing import CliRunner

import sdpo
from sdpo.cli import main
from sdpo.config.teacher import ContextConfig
from sdpo.engines.base import Sampling
from sdpo.inspection.probe import choose_tasks, probe_tasks
from sdpo.models.policy import Policy
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.sampler import chat_of
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.testing.scripted import ScriptedEngine

TASKS = [
    {"id": f"t{n}", "prompt": f"Name number {n}.", "reference": f"answer {n}"} for n in range(12)
]


def judge(task, rollout):
    solved = rollout.text == task.reference
    said = None if solved else f"{rollout.text!r} is wrong."
    return sdpo.Verdict(reward=float(solved), solved=solved, feedback=said)


def reader(helps, student=4):
    """An engine that answers right one time in `student`, and always when it reads what `helps`
    finds."""
    chat = chat_of(Policy(model=tiny_model(), tokenizer=byte_tokenizer(), name="tiny"))

    def respond(prompt_ids, seed):
        prompt = chat.tokenizer.decode(list(prompt_ids))
        number = re.search(r"number (\d+)", prompt)[1]
        is_right = helps(prompt, number) or (student and seed % student == 0)
        return f"answer {number}" if is_right else "no idea"

    engine = ScriptedEngine(respond, encode=chat.text_ids, stop_id=chat.end_of_turn_id)
    return Collector(
        env=sdpo.env(TASKS, judge), engine=engine, chat=chat, max_prompt_tokens=1000
    )  # fmt: skip


def probed(collector, rules=None, tasks=12):
    return probe_tasks(
        collector,
        list(collector.env.load("train"))[:tasks],
        rules or ContextConfig(),
        samples=4,
        sampling=Sampling(max_new_tokens=100, stop_ids=collector.chat.stop_ids),
        seed=0,
    )


def copies(prompt, number):
    return f"solution:\n\nanswer {number}\n" in prompt


def test_sizes_without_the_probe_are_refused():
    result = CliRunner().invoke(main, ["check", "quickstart", "--probe-samples", "2"])
    assert result.exit_code == 2
    assert "--probe-samples needs --probe" in result.output


def test_demonstrations_that_help_are_seen_and_nothing_else():
    found = probed(reader(copies))
    kinds = found.kinds
    for kind in ("demonstration", "both"):
        assert kinds[kind].teacher == 1
        assert kinds[kind].gain.low > 0.5
    assert 0 < kinds["demonstration"].num_tasks < 12
    assert kinds["feedback"].num_attempts == found.num_failed
    assert kinds["no_context"].num_attempts == found.num_failed
    for kind in ("feedback", "other_task", "no_context"):
        gain = kinds[kind].gain
        assert gain.low <= 0 <= gain.high
    assert found.sentence().startswith("Self-distillation is likely to help here")
    assert "format" not in found.sentence()


def test_metrics_are_the_kinds_that_some_failed_attempt_can_have():
    found = probed(reader(copies))
    metrics = found.metrics()
    assert metrics["probe/failed"] == found.num_failed / 48
    gain = found.kinds["demonstration"].gain
    names = ("probe/gain_demonstration", "probe/gain_demonstration_low")
    assert tuple(metrics[name] for name in names) == (gain.mean, gain.low)
    alone = probed(reader(lambda prompt, number: False, student=0)).metrics()
    assert "probe/gain_feedback" in alone
    assert "probe/gain_demonstration" not in alone


def test_the_recipe_is_made_of_what_its_rules_show():
    found = probed(reader(copies), ContextConfig(demonstration="none", feedback="always"))
    assert found.kinds["recipe"] == found.kinds["feedback"]
    assert found.sentence().startswith("It is unclear")
    both = probed(reader(copies), ContextConfig(feedback="always"))
    assert both.kinds["recipe"].num_attempts == both.num_failed
    assert both.kinds["recipe"].gain.low > 0


def test_help_of_any_demonstration_is_called_format():
    found = probed(reader(lambda prompt, number: "correct solution" in prompt))
    assert found.kinds["other_task"].gain.low > 0.5
    assert "so some of it is format" in found.sentence()


def test_a_teacher_that_never_solves_more_is_unlikely_to_help():
    found = probed(reader(lambda prompt, number: False, student=0))
    assert found.kinds["demonstration"].gain is None
    assert found.kinds["recipe"].gain.mean == 0
    assert found.sentence().startswith("Self-distillation is unlikely to help here")


def test_nothing_failed_and_nothing_said():
    solved = probed(reader(lambda prompt, number: True))
    assert solved.sentence().startswith("Nothing to learn here")
    silent = probed(
        reader(lambda prompt, number: False, student=0), ContextConfig(feedback="never"), tasks=2
    )
    assert "raise rollout.group_size" in silent.sentence()


def test_equal_seeds_give_equal_probes_and_choices():
    assert probed(reader(copies)) == probed(reader(copies))
    tasks = sdpo.env(TASKS, judge).load("train")
    assert choose_tasks(tasks, 5, 1) == choose_tasks(tasks, 5, 1) != choose_tasks(tasks, 5, 2)
    assert choose_tasks(tasks, 99, 0) == list(tasks)


CUSTOM = """
import sdpo

def judge(task, rollout):
    solved = bool(rollout.text) and len(rollout.text) % 2 == 0
    return sdpo.Verdict(reward=float(solved), solved=solved, feedback="An odd number of letters.")

def make():
    return sdpo.env(["a", "b", "c", "d"], judge)
"""


def test_the_command_prints_the_probe(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "custom_letters.py").write_text(CUSTOM)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\nname = "{tmp_path / "model"}"\n'
        f'[env]\ntype = "custom"\npath = "{tmp_path / "custom_letters.py"}:make"\n'
        "[rollout]\nmax_completion_tokens = 4\n"
    )
    result = CliRunner().invoke(
        main, ["check", str(recipe), "--probe", "--probe-tasks", "3", "--probe-samples", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "of 6 attempts at 3 tasks failed" in " ".join(result.output.split())
    printed = " ".join(result.output.split())
    assert "elf-distillation" in printed
    assert "the other layout" in printed
    assert "of its corrections have a probability below 0.001" in printed
