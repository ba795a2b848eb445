"""Correct programs are accepted, however they are written."""

from __future__ import annotations

import pytest
from honest_functions import FUNCTIONS, Honest
from honest_library import LIBRARY
from honest_stdio import PROGRAMS

from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import CodeReference, CodeTest

ALL = [*FUNCTIONS, *LIBRARY, *PROGRAMS]


@pytest.mark.parametrize("honest", ALL, ids=lambda honest: honest.name)
def test_accepted(judge: CodeJudge, honest: Honest) -> None:
    tests = tuple(CodeTest(input=given, output=output) for given, output in honest.tests)
    reference = CodeReference(
        kind="function" if honest.entry_point else "stdio",
        entry_point=honest.entry_point or None,
        public=tests,
        private=tests,
    )
    verdict = judge.verdict(reference, honest.program, split="public")
    assert verdict.feedback is None
    assert verdict.solved
    assert verdict.reward == 1.0
    assert verdict.info["category"] == "accepted"


def test_there_are_at_least_sixty() -> None:
    assert len({honest.name for honest in ALL}) == len(ALL) >= 60
