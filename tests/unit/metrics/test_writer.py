import errno
import json
import math
import sys
from unittest import mock

import pytest

from sdpo.config.schema import LogConfig
from sdpo.errors import ConfigError, SdpoError
from sdpo.metrics.backends import check_installed
from sdpo.metrics.canaries import Alert
from sdpo.metrics.jsonl import JsonLines, dumps, read_rows
from sdpo.metrics.writer import MetricsWriter


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def alert(step):
    return Alert(
        canary="truncation",
        step=step,
        since=step,
        good=0,
        value=1,
        baseline=0,
        action="warn",
        message="m",
    )


def test_one_sorted_object_a_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"z": 1.0, "a/b": 2.0})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"a/b":2.0,"step":1,"z":1.0}\n'
        writer.write(2, {"z": math.nan, "a/b": math.inf})
        assert rows(tmp_path / "metrics.jsonl")[1] == {"a/b": None, "step": 2, "z": None}
        assert writer.last() == {"a/b": None, "step": 2, "z": None}


def test_resuming_forgets_later_steps_and_a_torn_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"x": float(step)}, [alert(step)])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step":5,"x"')
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4]
    with MetricsWriter(tmp_path) as writer:
        writer.resume_at(2)
        for step in (3, 4):
            writer.write(step, {"x": float(step)}, [alert(step)])
    assert path.read_bytes() == whole
    assert [row["step"] for row in rows(tmp_path / "alerts.jsonl")] == [0, 1, 2, 3, 4]


def test_resuming_before_the_first_step_starts_over(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"x": 1.0})
        assert writer.begin_anew() == 1
        assert writer.last() == {}
        writer.write(0, {"x": 2.0})
        assert writer.last() == {"step": 0, "x": 2.0}


def test_a_full_disk_is_a_clear_error(tmp_path):
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with pytest.raises(SdpoError, match=r"cannot write .*full: No space left"):
        JsonLines(path).append([{"step": 1}])


def test_records_that_cannot_be_read_or_cut_were_a_traceback(tmp_path, monkeypatch):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SdpoError, match=r"cannot read .*folder.jsonl: Is a directory"):
        list(read_rows(tmp_path / "folder.jsonl"))
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2}\n')

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.truncate", refuse)
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    for change in (lambda file: file.resume_at(1), JsonLines.begin_anew):
        with pytest.raises(SdpoError, match=r"cannot write .*metrics.jsonl.*: Read-only"):
            change(JsonLines(path))
    assert len(list(read_rows(path))) == 2


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\nnonsense\n{"step":3}\n')
    with pytest.raises(SdpoError, match=r"metrics.jsonl, line 2"):
        list(read_rows(path))


def test_lone_surrogates_are_written_as_escapes():
    assert json.loads(dumps({"x": "\udc80é"}).encode()) == {"x": "\udc80é"}


def test_a_missing_service_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sdpo\[wandb\]'"):
        check_installed(["wandb"])
    with pytest.raises(ConfigError, match="unknown 'comet'"):
        check_installed(["comet"])


@pytest.mark.slow
def test_tensorboard_receives_and_purges_on_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = LogConfig(backends=("tensorboard",), name="first", tags=("a", "b"))
    with MetricsWriter(tmp_path, log) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss/total": float(step), "nan": math.nan}, [alert(step)])
        writer.write_rollouts(3, [{"task": "t", "index": 0, "text": "# x\ny", "feedback": None}])
    with MetricsWriter(tmp_path, log) as writer:
        writer.resume_at(1)
        writer.write(2, {"loss/total": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(1, 1.0), (2, 20.0)]
    (about, *_) = events.Tensors("about/text_summary")
    assert about.tensor_proto.string_val == [b"project sdpo, run first, tags a, b"]


class Service:
    """W&B or trackio as far as opening a run goes: notes what `init` is called with."""

    def __init__(self):
        self.calls = []

    def init(self, **options):
        self.calls.append(options)
        return mock.MagicMock()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_has_its_project_name_and_tags_in_a_service(name, tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    logs = [
        LogConfig(backends=(name,)),
        LogConfig(backends=(name,), project="mine", name="first", tags=("a", "b")),
    ]
    for log in logs:
        with MetricsWriter(tmp_path / "run", log, {"log": {"tags": list(log.tags)}}) as writer:
            writer.write(1, {"loss/total": 1.0})
    plain, named = service.calls
    assert (plain["project"], plain["name"]) == ("sdpo", "run")
    assert (named["project"], named["name"]) == ("mine", "first")
    # trackio has no tags of its own and shows the settings.
    assert named["config"]["log"]["tags"] == ["a", "b"]
    assert named.get("tags") == (["a", "b"] if name == "wandb" else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_take_rows_tables_and_alerts_offline(name, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    log = LogConfig(backends=(name,), tags=("a",))
    with MetricsWriter(tmp_path / "run", log, {"seed": 0}) as writer:
        writer.write(1, {"loss/total": 1.0}, [alert(1)])
        writer.write_rollouts(1, [{"task": "t", "index": 0, "text": "x", "feedback": None}])
    with MetricsWriter(tmp_path / "run", log, {"seed": 0}) as writer:
        writer.resume_at(0)
        writer.write(1, {"loss/total": 1.0})
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 1


def test_a_block_of_zeros_after_a_power_loss_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\0" * 4096 + b'\n{"step": 3}\n')
    with pytest.raises(SdpoError, match=r"metrics.jsonl, line 2: .*zero bytes"):
        JsonLines(path).resume_at(3)
    with pytest.raises(SdpoError, match=r"metrics.jsonl, line 2: .*zero bytes"):
        list(read_rows(path))
