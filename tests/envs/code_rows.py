"""Two small tasks and how an answer looks."""

from __future__ import annotations

from textwrap import dedent

DIVIDE = {
    "id": "divide",
    "prompt": "Write `divide(a, b)`.",
    "kind": "function",
    "entry_point": "divide",
    "tests": {
        "public": [{"input": [6, 3], "output": 2}, {"input": [9, 3], "output": 3}],
        "private": [
            {"input": [10, 5], "output": 2},
            {"input": [123454321, 1], "output": 123454321},
        ],
    },
    "time_limit_s": 0.4,
    "reference_solution": "def divide(a, b):\n    return a // b\n",
}
ECHO = {
    "id": "echo",
    "prompt": "Print the line in capitals.",
    "kind": "stdio",
    "tests": {"public": [{"input": "abc\n", "output": "ABC\n"}]},
    "reference_solution": "print(input().upper())\n",
    "split": "eval",
}


def block(program: str) -> str:
    return f"```python\n{dedent(program)}```"
