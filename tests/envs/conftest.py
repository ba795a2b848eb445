"""One sandbox for all tests of code environments: opening it costs more than judging."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdpo.envs.code.judge import CodeJudge
from sdpo.sandbox import Sandbox, open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("auto", width=2) as opened:
        yield opened


@pytest.fixture(scope="session")
def judge(sandbox: Sandbox) -> CodeJudge:
    return CodeJudge(sandbox)
