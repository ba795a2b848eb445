"""Sizes, imports and the public surface."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "sdpo").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_modules_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body


def test_public_names():
    import sdpo

    assert set(sdpo.__all__) == {
        "Group", "Reply", "Rollout", "Run", "RunConfig", "SdpoError", "Task", "TeacherContext",
        "Turn", "Unjudged", "Verdict", "check", "credit", "discover", "env", "evaluate",
        "load_config", "probe", "report", "train",
    }  # fmt: skip
    for name in sdpo.__all__:
        assert getattr(sdpo, name) is not None


def test_public_functions_do_not_shadow_modules():
    modules = {p.stem if p.is_file() else p.name for p in (ROOT / "src" / "sdpo").iterdir()}
    assert not modules & {"train", "evaluate", "discover", "credit", "env", "check", "probe"}


def test_import_is_cheap():
    code = (
        "import sys, sdpo, sdpo.config.load, sdpo.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'vllm', 'wandb', 'plotly', 'peft'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


LOOKING = (
    ["--help"], ["--version"], ["train", "--help"], ["config", "list"], ["config", "show", "srpo"],
    ["config", "show", "quickstart", "--explain"], ["config", "show", "objective.typ=sdpo"],
    ["init", "env", "mine"],
)  # fmt: skip
"""Commands that only look, or only write small files."""


def test_showing_settings_waited_for_torch(tmp_path):
    """`sdpo config show` took the seconds that loading torch takes; completion asks at every
    key press."""
    code = (
        "import os, sys, sdpo.cli, sdpo.report, sdpo.compare, sdpo.report.rollouts_command\n"
        f"for words in {LOOKING}: sdpo.cli.run(words)\n"
        "sys.argv = ['sdpo']\n"
        "os.environ |= {'_SDPO_COMPLETE': 'bash_complete', 'COMP_CWORD': '2'}\n"
        "os.environ['COMP_WORDS'] = 'sdpo train objective.ty'\n"
        "sdpo.cli.run([])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    lines = result.stdout.splitlines()
    assert lines[-2:] == ["plain,objective.type=", "[]"], result.stdout[-500:] + result.stderr
    assert "# objective srpo, as it resolves:" in result.stdout
    assert "objective.typ" in result.stderr  # a mistake is named as fast


def test_imports_follow_the_layers():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


OPEN_WORDS = {"outcome.status", "name", "tag"}
"""What is matched against strings that are not the values of a setting."""


def test_a_half_added_variant_was_silently_none():
    """A match over the variants of a setting ends in `assert_never`: the type checker then names
    every place that a new one has to be added to."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Match) or ast.unparse(node.subject) in OPEN_WORDS:
                continue
            text = " ".join(ast.unparse(case.pattern) for case in node.cases)
            *_, last = node.cases
            is_closed = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
            if ("Config(" in text or text.startswith("'")) and not is_closed:
                found.append(f"{path.name}:{node.lineno}")
    assert not found
