"""What whole runs share: Ctrl-C that works wherever the suite was started."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also under a parent that ignores it: what nohup and
    background jobs start inherits that, and Python then installs no handler of its own."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
