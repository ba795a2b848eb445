"""Functions of the user's own take part in real runs; those of docs/extending.md, word for word."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

import sdpo
from sdpo.cli import main
from sdpo.config.load import load_config
from sdpo.discovery.run import discover_tasks
from sdpo.errors import ConfigError, SdpoError
from sdpo.testing import byte_tokenizer, tiny_model

DOC = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
DOORS = {
    section: (file, code, recipe)
    for section, file, code, recipe in re.findall(
        r"^## [^\n]*: `([a-z.]+)`\n.*?```python\n# (\w+\.py)\n(.*?)```\n```toml\n(.*?)```",
        DOC,
        re.DOTALL | re.MULTILINE,
    )
}
"""Section of the settings -> file, its code and the recipe, of each example."""

WORLD = """
import sdpo

def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    said = None if hits else f"none of {len(rollout.text)} characters is a letter from a to h"
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=said)

ENV = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)], judge)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path, model, monkeypatch):
    """An empty working directory with an environment; gives what starts a small run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world.py").write_text(WORLD)

    def settings(run, *more):
        return [
            f"run={run}", f"model.name={model}", "model.dtype=float32", "steps=3", "seed=3",
            "env.type=custom", "env.path=world.py:ENV", "rollout.tasks_per_step=4",
            "rollout.group_size=4", "rollout.max_completion_tokens=4", "optim.lr=1e-2",
            "rollout.max_prompt_tokens=200", "eval.samples=1", "eval.every=0",
            "checkpoint.every=1", *more,
        ]  # fmt: skip

    return settings


def write(name, code):
    Path(name).write_text(textwrap.dedent(code), encoding="utf-8")


def rows(run):
    """metrics.jsonl without times."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("time/")} for x in lines]


def test_every_door_has_an_example():
    assert sorted(DOORS) == [
        "objective", "objective.divergence", "objective.weighting", "teacher.context",
        "teacher.schedule",
    ]  # fmt: skip
    assert len(re.findall("```", DOC)) == 4 * len(DOORS)


@pytest.mark.parametrize("section", DOORS)
def test_the_example_trains_and_changes_what_is_learnt(section, world):
    file, code, recipe = DOORS[section]
    write(file, code)
    write("recipe.toml", recipe)
    seen = CliRunner().invoke(main, ["train", "recipe.toml", *world("own")])
    assert seen.exit_code == 0, seen.output
    again = sdpo.train("recipe.toml", *world("again"))
    assert rows("own") == rows("again")
    built_in = {
        "objective": ("objective.type=hybrid",),
        "teacher.schedule": ("teacher.schedule.rate=0.5",),
    }.get(section, ())
    sdpo.train(*world("built-in", *built_in))
    assert rows("own") != rows("built-in")
    (option,) = re.findall(r"options = \{(\w+) = .*\}", recipe)
    value = 0 if option == "max_notes" else 0.001
    sdpo.train("recipe.toml", *world("other", f"{section}.options.{option}={value}"))
    assert rows("own") != rows("other")
    recorded = json.loads((again.run_dir / "config.json").read_text())["custom"]
    assert set(recorded) == {"env", section}
    assert recorded[section]["file"].endswith(file)
    shown = CliRunner().invoke(main, ["config", "show", "recipe.toml"])
    assert shown.exit_code == 0, shown.output
    assert file in shown.output


SAME = {
    "objective.weighting": (
        "import torch\ndef own(tokens, *, beta): return torch.exp(-beta * tokens.teacher_entropy)",
        "objective.weighting={type='custom', path='same.py:own', options={beta=1.5}}",
        "objective.weighting={type='entropy', beta=1.5}",
    ),
    "teacher.schedule": (
        "def own(metrics, state): return 0.25",
        "teacher.schedule={type='custom', path='same.py:own'}",
        "teacher.schedule={type='ema', rate=0.25}",
    ),
    "snapshot": (
        """
        def own(metrics, state):
            state["steps"] = state.get("steps", 0) + 1
            return float(state["steps"] % 2 == 0)
        """,
        "teacher.schedule={type='custom', path='same.py:own'}",
        "teacher.schedule={type='snapshot', every=2}",
    ),
    "objective": (
        """
        def own(group, index, has_context):
            return {"pg": 0.9, "distill": 0.1} if has_context else {"pg": 0.9}
        """,
        "objective={type='custom', path='same.py:own'}",
        "objective={type='hybrid', mix=0.9}",
    ),
    "teacher.context": (
        """
        def own(group, index, others, rng):
            verdict = group.verdicts[index]
            return None if verdict.solved else {"feedback": verdict.feedback}
        """,
        "teacher.context={type='custom', path='same.py:own'}",
        "teacher.context={demonstration='none', feedback='always'}",
    ),
    "objective.divergence": (
        "def own(log_p, log_q): return (log_p.exp() * (log_p - log_q)).sum(-1)",
        "objective.divergence={type='custom', path='same.py:own', top_k=7, support='union'}",
        "objective.divergence={type='reverse_kl', top_k=7, support='union'}",
    ),
}


@pytest.mark.parametrize("door", SAME)
def test_a_copy_of_a_built_in_variant_trains_as_that_does(door, world):
    code, own, built_in = SAME[door]
    write("same.py", code)
    sdpo.train(*world("own", own))
    sdpo.train(*world("built-in", built_in))
    if door == "objective.divergence":
        # Autograd rounds in another order, and later steps sample from what came of it.
        first = [rows(run)[1] for run in ("own", "built-in")]
        assert first[0] == pytest.approx(first[1], rel=1e-3, abs=1e-6)
    else:
        assert rows("own") == rows("built-in")


def test_a_function_remembers_over_an_interruption(world):
    file, code, recipe = DOORS["teacher.schedule"]
    write(file, code)
    write("recipe.toml", recipe)
    sdpo.train("recipe.toml", *world("parts", "steps=1"))
    sdpo.train("recipe.toml", *world("parts"))
    sdpo.train("recipe.toml", *world("whole"))
    # The first part ended with an evaluation of its own.
    assert rows("parts")[2:] == rows("whole")[2:]


def test_a_run_was_continued_with_another_function(world):
    file, code, recipe = DOORS["objective.weighting"]
    write(file, code)
    write("recipe.toml", recipe)
    sdpo.train("recipe.toml", *world("run", "steps=1"))
    write(file, f"{code}\n# Another file now.\n")
    with pytest.raises(ConfigError, match=r"weights\.py has changed since run = 'run' began"):
        sdpo.train("recipe.toml", *world("run"))
    write(file, code)
    sdpo.train("recipe.toml", *world("run"))
    assert rows("run")[-1]["step"] == 3


def test_the_second_run_of_a_process_took_the_functions_of_the_first(world):
    write("own.py", "def share(metrics, state): return 1")
    setting = "teacher.schedule={type='custom', path='own.py:share'}"
    sdpo.train(*world("first", setting))
    write("own.py", "def share(metrics, state): return 0")
    sdpo.train(*world("second", setting))
    sdpo.train(*world("frozen", "teacher.schedule.type=frozen"))
    assert rows("second") == rows("frozen")
    assert rows("second") != rows("first")
    write("named.py", "def share(metrics, state): return 0")
    sdpo.train(*world("third", "teacher.schedule={type='custom', path='named:share'}"))
    write("named.py", "def share(metrics, state): return 1")
    with pytest.raises(ConfigError, match="start a new one"):
        sdpo.train(*world("fourth", "teacher.schedule={type='custom', path='named:share'}"))


def test_a_search_learns_with_a_function(world):
    file, code, recipe = DOORS["objective.divergence"]
    write(file, code)
    write("recipe.toml", recipe)
    more = ("discover.budget=4", "discover.batch=2", "discover.seeds=1")
    only = "discover.methods=['self_distillation']"
    config = load_config(["recipe.toml", *world("search", only, *more)])
    assert discover_tasks(config)
    assert "objective.divergence" in json.loads(Path("search/config.json").read_text())["custom"]


WRONG = {
    # How it is written, settings, what the message says.
    "no module": ("", "objective.weighting={type='custom', path='nowhere:own'}", "no module"),
    "no file": ("", "objective.weighting={type='custom', path='no.py:own'}", "does not exist"),
    "no colon": ("", "objective.weighting={type='custom', path='wrong'}", "package.module:Name"),
    "no function": (
        "def other(tokens): pass",
        "objective.weighting={type='custom', path='wrong.py:own'}",
        r"has no 'own'; it has other",
    ),
    "not a function": (
        "own = 3",
        "objective.weighting={type='custom', path='wrong.py:own'}",
        r"has the type int; name a function that can be called as own\(tokens\)",
    ),
    "signature": (
        "def own(tokens, beta): pass",
        "objective.weighting={type='custom', path='wrong.py:own'}",
        r"objective.weighting.path = 'wrong.py:own' is called as own\(tokens\), and takes "
        r"\(tokens, beta\): missing .*'beta'; change the function or objective.weighting.options",
    ),
    "option": (
        "def own(metrics, state): pass",
        "teacher.schedule={type='custom', path='wrong.py:own', options={rate=1}}",
        "unexpected keyword argument 'rate'",
    ),
    "routing signature": (
        "def own(group): pass",
        "objective={type='custom', path='wrong.py:own'}",
        "called as own.group, index, has_context.",
    ),
    "context signature": (
        "def own(group): pass",
        "teacher.context={type='custom', path='wrong.py:own'}",
        "called as own.group, index, others, rng.",
    ),
    "weights of a shape": (
        "import torch\ndef own(tokens): return torch.ones(1, len(tokens))",
        "objective.weighting={type='custom', path='wrong.py:own'}",
        r"on task 't\d' gave \(1, \d\); return a tensor with one weight a token",
    ),
    "weights of a sign": (
        "def own(tokens): return tokens.sampler_logprob",
        "objective.weighting={type='custom', path='wrong.py:own'}",
        "weights are finite, from 0 on",
    ),
    "share": (
        "def own(metrics, state): return 1.5",
        "teacher.schedule={type='custom', path='wrong.py:own'}",
        "gave 1.5; return the share",
    ),
    "state": (
        "def own(metrics, state): state['of'] = own; return 0",
        "teacher.schedule={type='custom', path='wrong.py:own'}",
        "keeps .* in `state`",
    ),
    "shown": (
        "def own(group, index, others, rng): return {'hint': 'x'}",
        "teacher.context={type='custom', path='wrong.py:own'}",
        "gave {'hint': 'x'} for attempt 0",
    ),
    "route": (
        "def own(group, index, has_context): return {'kl': 1.0}",
        "objective={type='custom', path='wrong.py:own'}",
        "unknown component",
    ),
    "derivative": (
        """
        def own(log_p, log_q):
            gap = log_q - log_p
            return -(log_p.exp() * gap).sum(-1), gap * log_p.exp()
        """,
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "objective.divergence.path = 'wrong.py:own': its derivative is not that of its value",
    ),
    "sum over everything": (
        "def own(log_p, log_q): return (log_p - log_q).square().sum()",
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "sum over the last dimension only",
    ),
    "not finite": (
        "def own(log_p, log_q): return log_p.exp().sqrt().sum(-1)",
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "not finite; entries that are not there",
    ),
    "constant": (
        "def own(log_p, log_q): return log_q.exp().sum(-1) + 0 * log_p.sum(-1)",
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "does not depend on the student",
    ),
    "overwritten": (
        "def own(log_p, log_q): return (log_p.exp() * (log_p - log_q.mul_(0.5))).sum(-1)",
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "overwrites its arguments",
    ),
    "raises": (
        "def own(log_p, log_q): return log_p.total()",
        "objective.divergence={type='custom', path='wrong.py:own'}",
        "raised AttributeError",
    ),
    "clipped": (
        "def own(log_p, log_q): return (log_p - log_q).sum(-1)",
        "objective={advantage_clip=5, divergence={type='custom', path='wrong.py:own'}}",
        "bound log_q - log_p in your function",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_function_is_refused_with_the_cure(case, world):
    code, setting, message = WRONG[case]
    write("wrong.py", code)
    with pytest.raises(SdpoError, match=message) as raised:
        sdpo.train(*world("run", setting))
    assert isinstance(raised.value, ConfigError)
