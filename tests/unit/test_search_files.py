"""Names of tasks as names of files and as seeds."""

from __future__ import annotations

import pytest

from sdpo.discovery.records import _file_name, _save_solution
from sdpo.discovery.result import Discovery
from sdpo.seeds import derive


def solved(task_id):
    return Discovery(
        task_id=task_id,
        method="best_of_k",
        seed=0,
        budget=1,
        attempts=1,
        attempts_to_solve=1,
        solution=f"of {task_id}",
        seconds=0.0,
    )


@pytest.mark.parametrize(
    "task_id",
    [
        "clamp", "x" * 5000, "ä" * 300, "日本語/タスク", "../../etc/passwd", "a\nb\0c",
        "half \udc80", ".", "", "CON", " ",
    ],
)  # fmt: skip
def test_a_solution_is_kept_whatever_its_task_is_called(tmp_path, task_id):
    _save_solution(tmp_path, solved(task_id))
    (path,) = (tmp_path / "solutions").iterdir()
    assert path.is_file()
    assert len(path.name) < 128
    assert path.read_text(encoding="utf-8").startswith("of ")


def test_long_names_with_one_beginning_stay_apart():
    names = ["é" * 200, "è" * 200, "x" * 200, "x" * 201, "X" * 200]
    assert len({_file_name(name).lower() for name in names}) == len(names)


def test_half_a_surrogate_pair_in_a_name_ended_the_run_at_its_first_attempt():
    assert len({derive(0, name) for name in ("a\udc80", "a\udc81", "a\ud800", "a", "a?")}) == 5
