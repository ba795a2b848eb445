"""The scripts of examples/ run, with a tiny model and a stub of the service that one asks."""

from __future__ import annotations

import http.server
import json
import runpy
import sys
import threading
from pathlib import Path

import pytest
from pages import Reader

from sdpo.rollouts.record import read_rollouts

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start(reader_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Reader(reader_model, monkeypatch)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_own_environment(start, capsys):
    start("own_env.py")
    assert "solved after 1 steps" in capsys.readouterr().out


def test_tasks_from_a_csv_file(start, tmp_path, capsys):
    lines = ["question,answer", *(f'"What is {n} + 1? A number, alone.",{n + 1}' for n in range(7))]
    (tmp_path / "questions.csv").write_text("\n".join(lines), encoding="utf-8")
    start("csv_tasks.py", "questions.csv")
    assert "runs/csv" in capsys.readouterr().out


def test_three_seeds_compared(start, capsys):
    start("compare_seeds.py")
    assert "srpo - grpo" in capsys.readouterr().out


class Critic(http.server.BaseHTTPRequestHandler):
    """Finds every second attempt good, and is busy at its first call."""

    calls = 0

    def do_POST(self):
        Critic.calls += 1
        size = int(self.headers["Content-Length"])
        prompt = json.loads(self.rfile.read(size))["messages"][0]["content"]
        assert "<answer>" in prompt
        self.send_response(503 if Critic.calls == 1 else 200)
        self.end_headers()
        said = json.dumps({"solved": Critic.calls % 2 == 0, "feedback": "Name the base case."})
        self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def log_message(self, *_):
        pass


def test_a_judge_that_asks_a_service(start, monkeypatch, capsys):
    Critic.calls = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Critic) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        start("async_judge.py")
        server.shutdown()
    assert Critic.calls > 4
    said = [row["feedback"] for row in read_rollouts(Path("runs/async-judge"))]
    assert "Name the base case." in said
