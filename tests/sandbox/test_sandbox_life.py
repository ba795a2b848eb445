"""Opening, refusing, dying, closing: the judge's own side fails loudly or not at all."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sdpo
from sdpo.errors import SandboxError
from sdpo.sandbox import Limits, Program, Sandbox, jail, local, open_sandbox, worker
from sdpo.sandbox.local import LocalSandbox
from sdpo.sandbox.selftest import self_test
from sdpo.sandbox.worker import Settings, ZygoteDiedError

ADD = Program(source="def f(x):\n    return x + 1", mode="function", entry_point="f")
LIMITS = Limits(cpu_s=1.0, memory_mb=256)
TWENTY = [[n] for n in range(20)]
SYSTEM_PYTHON = "/usr/bin/python3"


def values(sandbox: Sandbox, inputs: list) -> list:
    return [outcome.value for outcome in sandbox.run(ADD, inputs, LIMITS)]


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = {int(child) for child in (task / "children").read_text().split()}
        except OSError:
            continue
        for child in children:
            found |= {child, *descendants(child)}
    return found


def zygote_pids(sandbox: LocalSandbox) -> set[int]:
    return {zygote.pid for zygote in sandbox._open}


def test_the_level_is_named(sandbox: Sandbox) -> None:
    assert "seccomp" in sandbox.level


def test_none_must_be_asked_for_and_warns() -> None:
    with pytest.warns(UserWarning, match="unprotected"):
        sandbox = open_sandbox("none", width=1)
    with sandbox:
        assert sandbox.level == "none"
        assert values(sandbox, [[1]]) == [2]


def test_without_isolation_memory_and_time_are_limited_and_orphans_end() -> None:
    source = (
        "import os,time\ndef f(x):\n    if x == 0: return len(bytearray(1 << 30))\n"
        "    if x == 1:\n        if os.fork() == 0:\n            os.setsid(); time.sleep(600)\n"
        "        return 1\n    while True: pass"
    )
    program = Program(source=source, mode="function", entry_point="f")
    with LocalSandbox(Settings(jailed=False, namespaces=False, landlock=False), 1) as sandbox:
        outcomes = sandbox.run(program, [[0], [1], [2]], Limits(cpu_s=0.2, memory_mb=256))
        assert [each.status for each in outcomes] == ["memory_limit", "value", "time_limit"]
        (zygote,) = zygote_pids(sandbox)
        assert descendants(zygote) == set()


def test_the_self_test_finds_what_does_not_hold() -> None:
    with (
        LocalSandbox(Settings(jailed=False, namespaces=False, landlock=False), 1) as sandbox,
        pytest.raises(SandboxError, match=r"does not hold here.*'none'"),
    ):
        self_test(sandbox)


def test_a_failing_layer_is_named_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zygote that cannot lock down never becomes a sandbox; the message says what to do."""
    monkeypatch.setattr(worker.Zygote, "_command", staticmethod(_broken_command))
    with pytest.raises(SandboxError, match=r"seccomp: not today.*env\.sandbox = 'none'"):
        open_sandbox("auto", width=1)


def _broken_command() -> list[str]:
    reply = '{"error": "JailError: seccomp: not today"}'
    code = f"import socket,sys; socket.socket(fileno=int(sys.argv[1])).send({reply.encode()!r})"
    return [sys.executable, "-c", code]


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="darwin"):
        open_sandbox("auto")


def test_a_module_to_preload_that_does_not_exist() -> None:
    with pytest.raises(SandboxError, match="no_such_module"):
        open_sandbox("auto", preload=["no_such_module"])


def test_a_preloaded_package_is_usable_and_others_are_not() -> None:
    source = "def f():\n    import numpy\n    return numpy.fft.fft(numpy.ones(4)).real.tolist()"
    program = Program(source=source, mode="function", entry_point="f")
    with open_sandbox("auto", width=1, preload=["numpy"]) as sandbox:
        (outcome,) = sandbox.run(program, [[]], LIMITS)
        assert outcome.value == [4.0, 0.0, 0.0, 0.0]
        torch = Program(source="def f(): import torch", mode="function", entry_point="f")
        (outcome,) = sandbox.run(torch, [[]], LIMITS)
        assert outcome.status == "exception"


def test_a_closed_sandbox_refuses() -> None:
    sandbox = open_sandbox("auto", width=1)
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(ADD, [[1]], LIMITS)


def test_closing_ends_every_process() -> None:
    before = descendants(os.getpid())
    sandbox = open_sandbox("auto", width=2)
    assert descendants(os.getpid()) > before
    sandbox.close()
    assert descendants(os.getpid()) == before


@pytest.mark.parametrize("is_killed", [False, True])
def test_no_scratch_folder_outlives_its_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = "import os\ndef f():\n open('left','w').close()\n return os.getcwd()"
    program = Program(source=source, mode="function", entry_point="f")
    with LocalSandbox(Settings(jailed=True, namespaces=False, landlock=True), 1) as sandbox:
        (outcome,) = sandbox.run(program, [[]], LIMITS)
        (folder,) = tmp_path.iterdir()
        assert outcome.value == str(folder)
        assert list(folder.iterdir()) == []
        if is_killed:
            (folder / "left").touch()
            for pid in zygote_pids(sandbox):
                os.kill(pid, signal.SIGKILL)
            assert values(sandbox, TWENTY) == list(range(1, 21))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_zygote_loses_nothing() -> None:
    with open_sandbox("auto", width=2) as sandbox, ThreadPoolExecutor(2) as pool:
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.5):
                for pid in list(zygote_pids(sandbox))[:1]:
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            done = list(pool.map(lambda _: values(sandbox, TWENTY), range(80)))
        finally:
            stop.set()
            killer.join()
        assert done == [list(range(1, 21))] * 80


def test_a_killed_process_one_of_the_namespace_loses_nothing() -> None:
    with open_sandbox("auto", width=1) as sandbox:
        values(sandbox, [[1]])
        (outer,) = zygote_pids(sandbox)
        for inner in descendants(outer):
            os.kill(inner, signal.SIGKILL)
        assert values(sandbox, TWENTY) == list(range(1, 21))


def test_zygotes_that_keep_dying_are_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZygoteDiedError

    with open_sandbox("auto", width=1) as sandbox:
        monkeypatch.setattr(local._Run, "outcomes", fail)
        with pytest.raises(SandboxError, match="died 5 times"):
            sandbox.run(ADD, [[1]], LIMITS)
        monkeypatch.undo()
        assert values(sandbox, [[1]]) == [2]


def test_an_interrupted_caller_leaves_a_usable_sandbox() -> None:
    def interrupt(index: int, outcome: object) -> bool:
        raise KeyboardInterrupt

    with open_sandbox("auto", width=1) as sandbox:
        with pytest.raises(KeyboardInterrupt):
            sandbox.run(ADD, TWENTY, LIMITS, should_stop=interrupt)
        assert values(sandbox, [[1]]) == [2]
        (zygote,) = zygote_pids(sandbox)
        assert len(descendants(zygote)) <= 1  # process 1 of its namespace


def test_processes_end_with_a_killed_judge(tmp_path: Path) -> None:
    script = tmp_path / "judge.py"
    script.write_text(
        "import os, threading, time\nfrom sdpo.sandbox import *\n"
        "s = open_sandbox('auto', width=1)\n"
        "p = Program(source='def f():\\n while True: pass', mode='function', entry_point='f')\n"
        "threading.Thread(target=s.run, args=(p, [[]], Limits(cpu_s=60)), daemon=True).start()\n"
        "time.sleep(0.5); print('ready', flush=True); time.sleep(60)\n"
    )
    source = str(Path(sdpo.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, str(script)], env={"PYTHONPATH": source}, stdout=subprocess.PIPE
    ) as judge:
        assert judge.stdout is not None
        assert judge.stdout.readline() == b"ready\n"
        family = descendants(judge.pid)
        assert len(family) >= 2
        judge.kill()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < deadline, "a process outlived the judge"
        time.sleep(0.02)


BUSY = "while True: pass"


@pytest.mark.slow
def test_a_correct_program_is_accepted_on_a_busy_machine() -> None:
    source = (
        "from time import process_time as now\ndef f(x):\n    t = now()\n"
        "    while now() < t + 0.25: pass\n    return x"
    )
    program = Program(source=source, mode="function", entry_point="f")
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        with open_sandbox("auto", width=2) as sandbox, ThreadPoolExecutor(2) as pool:
            for outcomes in pool.map(lambda _: sandbox.run(program, TWENTY, LIMITS), range(4)):
                assert [outcome.value for outcome in outcomes] == list(range(20))
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


@pytest.mark.slow
def test_ten_thousand_programs_leak_nothing() -> None:
    sources = [
        "def f(x):\n    return x + 1",
        "import os\ndef f(x):\n    os._exit(1)",
        "def f(x):\n    return [x] * 1000",
        "def f(x):\n    raise ValueError(x)",
    ]
    programs = [Program(source=each, mode="function", entry_point="f") for each in sources]

    def judge(number: int) -> None:
        sandbox.run(programs[number % 4], [[number], [1]], LIMITS)

    def measure() -> dict[str, int]:
        gc.collect()
        family = sorted(descendants(os.getpid()))
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "processes": len(family),
            "their descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family),
            "threads": threading.active_count(),
            "files": len(os.listdir("/dev/shm")) + len(os.listdir("/tmp")),
            "kilobytes": resident_kb(os.getpid()),
            "their kilobytes": sum(map(resident_kb, family)),
        }

    with open_sandbox("auto", width=2) as sandbox, ThreadPoolExecutor(2) as pool:
        for start in range(0, 10_500, 500):  # few futures at a time: they take memory too
            list(pool.map(judge, range(start, start + 500)))
            if start == 0:
                before = measure()
        after = measure()
    grown = {what: after[what] - before[what] for what in before}
    assert grown.pop("kilobytes") < 4096
    assert grown.pop("their kilobytes") < 4096
    # Other programs of the machine use the same folder of temporary files.
    assert grown.pop("files") < 100
    assert set(grown.values()) == {0}, grown


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_the_suite_holds_for_an_ordinary_user(tmp_path: Path) -> None:
    """Honest and hostile programs again as `nobody`, with the system's Python."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"{SYSTEM_PYTHON} is missing, and the interpreter of this suite is root's")
    version = [SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(version, check=False).returncode:
        pytest.skip(f"{SYSTEM_PYTHON} is older than 3.11")
    place = Path("/var/tmp") / f"sdpo-nobody-{os.getpid()}"
    try:
        shutil.copytree(Path(sdpo.__file__).parent / "sandbox", place / "sdpo" / "sandbox")
        for name in ("errors.py", "machine.py"):
            shutil.copy(Path(sdpo.__file__).parent / name, place / "sdpo")
        (place / "sdpo" / "__init__.py").write_text("")
        for name in ("hostile_programs.py", "honest_tricky.py", "as_ordinary_user.py"):
            shutil.copy(Path(__file__).with_name(name), place)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        done = subprocess.run(
            [SYSTEM_PYTHON, "as_ordinary_user.py"],
            cwd=place,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.splitlines()[-1].startswith("all right"), done.stdout
    finally:
        shutil.rmtree(place)


CALLS = {
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "landlock_create_ruleset": (444, 444),
}
"""Numbers on x86_64 and aarch64."""


def opened_without(name: str) -> str:
    column, _ = jail.own_machine()
    script = Path(__file__).with_name("lacking_kernel.py")
    done = subprocess.run(
        [sys.executable, str(script), str(CALLS[name][column])],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["memfd_create", "pidfd_open", "pidfd_send_signal"])
def test_a_kernel_without_a_call_is_told_which(name: str) -> None:
    """Before: "the judge's worker died 5 times on one program; see dmesg", or ENOSYS."""
    said = opened_without(name)
    assert said.startswith("SandboxError: ")
    assert name in said
    assert "Linux 5.3" in said


def test_a_kernel_without_landlock_judges_without_file_access() -> None:
    level, _, value = opened_without("landlock_create_ruleset").rpartition(" ")
    assert "no file access" in level
    assert value == "3"
