"""Shared settings of the suite: two threads at most, no network, real data only by path."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

settings.register_profile("sdpo", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sdpo")

ROOT = Path(__file__).parent.parent

LONG = frozenset(
    [
        "config/test_every_key.py",
        "docs/test_code_blocks.py",
        "docs/test_examples.py",
        "e2e/test_background_checkpoints.py",
        "e2e/test_collapse.py",
        "e2e/test_demo.py",
        "e2e/test_discovery.py",
        "e2e/test_doors.py",
        "e2e/test_episode_runs.py",
        "e2e/test_export.py",
        "e2e/test_failing_engine.py",
        "e2e/test_failing_judge.py",
        "e2e/test_follow_ups.py",
        "e2e/test_init_env.py",
        "e2e/test_notebook.py",
        "e2e/test_other_systems.py",
        "e2e/test_signs_of_life.py",
        "e2e/test_toy_learning.py",
        "envs/test_languages.py",
        "families/test_families.py",
        "invariants/test_joint.py",
        "invariants/test_processes.py",
        "invariants/test_processes_meet.py",
        "invariants/test_server_ranks.py",
        "invariants/test_sharding.py",
        "invariants/test_sharing.py",
    ]
)
"""Modules that `make test-long` runs and `make test` does not, so that the latter stays below four
minutes: whole runs, several processes, every family of models."""
_MISSING = sorted(name for name in LONG if not (ROOT / "tests" / name).is_file())
assert not _MISSING, f"no such modules: {_MISSING}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(ROOT / "tests").as_posix() in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SDPO_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set SDPO_SHARED_DATA")
    return folder


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also under a parent that ignores it: what nohup and
    background jobs start inherits that, and Python then installs no handler of its own."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
