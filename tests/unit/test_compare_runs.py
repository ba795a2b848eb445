"""Comparisons of runs: hand-computed means, pairing, attempts to a level, and the command."""

from __future__ import annotations

import json
import statistics

import pytest

from sdpo.cli import run
from sdpo.compare import compare
from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import dumps


def write_run(folder, seed, evaluations, attempts_per_step=10):
    """A run directory whose evaluation at each step solved the given shares of 4 attempts."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    metrics, rollouts = [], []
    for step, tasks in evaluations.items():
        metrics.append({"step": step, "rollouts_total": step * attempts_per_step})
        rollouts += [
            {
                "step": step, "split": "eval", "task": task, "index": index,
                "prompt": [] if index == 0 else 0, "teacher": None, "solved": index < 4 * share,
            }
            for task, share in tasks.items()
            for index in range(4)
        ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(dumps(row) + "\n" for row in metrics))
    (folder / "rollouts.jsonl").write_text("".join(dumps(row) + "\n" for row in rollouts))
    return folder


@pytest.fixture
def arms(tmp_path):
    """A baseline that gains nothing and an arm that solves two of four tasks at step 20."""
    flat = dict.fromkeys("abcd", 0.25)
    better = flat | {"a": 1.0, "b": 0.75}
    for seed in (0, 1, 2):
        write_run(tmp_path / "grpo" / f"seed-{seed}", seed, {0: flat, 10: flat, 20: flat})
        middle = better if seed == 0 else flat
        write_run(tmp_path / "sdpo" / f"seed-{seed}", seed, {0: flat, 10: middle, 20: better})
    return tmp_path / "grpo", tmp_path / "sdpo"


def test_means_gains_and_differences_are_those_of_the_records(arms):
    found = compare([[arms[0]], [arms[1]]], reach=0.5)
    base, better = found.arms
    assert (base.num_runs, base.num_tasks, base.attempts) == (3, 4, (200, 200, 200))
    assert base.mean.mean == pytest.approx(0.25)
    assert base.gain.mean == 0.0
    expected = statistics.fmean([1.0, 0.75, 0.25, 0.25])
    assert better.mean.mean == pytest.approx(expected)
    assert better.gain.mean == pytest.approx(expected - 0.25)
    (gap,) = found.differences
    assert gap.gap.mean == pytest.approx(expected - 0.25)
    assert gap.gap.low <= gap.gap.mean <= gap.gap.high
    assert (gap.wins, gap.losses, gap.ties) == (2, 0, 2)
    assert gap.is_paired_by_seed


def test_attempts_to_reach_a_level_are_of_the_first_evaluation_at_it(arms):
    found = compare([[arms[0]], [arms[1]]], reach=0.5)
    assert found.arms[0].reached == (None, None, None)
    assert found.arms[1].reached == (100, 200, 200)


def test_the_default_level_is_the_lowest_arm_which_reaches_itself(arms):
    found = compare([[arms[0]], [arms[1]]])
    assert found.level == pytest.approx(0.25)
    assert all(each is not None for arm in found.arms for each in arm.reached)


def test_a_step_can_be_chosen(arms):
    found = compare([[arms[0]], [arms[1]]], step=10)
    assert found.differences[0].gap.mean == pytest.approx((0.75 + 0.5) / 4 / 3)
    with pytest.raises(ConfigError, match="was not evaluated at step 7; it was at 0, 10, 20"):
        compare([[arms[0]], [arms[1]]], step=7)


def test_pairing_by_seed_takes_seed_noise_out(tmp_path):
    """Both arms move with the seed; the paired gap is constant, the unpaired one is not."""
    for seed, share in ((0, 0.0), (1, 0.25), (2, 0.5)):
        low = dict.fromkeys("abcdef", share)
        high = dict.fromkeys("abcdef", share + 0.25)
        write_run(tmp_path / "low" / f"seed-{seed}", seed, {0: low})
        write_run(tmp_path / "high" / f"seed-{seed}", seed, {0: high})
        write_run(tmp_path / "other" / f"seed-{seed}", seed + 10, {0: high})
    paired = compare([[tmp_path / "low"], [tmp_path / "high"]]).differences[0]
    assert (paired.gap.low, paired.gap.high) == pytest.approx((0.25, 0.25))
    unpaired = compare([[tmp_path / "low"], [tmp_path / "other"]]).differences[0]
    assert not unpaired.is_paired_by_seed
    assert unpaired.gap.mean == pytest.approx(0.25)
    assert unpaired.gap.high - unpaired.gap.low > 0.1


def test_only_shared_tasks_are_compared(tmp_path):
    one = write_run(tmp_path / "one", 0, {0: {"a": 1.0, "b": 0.0}})
    two = write_run(tmp_path / "two", 0, {0: {"a": 0.5, "c": 1.0}})
    found = compare([[one], [two]])
    assert [arm.num_tasks for arm in found.arms] == [1, 1]
    assert found.differences[0].gap.mean == pytest.approx(-0.5)
    other = write_run(tmp_path / "three", 0, {0: {"z": 1.0}})
    with pytest.raises(ConfigError, match="share no held-out task"):
        compare([[one], [other]])


def test_records_without_texts_compare_too(arms):
    """What one keeps of runs in git needs tasks and verdicts, not prompts."""
    before = compare([[arm] for arm in arms])
    for path in arms[1].glob("*/rollouts.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if k not in ("prompt", "teacher")} for row in rows]
        path.write_text("".join(dumps(row) + "\n" for row in kept))
    assert compare([[arm] for arm in arms]) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl"):
        compare([[tmp_path]])


def without(run, *columns):
    """Takes columns out of the record of a run."""
    path = run / "rollouts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{name: row[name] for name in row if name not in columns} for row in rows]
    path.write_text("".join(dumps(row) + "\n" for row in kept))
    return run


def test_a_record_without_what_is_counted_names_the_column(tmp_path):
    run = without(write_run(tmp_path / "run", 0, {0: {"a": 0.5}}), "solved")
    with pytest.raises(ConfigError, match=r"rollouts\.jsonl: a row has no 'solved'"):
        compare([[run]])


def test_files_of_eval_compare_too(tmp_path):
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    before.write_text('{"id":"a","samples":4,"solved":1}\n{"id":"b","samples":4,"solved":0}\n')
    after.write_text('{"id":"a","samples":4,"solved":3}\n{"id":"b","samples":4,"solved":0}\n')
    found = compare([[before], [after]])
    assert found.differences[0].gap.mean == pytest.approx(0.25)
    before.write_text('{"task":"a"}\n')
    with pytest.raises(ConfigError, match="expected lines"):
        compare([[before], [after]])


def test_the_command_prints_text_json_and_markdown(arms, capsys):
    paths = [str(arms[0]), "--", str(arms[1])]
    assert run(["compare", *paths]) == 0
    said = capsys.readouterr().out
    assert "held out 0.562 [" in said
    assert "+0.312 [" in said
    assert "better on 2 tasks, worse on 0, equal on 2" in said
    assert run(["compare", "--as", "json", "--reach", "0.5", *paths]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["arms"][1]["reached"] == [100, 200, 200]
    assert run(["compare", *paths, "--as", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| --- |")
    assert len(lines) == 4


def test_seeds_given_one_by_one_form_an_arm(arms, capsys):
    runs = [[str(path / f"seed-{seed}") for seed in (0, 1, 2)] for path in arms]
    assert run(["compare", "--as", "json", *runs[0], "--", *runs[1]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["runs"] for arm in found["arms"]] == [3, 3]
    assert found["differences"][0]["paired_by_seed"] is True
