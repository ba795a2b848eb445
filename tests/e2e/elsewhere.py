"""Run by test_other_systems.py: a process that pretends to be on macOS or Windows uses `sdpo`.

    python elsewhere.py darwin|win32 FOLDER

Libraries are imported first: they have builds of their own for those systems. What such a system
lacks is then taken away, and the encoding that a file has by default is an error in our code.
Prints `ok` when all went as it should.
"""

import importlib
import os
import pkgutil
import signal
import sys
import warnings
from pathlib import Path

import click.testing
import matplotlib.pyplot
import peft  # noqa: TID253
import plotly.io
import pytest
import rich.live
import torch.distributed.elastic.multiprocessing
import torch.distributed.fsdp
import transformers

LIBRARIES = (
    click.testing,
    matplotlib.pyplot,
    peft,
    plotly.io,
    rich.live,
    torch,
    transformers.LlamaForCausalLM,
)

LACKS = {
    "darwin": {
        "os": (
            "sched_getaffinity", "sched_setaffinity", "memfd_create", "pidfd_open", "pipe2",
            "O_PATH", "posix_fadvise",
        ),
        "signal": ("pidfd_send_signal", "SIGPWR"),
        "modules": ("_ctypes_test",),
    },
    "win32": {
        "os": (
            "sched_getaffinity", "sched_setaffinity", "memfd_create", "pidfd_open", "pipe2",
            "O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "fork", "forkpty", "getuid",
            "geteuid", "getgid", "getppid", "killpg", "setsid", "sysconf", "getloadavg", "wait",
            "wait4", "pread", "pwrite", "mkfifo", "uname", "posix_fadvise",
        ),
        "signal": ("pidfd_send_signal", "SIGKILL", "SIGXCPU", "SIGHUP", "SIGUSR1", "SIGALRM"),
        "modules": ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"),
    },
}  # fmt: skip
FOR_THE_JAIL = {"jail", "landlock", "namespaces", "zygote", "runner"}
"""Scripts of the jailed processes; no other module imports them."""


def become(platform):
    """Take away what `platform` lacks."""
    sys.platform = platform
    for name in LACKS[platform]["os"]:
        delattr(os, name)
    # Python 3.13's own count of cores rests on the affinity; elsewhere it is the plain one.
    os.process_cpu_count = os.cpu_count
    for name in LACKS[platform]["signal"]:
        delattr(signal, name)
    for name in LACKS[platform]["modules"]:
        sys.modules[name] = None
    warnings.filterwarnings("error", category=EncodingWarning, module=r"sdpo\.")


def import_everything():
    import sdpo

    for module in pkgutil.walk_packages(sdpo.__path__, "sdpo."):
        if module.name.rpartition(".")[2] not in FOR_THE_JAIL | {"__main__"}:
            importlib.import_module(module.name)


def train_own_environment(folder):
    import sdpo
    from sdpo.testing import byte_tokenizer, tiny_model

    def judge(task, rollout):
        said = None if "e" in rollout.text else "Kein \u201ee\u201c: \u00fcberpr\u00fcfe es."
        return sdpo.Verdict(reward=float(said is None), solved=said is None, feedback=said)

    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    result = sdpo.train(
        f"run={folder / 'run'}", f"model.name={folder / 'model'}", "model.dtype=float32", "steps=1",
        "rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.max_completion_tokens=4",
        "rollout.max_prompt_tokens=200",
        env=sdpo.env([{"id": f"\u00e4{i}", "prompt": f"Sag \u00e9 {i}"} for i in range(2)], judge),
    )  # fmt: skip
    assert result.finished
    from sdpo.report import write_report

    write_report([folder / "run"], None)


def refuse_code_tasks():
    from click.testing import CliRunner

    from sdpo.cli import main
    from sdpo.config import schema
    from sdpo.envs.opening import open_env
    from sdpo.errors import SandboxError

    with pytest.raises(SandboxError, match=rf"this is {sys.platform}.*docker build"):
        open_env(schema.CodeEnvConfig(tasks="python-basics"))
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.exit_code == 0, shown.output
    assert "sandbox       unavailable: programs are judged in Linux" in shown.output, shown.output
    assert CliRunner().invoke(main, ["config", "list"]).exit_code == 0


if __name__ == "__main__":
    become(sys.argv[1])
    import_everything()
    train_own_environment(Path(sys.argv[2]))
    refuse_code_tasks()
    sys.stdout.write("ok\n")
