"""What whole runs share: the model that reads feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_runs import teach


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """The taught model: it reads feedback and knows no code. It is taught once a session, and not
    taken from the user's cache, where another version of the code may have left it."""
    return teach(tmp_path_factory.mktemp("toy"))
