"""The server of the live page, without a browser; test_report_browser.py has one."""

import gzip
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from synthetic_run import make_run

from sdpo.cli import main
from sdpo.errors import ConfigError
from sdpo.report import watch
from sdpo.report.watch import ReportServer


@contextmanager
def serving(*run_dirs):
    with ReportServer(run_dirs, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server, path, **headers):
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.getheader("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return answer.status, answer, body


def append(run, name, row):
    with (run / name).open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", steps=3)


def test_it_listens_on_this_machine_only(run):
    with serving(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/"


def test_the_page_may_ask_its_own_server_and_nobody_else(run):
    with serving(run) as server:
        status, answer, body = get(server, "/")
    page = body.decode()
    assert status == 200
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in page
    assert "connect-src 'self';" in page
    assert '<body data-live="true">' in page
    assert '<script type="text/plain" id="data"></script>' in page


def test_data_come_once_and_again_when_a_file_has_grown(run, monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 0.0)
    with serving(run) as server:
        status, answer, body = get(server, "/data")
        assert status == 200
        assert json.loads(body)["runs"][0]["metrics"]["step"] == [0, 1, 2, 3]
        version = answer.getheader("ETag")
        assert get(server, "/data", If_None_Match=version)[0] == 304
        append(run, "metrics.jsonl", {"step": 4, "train/solved": 0.5})
        status, answer, body = get(server, "/data", If_None_Match=version)
        assert status == 200
        assert answer.getheader("ETag") != version
        assert json.loads(body)["runs"][0]["metrics"]["step"] == [0, 1, 2, 3, 4]


def test_a_large_run_is_not_read_at_every_question(run, monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 1e9)
    with serving(run) as server:
        version = get(server, "/data")[1].getheader("ETag")
        append(run, "metrics.jsonl", {"step": 4, "train/solved": 0.5})
        assert get(server, "/data", If_None_Match=version)[0] == 304


def test_a_run_may_be_followed_before_its_first_step(run, monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 0.0)
    kept = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    with serving(run) as server:
        assert json.loads(get(server, "/data")[2])["waiting"]
        (run / "metrics.jsonl").write_text(kept)
        found = json.loads(get(server, "/data")[2])
        assert not found["waiting"]
        assert len(found["runs"]) == 1


def test_a_damaged_file_is_named_and_the_server_goes_on(run, monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 0.0)
    with serving(run) as server:
        whole = (run / "alerts.jsonl").read_bytes() if (run / "alerts.jsonl").exists() else b""
        (run / "alerts.jsonl").write_bytes(b"\0\0\n")
        status, _, body = get(server, "/data")
        assert status == 500
        assert "alerts.jsonl, line 1: 2 zero bytes instead of a row" in json.loads(body)["error"]
        (run / "alerts.jsonl").write_bytes(whole)
        assert get(server, "/data")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8600", "127.0.0.1.evil.example"])
def test_a_foreign_name_that_points_here_gets_nothing(run, host):
    """DNS rebinding: a page of somebody else's must not read a run through the user's browser."""
    with serving(run) as server:
        for path in ("/", "/data"):
            status, _, body = get(server, path, Host=host)
            assert status == 403
            assert b"clamp" not in body
        assert get(server, "/data", Host="localhost:9000")[0] == 200


@pytest.mark.parametrize("path", ["/../config.json", "/config.json", "/data/.."])
def test_nothing_but_the_page_and_its_data_is_served(run, path):
    with serving(run) as server:
        assert get(server, path)[0] == 404


def test_a_taken_port_is_said_and_a_folder_without_a_run_too(run, tmp_path):
    with serving(run) as server, pytest.raises(ConfigError, match="--port = "):
        ReportServer([run], port=server.server_address[1])
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl"):
        ReportServer([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="at least one"):
        watch.watch([], say=print)


def test_the_usual_port_may_be_busy(run):
    with serving(run) as first, ReportServer([run]) as second, ReportServer([run]) as third:
        assert len({one.server_address[1] for one in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "1"], "--port = 1 belongs to --watch"),
        (["--watch", "--out", "x"], "--out = 'x'"),
    ],
)
def test_options_that_do_not_go_together(run, options, said):
    found = CliRunner().invoke(main, ["report", str(run), *options])
    assert found.exit_code == 2
    assert said in found.output


def test_the_command_says_its_address_and_ends_with_ctrl_c(run):
    command = [sys.executable, "-m", "sdpo", "report", str(run), "--watch", "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        # Background jobs of a shell ignore SIGINT and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        assert str(run) in line
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == "no longer following\n"
    finally:
        process.kill()
        process.stdout.close()
    shutil.rmtree(run)
