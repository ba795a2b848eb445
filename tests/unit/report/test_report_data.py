import gzip
import json
import math
from pathlib import Path

import pytest
from synthetic_run import make_run

from sdpo.compare import compare
from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import dumps
from sdpo.report import data
from sdpo.report.data import load_report, metric_columns, run_names, seed_groups
from sdpo.report.packed import Packed, gzip_json
from sdpo.report.page import write_report

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records" / "learn-schema"


def test_metrics_become_columns_with_gaps_as_null():
    rows = [{"step": 0, "eval/solved": 0.123456789}, {"step": 1, "loss/total": None}, {"step": 2}]
    assert metric_columns(rows) == {
        "step": [0, 1, 2],
        "eval/solved": [0.12346, None, None],
        "loss/total": [None, None, None],
    }


def test_long_runs_are_averaged_into_bins_that_keep_sparse_values(monkeypatch):
    monkeypatch.setattr(data, "MAX_ROWS", 10)
    rows = [{"step": i, "tokens_total": i, "x": float(i)} for i in range(100)]
    rows[55]["eval/solved"] = 0.5
    columns = metric_columns(rows)
    assert columns["step"] == columns["tokens_total"] == list(range(9, 100, 10))
    assert columns["x"][0] == 4.5
    assert columns["eval/solved"] == [None] * 5 + [0.5] + [None] * 4


def test_groups_are_compared_with_the_first_as_sdpo_compare_does():
    arms = [[RECORDS / arm / f"seed-{seed}" for seed in (3, 4)] for arm in ("grpo", "main")]
    (gap,) = compare(arms).differences
    first, second = load_report([path for paths in arms for path in paths])["groups"]
    assert "difference" not in first
    assert second["difference"].startswith(f"{gap.gap.mean:+.3f} [{gap.gap.low:+.3f}, ")
    assert f"better on {gap.wins} tasks" in second["difference"]


def test_runs_without_tasks_in_common_are_not_compared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    groups = load_report([tmp_path / "a", tmp_path / "b"])["groups"]
    assert ["difference" in group for group in groups] == [False, False]


def test_names_take_parents_when_directories_share_their_last_part(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert run_names(paths) == ["a/run", "b/run"]
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "a", tmp_path / "a"]) == ["a", "a"]


def test_runs_that_differ_in_seed_alone_are_one_group():
    def run(name, **config):
        return {"name": name, "config": {"run": name, **config}}

    runs = [
        run("x-seed0", seed=0, lr=1),
        run("y", seed=0, lr=2),
        run("x-seed1", seed=1, lr=1),
        {"name": "bare", "config": {}},
        {"name": "bare too", "config": {}},
    ]
    assert seed_groups(runs) == [
        {"name": "x", "runs": [0, 2]},
        {"name": "y", "runs": [1]},
        {"name": "bare", "runs": [3]},
        {"name": "bare too", "runs": [4]},
    ]


def test_the_demos_arms_of_one_seed_were_averaged_as_seeds():
    """Their environments differ, which settings do not show: 0.88 and 0.00 became 0.44."""
    told, untold, other = (
        {"name": name, "config": {"run": name, "seed": seed, "lr": lr}}
        for name, seed, lr in (("sdpo", 0, 1), ("sdpo-told-nothing", 0, 1), ("grpo", 0, 2))
    )
    assert seed_groups([told, other, untold]) == [
        {"name": "sdpo", "runs": [0]},
        {"name": "grpo", "runs": [1]},
        {"name": "sdpo-told-nothing", "runs": [2]},
    ]


def test_the_seeds_of_one_command_are_one_group():
    """Each has a name of its own for services that show runs by name."""
    runs = [
        {
            "name": f"x/seed-{seed}",
            "config": {
                "run": f"x/seed-{seed}",
                "seed": seed,
                "lr": 1,
                "log": {"name": f"x-{seed}"},
            },
        }
        for seed in range(3)
    ]
    assert seed_groups(runs) == [{"name": "x", "runs": [0, 1, 2]}]


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl"):
        write_report([tmp_path])
    with pytest.raises(ConfigError, match="at least one"):
        write_report([])


def test_a_killed_run_without_config_or_rollouts_still_has_a_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"x":1.0}\n{"step":2,"x"')
    report = load_report([tmp_path])
    (run,) = report["runs"]
    assert run["metrics"] == {"step": [1], "x": [1.0]}
    assert (run["groups"], run["credit"], run["alerts"]) == ([], [], [])


def test_everything_loaded_is_json(tmp_path):
    report = load_report([make_run(tmp_path / "run", steps=12, collapse=True)])
    shown = json.loads(gzip.decompress(gzip_json(report)))
    assert shown["runs"][0]["groups"][0]["prompt"][0]["role"] == "user"
    assert report["runs"][0]["config"]["optim.lr"] == 1e-5
    assert report["runs"][0]["host"] == "cpu, x86_64, 2 cores"


def test_json_in_pieces_is_json_as_a_whole():
    deep = {"f": {"g": {"h": [1, 2.5, "\ud800"]}}}
    plain = {"b": [1, {"x": []}, {}], "a": {"c": None, "d": math.nan, "e": deep}, "": [[[[[1]]]]]}
    assert gzip.decompress(gzip_json(plain)).decode() == dumps(plain)
    assert gzip_json({"a": [Packed(deep)]}) == gzip_json({"a": [deep]})
    assert gzip_json({}) == gzip_json(Packed({}))
