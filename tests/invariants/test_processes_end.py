"""Processes that end, machines that share nothing: what `torchrun` is told, and what goes on."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from under_torchrun import torchrun

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

pytestmark = pytest.mark.timeout(1800)
"""Every test starts several interpreters, on machines that may be busy."""

ENV = """
import os, signal
from pathlib import Path
import sdpo

class World:
    def load(self, split):
        return [
            sdpo.Task(id=f"t{n}", messages=({"role": "user", "content": f"say {n}"},))
            for n in range(4)
        ]

    def judge(self, task, rollout):
        fault = os.environ.get("FAULT")
        if fault and os.environ["RANK"] == "1" and rollout.policy_version == 3:
            if fault == "raises":
                raise ValueError("a bug of the judge's")
            if not Path(fault).exists():
                Path(fault).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        hits = sum(character in "abcdefgh" for character in rollout.text)
        return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback="too few letters")
"""
RECIPE = """
steps = 4
[model]
name = "{folder}/model"
device = "cpu"
dtype = "float32"
[env]
type = "custom"
path = "{folder}/world.py:World"
[rollout]
tasks_per_step = 2
group_size = 2
max_completion_tokens = 4
max_prompt_tokens = 200
[eval]
samples = 1
every = 2
[optim]
lr = 1e-3
[checkpoint]
every = 1
keep = 9
"""
LOST = "another of the 2 processes has ended"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "world.py").write_text(ENV)
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.toml"


def sdpo_with(command: str, *arguments: object, fault: object = "", options=None):
    """`torchrun -m sdpo COMMAND` to its end: exit status, output and what is said on its side."""
    named = {} if options is None else {"options": options}
    process = torchrun(
        "-m", "sdpo", command, *arguments, environment={"FAULT": str(fault)}, **named
    )
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def rows(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_rows(run / "metrics.jsonl")
    ]


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


@dataclass(frozen=True)
class Network:
    """How the first of two machines is reached, and for each the command that runs on it and the
    name of its interface."""

    address: str = "127.0.0.1"
    within: tuple[tuple[str, ...], ...] = ((), ())
    interfaces: tuple[str, ...] = ("lo", "lo")


@pytest.fixture
def two_networks() -> Iterator[Network]:
    """Two network namespaces joined by a cable."""
    names = [f"sdpo-{os.getpid()}-{node}" for node in range(2)]
    cable = [f"sdpo{os.getpid() % 10**7}{end}" for end in "ab"]

    def ip(*words: str) -> None:
        try:
            subprocess.run(["ip", *words], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for node, (name, end) in enumerate(zip(names, cable, strict=True)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.251.0.{node + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        within = tuple(("ip", "netns", "exec", name) for name in names)
        yield Network("10.251.0.1", within, tuple(cable))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Nodes:
    """Two machines, as far as `torchrun` can tell: an agent each, with one process."""

    def __init__(
        self,
        recipe: Path,
        folders: tuple[Path, Path],
        *,
        fault: object = "",
        network: Network = Network(),
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.agents = [
            torchrun(
                "-m", "sdpo", "train", recipe, "run=run",
                options=(
                    "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1",
                    f"--master-addr={network.address}", f"--master-port={port}",
                ),
                environment={"FAULT": str(fault), "GLOO_SOCKET_IFNAME": network.interfaces[node]},
                cwd=folder,
                within=network.within[node],
            )
            for node, folder in enumerate(folders)
        ]  # fmt: skip

    def ends(self) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of each."""
        found = []
        for agent in self.agents:
            out, err = agent.communicate(timeout=900)
            found.append((agent.returncode, out, err))
        return found


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    """A run of two machines that share a folder."""
    folder = tmp_path_factory.mktemp("nodes")
    for status, _, err in Nodes(recipe, (folder, folder)).ends():
        assert status == 0, err[-3000:]
    return folder / "run"


@pytest.mark.slow
def test_two_machines_train_one_run(undisturbed):
    assert [row["step"] for row in rows(undisturbed)] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_two_networks_train_the_same_run(undisturbed, recipe, tmp_path, two_networks):
    for status, _, err in Nodes(recipe, (tmp_path, tmp_path), network=two_networks).ends():
        assert status == 0, err[-3000:]
    assert rows(tmp_path / "run") == rows(undisturbed)


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on_by_itself(undisturbed, recipe, tmp_path):
    """`torchrun --max-restarts=1`, and kill -9 in the middle of the fourth step."""
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    killed = tmp_path / "killed"
    status, out, err = sdpo_with(
        "train", recipe, f"run={tmp_path}/run", fault=killed, options=options
    )
    assert killed.exists()
    assert status == 0, err[-3000:]
    assert "resuming" in out
    assert len([line for line in said(err) if LOST in line]) <= 1
    assert rows(tmp_path / "run") == rows(undisturbed)
    weights = [
        run / "checkpoints" / "step-4" / "model.safetensors"
        for run in (tmp_path / "run", undisturbed)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_machines_without_a_folder_in_common_are_refused(recipe, tmp_path):
    """A resume waited for ever: one machine went on after step 2, the other began."""
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir()
    ends = Nodes(recipe, folders).ends()
    assert [status for status, _, _ in ends] == [1, 1]
    lines = {line for _, _, err in ends for line in said(err)}
    (line,) = lines
    assert "run = 'run': process 1" in line
    assert f"(in {folders[1]})" in line
    assert "give a folder that all machines share" in line
    assert not any((folder / "run").exists() for folder in folders)


@pytest.mark.slow
def test_a_machine_that_is_lost_ends_the_run_with_one_sentence(recipe, tmp_path):
    ends = Nodes(recipe, (tmp_path, tmp_path), fault=tmp_path / "killed").ends()
    assert [status for status, _, _ in ends] == [1, 1]
    (line,) = [line for _, _, err in ends for line in said(err)]
    assert LOST in line
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_results_and_errors_are_printed_once(recipe, tmp_path):
    out = tmp_path / "counts.jsonl"
    status, said_out, err = sdpo_with("eval", recipe, "--out", out)
    assert status == 0, err[-3000:]
    assert said_out.count("mean@1") == 1
    assert len(out.read_text().splitlines()) == 4
    status, _, err = sdpo_with("train", recipe, f"run={tmp_path}/run", fault="raises")
    assert status == 1
    (line,) = said(err)
    assert "a bug of the judge's" in line
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_command_that_cannot_be_shared_says_so(tmp_path):
    status, _, err = sdpo_with("report", tmp_path)
    assert status == 1
    (line,) = said(err)
    assert "`sdpo report` cannot be shared by the 2 processes" in line
