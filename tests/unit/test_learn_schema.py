"""benchmarks/learn_schema.py keeps what `sdpo compare` reads, and what is kept gives the numbers of
docs/results.md."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import sdpo
from sdpo.compare import compare
from sdpo.testing import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records" / "learn-schema"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(
        "learn_schema", ROOT / "benchmarks" / "learn_schema.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_record_of_a_run_can_be_compared(bench, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    env = sdpo.env(
        ["say a", "say b"],
        lambda task, rollout: sdpo.Verdict(
            reward=float("a" in rollout.text), solved="a" in rollout.text, info={"category": "said"}
        ),
    )
    sdpo.train(
        f"run={tmp_path / 'run'}", f"model.name={tmp_path / 'model'}", "model.device=cpu",
        "model.dtype=float32", "steps=1", "rollout.tasks_per_step=2", "rollout.group_size=2",
        "rollout.max_completion_tokens=4", "eval.samples=1", env=env,
    )  # fmt: skip
    bench.record(tmp_path / "run", tmp_path / "record")
    found, kept = compare([[tmp_path / "run"], [tmp_path / "record"]]).arms
    assert kept.mean == found.mean
    assert kept.attempts == found.attempts == (4,)
    assert '"said": 4' in (tmp_path / "record" / "categories.jsonl").read_text()


def test_the_arms_of_the_documents_are_those_on_record():
    text = (ROOT / "docs" / "results.md").read_text()
    recipe = [RECORDS / "main" / f"seed-{seed}" for seed in (2, 3, 4)]
    alone = [RECORDS / arm for arm in ("plain", "no_names", "other_database", "jsd_top_20")]
    others = [[RECORDS / "grpo"], *([arm] for arm in alone)]
    arms = [
        *compare([recipe], step=12).arms,
        *compare([recipe], step=20).arms,
        *compare(others, step=12).arms,
    ]
    written = re.findall(
        r"\| (\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\]", text.split("(`learn-schema`")[1]
    )
    measured = [(arm.mean.mean, arm.mean.low, arm.mean.high) for arm in arms]
    assert [tuple(map(float, row)) for row in written[: len(arms)]] == [
        pytest.approx(row, abs=0.006) for row in measured
    ]


def test_the_table_where_rewards_are_not_flat_is_that_on_record():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (GRPO|`hybrid`)[^|]* \| (\S+) \| (\d) \|(.+)\|$", text, re.MULTILINE)
    assert len(rows) == 9
    for arm, rate, seed, cells in rows:
        folder = ROOT / "benchmarks" / "records" / "sample-efficiency" / "all"
        folder = folder / f"{arm.strip('`').lower()}-{rate}" / f"seed-{seed}"
        curve = sdpo.Run.open(folder).metrics()
        solved = dict(zip(curve["step"], curve["eval/solved"], strict=True))
        shown = [float(cell) for cell in cells.split("|")]
        assert shown == pytest.approx([solved[n] for n in (0, 2, 4, 6, 8, 12)], abs=0.0051), folder
