"""Compressed records: appended, cut back, read in places, and never half a row."""

from __future__ import annotations

import gzip
import json

import pytest

from sdpo.errors import SdpoError
from sdpo.metrics import segments
from sdpo.metrics.jsonl import CompressedLines, JsonLines, read_rows
from sdpo.metrics.segments import lines_at, read_place


def rows_of(step, count=4, text="some text"):
    return [{"step": step, "task": task, "text": f"{text} {i}"} for task in "ab"
            for i in range(count)]  # fmt: skip


def open_lines(folder):
    return CompressedLines(folder / "r.jsonl", unit=lambda row: (row["step"], row["task"]))


def written(folder, steps):
    file = open_lines(folder)
    for step in steps:
        file.append(rows_of(step))
    file.close()
    return folder / "r.jsonl.gz"


def test_any_gzip_reader_reads_what_was_appended(tmp_path):
    path = written(tmp_path, (1, 2, 3))
    expected = [row for step in (1, 2, 3) for row in rows_of(step)]
    found = gzip.decompress(path.read_bytes())
    assert [json.loads(line) for line in found.splitlines()] == expected
    assert list(read_rows(tmp_path / "r.jsonl")) == expected


def test_a_torn_segment_is_absent_and_the_rest_stays(tmp_path):
    path = written(tmp_path, (1, 2))
    whole = path.read_bytes()
    two = written(tmp_path / "one", (1,)).stat().st_size
    for cut in range(two, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert {row["step"] for row in read_rows(tmp_path / "r.jsonl")} == {1}
        open_lines(tmp_path).resume_at(9)
        assert path.read_bytes() == whole[:two]


def test_a_resumed_file_is_the_same_bytes_as_one_that_never_stopped(tmp_path):
    whole = written(tmp_path / "whole", range(6)).read_bytes()
    path = written(tmp_path / "cut", range(5))
    with path.open("ab") as file:
        file.write(b"\x1f\x8b half a header")
    file = open_lines(tmp_path / "cut")
    file.resume_at(3)
    for step in (4, 5):
        file.append(rows_of(step))
    file.close()
    assert path.read_bytes() == whole


def test_part_of_a_step_can_be_dropped(tmp_path):
    file = CompressedLines(
        tmp_path / "r.jsonl", unit=lambda row: (row["step"], row["split"], row["task"])
    )
    for split in ("train", "eval"):
        file.append(row | {"split": split} for row in rows_of(1))
    file.resume_at(1, drops=lambda row: row["split"] == "eval")
    assert {row["split"] for row in read_rows(tmp_path / "r.jsonl")} == {"train"}


def test_units_are_not_divided_and_read_back_by_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 300)
    path = written(tmp_path, (1, 2))
    found = list(lines_at(path))
    starts = [{place.offset for place, line in found if row_key(line) == key}
              for key in ((1, "a"), (1, "b"), (2, "a"), (2, "b"))]  # fmt: skip
    assert all(len(offsets) == 1 for offsets in starts)
    assert len(set.union(*starts)) == 4
    first, last = found[1][0], found[3][0]
    lines = read_place(path, first.to(last)).splitlines(keepends=True)
    assert lines == [line for _, line in found[1:4]]


def row_key(line):
    row = json.loads(line)
    return row["step"], row["task"]


def test_damage_is_named_with_the_way_out(tmp_path):
    path = written(tmp_path, (1, 2))
    size = written(tmp_path / "one", (1,)).stat().st_size
    data = bytearray(path.read_bytes())
    for start, message in ((size, "no segment of ours"), (size + 30, "damaged segment")):
        spoilt = bytearray(data)
        spoilt[start : start + 8] = bytes(8)
        path.write_bytes(spoilt)
        for call in (lambda: list(read_rows(tmp_path / "r.jsonl")),
                     lambda: open_lines(tmp_path).resume_at(2)):  # fmt: skip
            with pytest.raises(SdpoError, match=rf"byte {size}.*{message}.*move"):
                call()


def test_rows_of_an_older_version_are_read_and_taken_over(tmp_path):
    old = JsonLines(tmp_path / "r.jsonl")
    old.append(row for step in (1, 2, 3) for row in rows_of(step))
    old.close()
    assert len(list(read_rows(tmp_path / "r.jsonl"))) == 24
    file = open_lines(tmp_path)
    file.resume_at(2)
    file.append(rows_of(3))
    assert not (tmp_path / "r.jsonl").exists()
    assert (tmp_path / "r.jsonl.gz").read_bytes() == (
        written(tmp_path / "new", (1, 2, 3)).read_bytes()
    )
    file.begin_anew()
    assert list(read_rows(tmp_path / "r.jsonl")) == []
    assert (tmp_path / "r.jsonl.gz.bak").exists()
