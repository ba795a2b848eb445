"""What whole runs share: the model that reads feedback, and Ctrl-C."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from toy_runs import teach


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """The taught model: it reads feedback and knows no code. It is taught once a session, and not
    taken from the user's cache, where another version of the code may have left it."""
    return teach(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also under a parent that ignores it: what nohup and
    background jobs start inherits that, and Python then installs no handler of its own."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
