"""What `atomic_write` leaves behind when it ends and when it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sdpo.files import atomic_write, delete_folder, tidy


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_take_the_place_of_the_old_ones(tmp_path):
    for content in ("old", "new"):
        with atomic_write(tmp_path / "deep" / "file") as partial:
            partial.write_text(content)
        with atomic_write(tmp_path / "deep" / "folder") as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert (tmp_path / "deep" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["file", "folder"]
    assert names(tmp_path / "deep" / "folder") == ["new"]


def write_half(path, error):
    with atomic_write(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_changes_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / ".partial-folder").mkdir()
    (tmp_path / ".partial-folder" / "half").write_text("x")
    with atomic_write(tmp_path / "folder") as partial:
        partial.mkdir()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == []


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path, unless=path.exists) as partial:
        partial.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["file"]


class KilledError(BaseException):
    """Ends the process at that moment: nothing that is written afterwards counts."""


@pytest.mark.parametrize("at", range(1, 4))
def test_a_kill_while_a_folder_is_replaced_lost_the_old_one_and_the_new_one(
    tmp_path, monkeypatch, at
):
    """The first or second rename, or the removal of the old folder, never happens."""
    with atomic_write(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "old").touch()
    calls = []

    def dies(work):
        def step(*arguments, **options):
            calls.append(1)
            if len(calls) >= at:
                raise KilledError
            return work(*arguments, **options)

        return step

    def write_anew():
        with atomic_write(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies(Path.replace))
        patch.setattr(shutil, "rmtree", dies(shutil.rmtree))
        with pytest.raises(KilledError):
            write_anew()
    tidy(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == (["new"] if at == 3 else ["old"])


def test_a_kill_while_a_folder_is_deleted_left_half_of_it(tmp_path, monkeypatch):
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "state.pt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        delete_folder(tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()
    tidy(tmp_path)
    assert names(tmp_path) == []
