import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_run import make_run

from sdpo.errors import SdpoError
from sdpo.metrics.jsonl import read_rows
from sdpo.metrics.segments import Place
from sdpo.report import rollouts
from sdpo.report.lines import GrowingLines
from sdpo.report.rollouts import CreditIndex, RolloutIndex, thinned
from sdpo.rollouts.record import RolloutRecorder


def index_of(run):
    index = RolloutIndex(run / "rollouts.jsonl")
    index.update()
    return index


def values(packed):
    return [one.value for one in packed]


def row(step, category="accepted", *, split="train", task="a", index=0, **fields):
    solved = category == "accepted"
    return {
        "step": step, "split": split, "task": task, "index": index, "category": category,
        "solved": solved, "prompt": [] if index == 0 else 0, "text": "x", **fields,
    }  # fmt: skip


def write(path, rows, mode="w"):
    with path.open(mode) as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)


def test_a_small_run_is_shown_whole_in_order(tmp_path):
    index = index_of(make_run(tmp_path / "run", steps=4))
    groups = values(index.choose(10**9, set()))
    assert index.num_rollouts == sum(len(group["rollouts"]) for group in groups)
    assert index.num_rollouts == 4 * 16 + 2 * 8 * 4
    assert [g["step"] for g in groups] == sorted(g["step"] for g in groups)
    assert all(isinstance(group["prompt"], list) for group in groups)


def test_a_large_run_is_thinned_evenly_and_keeps_wanted_groups(tmp_path):
    index = index_of(make_run(tmp_path / "run", steps=30))
    whole = values(index.choose(10**9, set()))
    wanted = {(g["step"], g["split"], g["task"]) for g in whole if g["step"] == 13}
    groups = values(index.choose(22_000, wanted))
    assert len(groups) < len(whole) / 2
    found = {(g["step"], g["split"], g["task"]) for g in groups}
    assert wanted <= found
    steps = sorted({step for step, _, _ in found})
    assert steps[0] == 0
    assert steps[-1] == 30
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 4


def test_verdicts_are_counted_by_split_step_and_category_solved_first(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    wrong = [row(1, "wrong_answer", index=i) for i in (1, 2)]
    unnamed = {"category": None, "solved": False}
    write(path, [row(1), *wrong, row(2, index=0), row(2, index=1) | unnamed, row(0, split="eval")])
    index = RolloutIndex(path)
    index.update()
    verdicts = index.verdicts()
    assert verdicts["train"] == {
        "step": [1, 2],
        "categories": [
            ("accepted", [1, 1]), ("wrong_answer", [2, 0]), ("not solved", [0, 1]),
        ],
        "solved": ["accepted"],
    }  # fmt: skip
    assert verdicts["eval"]["step"] == [0]
    assert index.held_out == {0: {"a": [1, 1]}}


def test_verdicts_of_a_long_run_are_added_up_into_bins(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "MAX_BINS", 4)
    path = tmp_path / "rollouts.jsonl"
    write(path, [row(step) for step in range(1, 11)])
    index = RolloutIndex(path)
    index.update()
    verdicts = index.verdicts()["train"]
    assert verdicts["step"] == [2, 5, 8, 10]
    assert dict(verdicts["categories"]) == {"accepted": [2, 3, 3, 2]}


def test_a_run_that_goes_on_is_read_on_and_one_that_was_cut_back_anew(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    index = RolloutIndex(path)
    index.update()
    assert index.num_rollouts == 0
    write(path, [row(1), row(1, index=1)])
    index.update()
    with path.open("a") as file:
        file.write(json.dumps(row(1, index=2)) + "\n" + json.dumps(row(2))[:20])
    index.update()
    (group,) = values(index.choose(10**6, set()))
    assert [one["index"] for one in group["rollouts"]] == [0, 1, 2]
    write(path, [row(1), *(row(step, task="other task") for step in range(2, 9))])
    index.update()
    assert index.num_rollouts == 8
    assert [group["step"] for group in values(index.choose(10**6, set()))] == list(range(1, 9))


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(json.dumps(row(1)).encode() + b"\n\0\0\0\n")
    with pytest.raises(SdpoError, match=r"rollouts\.jsonl, line 2: not a JSON object"):
        RolloutIndex(path).update()


def test_lines_are_handed_out_once(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = GrowingLines(path)
    assert list(lines.new()) == []
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"a"')
    assert [place.offset for place, _ in lines.new()] == [0, 8]
    assert list(lines.new()) == []
    assert not lines.was_rewritten()
    with path.open("ab") as file:
        file.write(b":3}\n")
    assert list(lines.new()) == [(Place(16, 8, 0, 8), b'{"a":3}\n')]
    assert lines.read(Place(8, 16, 0, 16)) == [{"a": 2}, {"a": 3}]
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"b":3}\n')
    assert lines.was_rewritten()
    assert len(list(lines.new())) == 3


def credit_row(step, count):
    ids = list(range(count))
    return {
        "step": step, "split": "train", "task": "t", "index": 0, "advantage": 0.0,
        "token_ids": ids, "student_logprob": [-0.5] * count,
        "teacher_logprob": [-0.5 - (i % 7) for i in ids],
        "student_entropy": [0.1] * count, "teacher_entropy": [0.1] * count,
        "student_top": [[i, -0.1, count + i, -3.0] for i in ids],
        "teacher_top": [[count + i, -0.1] for i in ids],
        "texts": {str(i): f"t{i}" for i in range(2 * count)},
    }  # fmt: skip


def test_credit_that_fits_is_spread_over_the_file(tmp_path):
    path = tmp_path / "credit.jsonl"
    write(path, [credit_row(step, 20) for step in range(50)])
    index = CreditIndex(path)
    index.update()
    rows, groups = index.choose(10**6, 3)
    assert [one["step"] for one in values(rows)] == [0, 24, 49]
    assert groups == {(step, "train", "t") for step in (0, 24, 49)}
    assert len(index.choose(2_500, 50)[0]) < 10


def test_a_long_attempt_keeps_alternatives_where_the_disagreement_is_largest():
    count = rollouts.MANY_TOKENS + 1
    whole = credit_row(1, count)
    row = thinned(whole)
    kept = [i for i, top in enumerate(row["teacher_top"]) if top]
    assert len(kept) == rollouts.KEPT_ALTERNATIVES
    assert all(i % 7 >= 5 for i in kept)
    assert [bool(top) for top in row["student_top"]] == [bool(top) for top in row["teacher_top"]]
    assert row["teacher_logprob"] == whole["teacher_logprob"]
    assert len(row["texts"]) == count + len(kept)
    assert thinned(credit_row(1, 10)) == credit_row(1, 10)


REPORT = """
import re, sys
from pathlib import Path
from sdpo.report import write_report
write_report([Path(sys.argv[1])])
assert "torch" not in sys.modules
# Not ru_maxrss: across fork and exec that keeps the peak of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_report_of_a_run_with_huge_records_needs_little_memory(tmp_path):
    """600 MB of token credit and 300 MB of rollouts; every line of both was once held."""
    run = make_run(tmp_path / "run", steps=3)
    line = json.dumps(credit_row(0, 9_000))
    with (run / "credit.jsonl").open("w") as file:
        for step in range(600_000_000 // len(line)):
            file.write(line.replace('"step": 0', f'"step": {step}', 1) + "\n")
    text = "".join(f"{i * i} " for i in range(4_000))
    like = _like(run, text="")
    with RolloutRecorder(run) as recorder:
        for step in range(4, 4 + 300_000_000 // len(text)):
            recorder._rollouts.append([like | {"step": step, "text": f"{step} {text}"}])
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", REPORT, run], capture_output=True, text=True, check=False
    )
    print(f"{done.stdout.strip()} MB, {time.monotonic() - start:.1f} s")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300
    assert (run / "report.html").stat().st_size < 10_000_000
    for path in (run / "credit.jsonl", run / "rollouts.jsonl.gz"):
        path.unlink()


def _like(run: Path, **fields):
    return next(read_rows(run / "rollouts.jsonl")) | {"split": "train"} | fields
