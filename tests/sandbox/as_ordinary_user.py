"""Runs both tables of programs as whoever started it; a script for test_sandbox_life.py."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from honest_tricky import FUNCTIONS, STDIO
from hostile_programs import HOSTILE

from sdpo.sandbox import Limits, Program, open_sandbox


def main() -> None:
    assert os.geteuid() != 0, "this is to run as an ordinary user"
    problems = []
    crowding = max(1.0, 2 * os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, open_sandbox("auto", width=1) as sandbox:
        secret = Path(folder, "secret")
        secret.write_text("secret")
        limits = Limits(cpu_s=2.0, memory_mb=512)
        for name, (source, given, value) in FUNCTIONS.items():
            program = Program(source=source, mode="function", entry_point="f")
            (outcome,) = sandbox.run(program, [given], limits)
            if outcome.status != "value" or outcome.value != value:
                problems.append((name, outcome))
        for name, (source, given, text) in STDIO.items():
            (outcome,) = sandbox.run(Program(source=source, mode="stdio"), [given], limits)
            if outcome.status != "value" or outcome.stdout != text:
                problems.append((name, outcome))
        for name, (statuses, source) in HOSTILE.items():
            places = {"SECRET": secret, "FOLDER": folder, "NAMED": folder + "/n", "PORT": 9}
            for word, place in {**places, "JUDGE": os.getpid()}.items():
                source = source.replace(word, str(place))
            program = Program(source=source, mode="function", entry_point="f")
            started = time.monotonic()
            (outcome,) = sandbox.run(program, [[]], Limits(cpu_s=0.4, memory_mb=128))
            took = time.monotonic() - started
            if outcome.status not in statuses or outcome.value == "escaped" or took > 5 * crowding:
                problems.append((name, outcome, took))
            if os.listdir(folder) != ["secret"] or secret.read_text() != "secret":
                problems.append((name, "changed a file"))
        level = sandbox.level
    for problem in problems:
        print(problem)
    if not problems:
        print(f"all right: {level}, {len(FUNCTIONS) + len(STDIO)} honest, {len(HOSTILE)} hostile")


if __name__ == "__main__":
    main()
