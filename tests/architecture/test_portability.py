"""No file is read as the locale likes, and nothing but the sandbox asks for what only Linux has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = [
    path
    for folder in ("src", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TEXT_FUNCTIONS = {"open", "fdopen", "read_text", "write_text"}
BINARY_MODE = re.compile(r"[rwax+]*b[rwax+]*")


def needs_encoding(call):
    """Whether a call reads or writes text: the locale's encoding is another on every machine."""
    given = {k.arg: k.value for k in call.keywords}
    if isinstance(given.get("text"), ast.Constant) and given["text"].value is True:
        return True
    function = call.func
    name = getattr(function, "attr", None) or getattr(function, "id", None)
    if name not in TEXT_FUNCTIONS:
        return False
    owner = getattr(function, "value", None)
    # os.open gives a descriptor and env.open an episode; a method without arguments is one of our
    # own, not Path's.
    others = ("os", "env")
    if name == "open" and owner and (getattr(owner, "id", None) in others or not call.args):
        return False
    modes = [a.value for a in [*call.args, *given.values()] if isinstance(a, ast.Constant)]
    return not any(isinstance(mode, str) and BINARY_MODE.fullmatch(mode) for mode in modes)


def test_files_were_read_in_the_encoding_of_the_locale():
    guessed = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in OURS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and needs_encoding(node)
        and "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not guessed, f"name the encoding: {guessed}"


def test_what_only_linux_has_was_asked_for_everywhere():
    sandbox, machine = ROOT / "src/sdpo/sandbox", ROOT / "src/sdpo/machine.py"
    only_linux = re.compile(
        r"^(?:import|from) (?:resource|fcntl)\b|sched_getaffinity", re.MULTILINE
    )
    found = [
        str(path.relative_to(ROOT))
        for path in OURS
        if path.is_relative_to(ROOT / "src")
        and not path.is_relative_to(sandbox)
        and path != machine
        and only_linux.search(path.read_text(encoding="utf-8"))
    ]
    assert not found, (
        f"use machine.usable_cores(), import such modules where they are used: {found}"
    )


def test_a_clock_that_is_set_changes_no_duration():
    """Machines set their clocks while a run goes on; only a chat template asks for the date."""
    wall_clock = re.compile(r"\btime\.time(?:_ns)?\(|datetime\.(?:now|utcnow|today)\(")
    found = [
        str(path.relative_to(ROOT / "src"))
        for path in OURS
        if path.is_relative_to(ROOT / "src") and wall_clock.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["sdpo/inspection/conditions.py"], "take time.monotonic() or perf_counter()"
