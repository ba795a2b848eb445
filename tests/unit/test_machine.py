"""Cores, devices and versions as they are asked for in one place."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import sdpo
from sdpo import machine
from sdpo.cli import main

VERSION = torch.__version__.partition("+")[0]
"""Without the build, which an installed package's metadata leaves out."""


def files(monkeypatch, texts):
    monkeypatch.setattr(machine, "system_file", lambda path: texts.get(path, ""))


@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 8),
    ],
)
def test_usable_cores_respect_a_containers_quota(monkeypatch, texts, cores):
    files(monkeypatch, texts)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.usable_cores() == cores


def test_usable_cores_without_affinity(monkeypatch):
    files(monkeypatch, {})
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


def test_torch_is_described_without_being_imported():
    assert machine.torch_cuda() == torch.version.cuda
    assert machine.library_version("torch").startswith(VERSION)
    assert machine.library_version("no-such-library") is None


class Driver:
    """Stands for NVIDIA's library: two devices, or one that cannot start."""

    def __init__(self, error=0):
        self.error = error

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = f"NVIDIA Test {device.value}".encode()
        return 0


def test_gpus_are_named_by_the_driver(monkeypatch):
    monkeypatch.setattr(machine, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert machine.gpu_names() == ["NVIDIA Test 0", "NVIDIA Test 1"]
    assert machine.describe_machine()["device"].startswith("NVIDIA Test 0, NVIDIA Test 1, ")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(error=100))
    assert machine.gpu_names() == []


def test_a_gpu_is_not_named_where_torch_cannot_use_it(monkeypatch):
    monkeypatch.setattr(machine, "torch_cuda", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert machine.describe_machine()["device"].startswith("cpu, ")


def test_version_says_what_a_bug_report_needs():
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[0] == f"sdpo {sdpo.__version__}"
    facts = dict(line.split(maxsplit=1) for line in lines[1:])
    extras = [name for name in machine._EXTRAS if machine.library_version(name)]
    assert list(facts) == ["python", "torch", "transformers", *extras, "device", "sandbox"]
    assert facts["transformers"].endswith("(supported: >=5.17,<6)")
    assert facts["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert facts["torch"].startswith(VERSION)


def test_version_loads_no_torch():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from sdpo.cli import main\n"
        "assert CliRunner().invoke(main, ['--version']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == "[]"


def test_redirected_output_ended_with_an_error_of_the_locales_encoding(tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text('run = "runs/é"\n', encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "sdpo", "config", "show", str(recipe)],
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert 'run = "runs/é"'.encode() in done.stdout


@pytest.mark.parametrize(
    ("said", "imports", "spins"),
    [
        ({}, "import sdpo", "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "import sdpo", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "import sdpo", "None"),
        ({}, "import torch, sdpo", "None"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_said_how_they_wait(said, imports, spins):
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = f"{imports}; import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=kept | said, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == spins
