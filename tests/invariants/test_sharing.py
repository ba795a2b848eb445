"""Commands besides `train` under torchrun: two processes share what one would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sharing_worker
from under_torchrun import two_processes

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

WORKER = Path(sharing_worker.__file__)
ONE_FAILS = WORKER.with_name("one_fails_worker.py")
COMMANDS = ("evaluate", "probe", "check", "sample", "discover", "search")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model) -> tuple[Path, Path]:
    """What one process and what two have left."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    two_processes(WORKER, two, model)
    sharing_worker.main(one, model)
    return one, two


@pytest.fixture(scope="module")
def returned(folders) -> tuple[dict, dict, dict]:
    """By command: what one process returned, and what each of two did."""
    one, two = folders
    files = (one / "0.json", two / "0.json", two / "1.json")
    first, second, third = (json.loads(file.read_text()) for file in files)
    return first, second, third


def near(value, expected):
    """Equal up to the rounding of sums in another order."""
    if isinstance(expected, float):
        return value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            near(value[key], expected[key]) for key in expected
        )
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(near, value, expected))
    return value == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_each_process_returns_what_one_alone_does(command, returned):
    alone, main, other = (found[command] for found in returned)
    assert alone
    assert near(main, alone)
    assert near(other, alone)


@pytest.mark.parametrize("command", ["evaluate", "probe", "discover", "search"])
def test_no_attempt_is_made_twice(command, returned):
    """`torchrun sdpo eval` did everything on every rank."""
    alone, main, other = (found[f"{command}: judged"] for found in returned)
    assert main + other == alone
    assert abs(main - other) <= alone / 3, "three tasks, two ranks"


def test_a_search_is_written_once(folders):
    """`torchrun sdpo discover` left every attempt twice, and ended in a traceback."""
    one, two = (folder / "search" for folder in folders)
    names = [sorted(p.relative_to(run).as_posix() for p in run.rglob("*")) for run in (one, two)]
    assert names[0] == names[1]
    for name in ("attempts.jsonl", "updates.jsonl", "discovery.jsonl", "selection.jsonl"):
        rows = [
            [
                {k: v for k, v in row.items() if "seconds" not in k and "time/" not in k}
                for row in read_rows(run / name)
            ]
            for run in (one, two)
        ]
        assert rows[0], name
        assert near(rows[1], rows[0]), name


def test_an_error_of_one_process_is_heard_by_all(model, tmp_path):
    """The others waited for it, until the backend gave up after half an hour."""
    two_processes(ONE_FAILS, tmp_path, model)
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert heard[0] == heard[1]
    fine = "train: teacher's attempts that are not judged"
    assert [case for case, said in heard[0].items() if said == "nothing"] == [fine]
