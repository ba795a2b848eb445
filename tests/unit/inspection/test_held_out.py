"""Tasks from elsewhere are evaluated before and after training and show what it forgets."""

from __future__ import annotations

import json

import pytest

import sdpo
from sdpo.compare import compare
from sdpo.config.load import load_config
from sdpo.errors import ConfigError, PromptTooLongError
from sdpo.report.comparison_table import as_json, as_markdown, as_text
from sdpo.report.outcome import describe_outcome
from sdpo.rollouts.record import read_rollouts
from sdpo.testing import byte_tokenizer, tiny_model

OPTIONS = "What?\n\nA: 1 kg\nB: 2 kg"


def judge(task, rollout):
    is_even = rollout.completion_ids[0] % 2 == 0
    return sdpo.Verdict(reward=float(is_even), solved=is_even, feedback="begins with an odd token")


ENV = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(3)], judge)


def write_choice(path, count):
    rows = [{"idx": i, "prompt": f"{OPTIONS} {path.stem} {i}", "answer": "A"} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    for name, count in (("own", 6), ("other_set", 3), ("long", 2)):
        write_choice(folder / f"{name}.jsonl", count)
    (folder / "quiz.toml").write_text(
        f"[env]\ntype = 'choice'\ntasks = '{folder}/other_set.jsonl'\neval_fraction = 1.0\n"
        "[eval]\nsamples = 3\nmax_tasks = 2\n[rollout]\nmax_completion_tokens = 5\n"
    )
    (folder / "mute.py").write_text(
        "import sdpo\nENV = sdpo.env(['say'], lambda task, rollout: rollout.text == '')\n"
    )
    (folder / "mute.toml").write_text(f"[env]\ntype = 'custom'\npath = '{folder}/mute.py:ENV'\n")
    return folder


def settings(world, *changes):
    return load_config(
        [
            f"run={world}/run", f"model.name={world}/model", "model.device=cpu",
            "model.dtype=float32", "steps=2", "eval.every=1", "eval.samples=2",
            "rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.max_prompt_tokens=300",
            "rollout.max_completion_tokens=3", "checkpoint.every=1", *changes,
        ]
    )  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def holdout(*entries):
    return f"eval.holdout={json.dumps([str(entry) for entry in entries])}"


@pytest.fixture(scope="module")
def run_dir(world):
    config = settings(world, holdout(world / "quiz.toml", world / "mute.toml"))
    return sdpo.train(config, env=ENV).run_dir


def test_other_tasks_are_attempted_at_both_ends_of_a_run(run_dir):
    written = [
        {name for name in row if name.startswith("holdout/")}
        for row in rows(run_dir / "metrics.jsonl")
    ]
    both = {
        f"holdout/{name}{bound}" for name in ("quiz", "mute") for bound in ("", "_low", "_high")
    }
    assert written == [both, set(), both]


def test_a_recipe_brings_its_own_way_of_being_evaluated(run_dir):
    attempts = [r for r in read_rollouts(run_dir) if r["split"] == "holdout/quiz"]
    assert {row["step"] for row in attempts} == {0, 2}
    assert len(attempts) == 2 * 2 * 3, "steps x eval.max_tasks x eval.samples of the recipe"
    assert max(row["completion_tokens"] for row in attempts) == 5


def test_a_file_is_read_as_the_runs_own_kind_of_tasks_and_held_out_whole(world, tmp_path):
    config = settings(
        world, f"run={tmp_path}/run", "env.type=choice", f"env.tasks={world}/own.jsonl",
        "env.eval_fraction=0.5", "steps=1", holdout(world / "other_set.jsonl"),
    )  # fmt: skip
    found = list(read_rollouts(sdpo.train(config).run_dir))
    tasks = {row["task"] for row in found if row["split"] == "holdout/other-set"}
    assert len(tasks) == 3


def test_a_longer_run_measures_again_and_a_resumed_one_the_same(world, tmp_path):
    changes = (f"run={tmp_path}/run", holdout(world / "mute.toml"), "eval.every=0")
    sdpo.train(settings(world, *changes), env=ENV)
    sdpo.train(settings(world, *changes, "steps=3"), env=ENV)
    written = [row["step"] for row in rows(tmp_path / "run/metrics.jsonl") if "holdout/mute" in row]
    assert written == [0, 2, 3]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("nowhere.jsonl", "'nowhere.jsonl' is neither a built-in recipe, nor a .toml file, nor"),
        ("{world}/other_set.jsonl", "its environment has no files of tasks; name a .toml file"),
    ],
)
@pytest.mark.parametrize("call", [sdpo.check, sdpo.train], ids=["check", "train"])
def test_a_set_that_cannot_be_opened_is_refused_before_anything_is_sampled(
    world, tmp_path, call, entry, said
):
    config = settings(world, f"run={tmp_path}/run", holdout(entry.format(world=world)))
    with pytest.raises(ConfigError) as error:
        call(config, env=ENV)
    assert said in str(error.value)


def test_sets_of_one_name_and_tasks_that_do_not_fit_are_refused(world, tmp_path):
    (tmp_path / "quiz.toml").write_text((world / "quiz.toml").read_text())
    twice = settings(world, holdout(world / "quiz.toml", tmp_path / "quiz.toml"))
    with pytest.raises(ConfigError, match="are both called 'quiz' in metrics"):
        sdpo.check(twice, env=ENV)
    text = (world / "quiz.toml").read_text() + "max_prompt_tokens = 9\n"
    (tmp_path / "long.toml").write_text(text)
    with pytest.raises(PromptTooLongError, match=r"2 of 2 eval.holdout = '.*long.toml': tasks"):
        sdpo.check(settings(world, holdout(tmp_path / "long.toml")), env=ENV)


def test_a_report_and_a_comparison_say_what_was_forgotten(tmp_path):
    """Four tasks elsewhere: half of the attempts solved before, a quarter after."""
    shares = {0: [1.0, 1.0, 0.0, 0.0], 4: [1.0, 0.0, 0.0, 0.0]}
    metrics, rollouts = [], []
    for step, solved in shares.items():
        mean = sum(solved) / 4
        metrics.append(
            {"step": step, "rollouts_total": step, "eval/solved": 0.5, "holdout/mbpp": mean,
             "holdout/mbpp_low": mean - 0.1, "holdout/mbpp_high": mean + 0.1}
        )  # fmt: skip
        for split in ("eval", "holdout/mbpp"):
            rollouts += [
                {"step": step, "split": split, "task": f"t{i}", "index": 0, "prompt": [],
                 "teacher": None, "solved": bool(each)}
                for i, each in enumerate(solved)
            ]  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 0}}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")
    (tmp_path / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rollouts)) + "\n")
    outcome = describe_outcome(metrics, {}, (), {})
    assert (
        "Of the attempts at mbpp, which it does not train on, 0.50 were solved before and 0.25 "
        "after (-0.25)." in outcome.details
    )
    found = compare([[tmp_path], [tmp_path]])
    (kept,) = found.arms[0].holdout
    assert (kept.name, kept.num_tasks, kept.mean.mean, kept.change.mean) == ("mbpp", 4, 0.25, -0.25)
    assert kept.change.low < -0.25 < kept.change.high
    assert "  mbpp 0.250 [" in as_text(found)
    assert "change -0.250 [" in as_text(found)
    assert as_json(found)["arms"][0]["holdout"]["mbpp"]["change"]["mean"] == -0.25
    assert "mbpp -0.250 [" in as_markdown(found)
