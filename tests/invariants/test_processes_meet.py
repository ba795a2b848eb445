"""Processes that torchrun starts again meet one another, whatever their forerunners left behind.

The agent's store outlives its processes, with the addresses of those that died in it: who looks
before the other has spoken would wait for a dead process (for `PATIENCE`, a day)."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

MEET = """
import os, sys, time
from sdpo.parallel import start_parallel
time.sleep(float(sys.argv[1]))
parallel = start_parallel()
print(parallel.rank, parallel.sum([1.0])[0], flush=True)
os._exit(0)  # as if killed: nothing is cleaned up
"""


@pytest.fixture
def store():
    return dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10)
    )


def start(store, rank, *, late=0.0, size=2):
    return subprocess.Popen(
        [sys.executable, "-c", MEET, str(late)],
        env=os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def said(processes):
    try:
        return [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("late", [0, 1])
def test_the_second_start_does_not_wait_for_the_dead_of_the_first(store, late):
    for delays in ([0.0, 0.0], [3.0 * (rank == late) for rank in (0, 1)]):
        processes = [start(store, rank, late=delays[rank]) for rank in (0, 1)]
        assert said(processes) == ["0 2.0\n", "1 2.0\n"]


def test_a_start_of_which_one_never_came_is_forgotten(store):
    for rank in (0, 1):
        alone = start(store, rank)
        with pytest.raises(subprocess.TimeoutExpired):
            alone.communicate(timeout=5)
        alone.kill()
        alone.communicate()
    assert said([start(store, rank) for rank in (0, 1)]) == ["0 2.0\n", "1 2.0\n"]
