"""What whole runs share: the model that reads feedback."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdpo.models.quiet import quiet
from sdpo.testing import byte_tokenizer, save_toy_model, tiny_model

OWN_ENV = """
import sdpo


def judge(task, rollout):
    solved = any(character in "abcdefgh" for character in rollout.text)
    return sdpo.Verdict(reward=float(solved), solved=solved, feedback=None if solved else "no a-h")


env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)], judge)
"""


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """The taught model: it reads feedback and knows no code. Its weights are the package's, which
    tests/unit/testing/test_toy_world.py holds to today's lessons: to teach one anew takes half a
    minute of every test process, and a slow test does."""
    return save_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a tiny model, `tiny`, and an environment of one's own, `own.py:env`."""
    folder = tmp_path_factory.mktemp("work")
    with quiet():
        tiny_model().save_pretrained(folder / "tiny")
        byte_tokenizer().save_pretrained(folder / "tiny")
    (folder / "own.py").write_text(OWN_ENV)
    return folder
