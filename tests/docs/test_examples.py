"""The scripts of examples/ run, with a tiny model and a stub of the service that one asks."""

from __future__ import annotations

import http.server
import json
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from pages import Reader

from sdpo.config.load import load_config
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


def test_tasks_from_a_data_set_of_the_hub(start, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(9)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "sums.parquet"))
    start("hf_dataset.py", "sums.parquet")
    assert "runs/hf-dataset" in capsys.readouterr().out


def test_a_weighting_of_ones_own_then_plain_transformers(start, capsys):
    start("own_weighting.py")
    assert "answer:" in capsys.readouterr().out
    recorded = json.loads(Path("runs/own-weighting/config.json").read_text(encoding="utf-8"))
    assert "own_weighting.py" in json.dumps(recorded["custom"])
    written = {file.name for file in Path("exported").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= written


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


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_a_job_that_slurm_stops_goes_back_into_the_queue(tmp_path):
    """With stand-ins for SLURM's commands: torchrun ends on the signal, then the job is requeued
    with the tasks already gone."""
    said = tmp_path / "said"
    stubs = {
        "torchrun": f"trap 'echo saved >> {said}; exit 143' TERM; echo $$ > {tmp_path}/pid\n"
        f'echo torchrun "$@" >> {said}; while :; do sleep 0.05; done',
        "srun": 'shift; exec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo node1; else echo "$1" >> {said}; fi',
        "scancel": f"kill -TERM $(cat {tmp_path}/pid)",
    }
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = subprocess.Popen(
        ["bash", EXAMPLES / "slurm.sh", "paper-lcb-sdpo", "steps=2"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin", "SDPO_VENV": str(tmp_path / "venv"),
            "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]",
            "HOME": str(tmp_path),
        },
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not said.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 0
    first, *rest = said.read_text().splitlines()
    assert first.endswith("-m sdpo train paper-lcb-sdpo steps=2")
    assert "--nnodes=2 --nproc-per-node=8" in first
    assert rest == ["saved", "requeue"]


def test_a_manifest_starts_the_recipe_that_it_names():
    """Read, not applied: the documents parse and the command's recipe and keys exist."""
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    words = shlex.split(container["args"][0])
    config = load_config(words[words.index("train") + 1 :])
    assert config.run.startswith(container["workingDir"])
    assert f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}" in words
    assert pod["subdomain"] == service["metadata"]["name"]
    grace = next(int(w.partition("=")[2]) for w in words if w.startswith("--shutdown-timeout"))
    assert grace < pod["terminationGracePeriodSeconds"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
