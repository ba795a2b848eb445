"""Which program an answer holds."""

from __future__ import annotations

import time

import pytest

from sdpo.envs.code.extract import extract_program

GOOD = "def f():\n    return 1\n"
BLOCK = f"```python\n{GOOD}```"


@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        f"Sure.\n\n{BLOCK}\n\nThat is it.",
        BLOCK.replace("python", "Python"),
        BLOCK.replace("python", "py"),
        BLOCK.replace("python", "python3  "),
        BLOCK.replace("python", "py3"),
        f"[PYTHON]\n{GOOD}[/PYTHON]",
        f"Sure.\n[PYTHON]{GOOD}[/PYTHON]\nDone.",
        BLOCK.replace("python", " python"),
        BLOCK.replace("python", "python title=a.py"),
        BLOCK.replace("python", "{.python}"),
        BLOCK.replace("python", "{python}"),
        BLOCK.replace("python", "python:solution.py"),
        BLOCK.replace("python", ""),
        BLOCK.replace("```", "````"),
        BLOCK.replace("```", "~~~"),
        BLOCK.replace("\n", "\r\n"),
        BLOCK + "   ",
        f"```python\nwrong\n```\n{BLOCK}",
        f"{BLOCK}\n```\noutput: 1\n```",
        f"{BLOCK}\n```text\n1\n```",
        f"{BLOCK}\n```bash\npython solution.py\n```",
        f"```\nexample\n```\n{BLOCK}",
        f"{BLOCK}\n```",
        f"{BLOCK}\n```python\n",
        f"<think>\n```python\ndraft {'x' * 500}\n```\n</think>\n{BLOCK}",
        f"```python\ndraft\n```\n</think>\n\n{BLOCK}",
        f"Let me think.</think>\n{BLOCK}",
        f"{BLOCK}\n<think>again ```python\nno\n```",
        "1. Item\n   " + BLOCK.replace("\n", "\n   "),
        "- Item\n\n      " + BLOCK.replace("\n", "\n      "),
    ],
)
def test_the_program_is_found(text: str) -> None:
    found = extract_program(text)
    assert found.program is not None
    assert found.program.strip() == GOOD.strip()
    assert not found.unclosed


@pytest.mark.parametrize(
    ("text", "unclosed"),
    [
        ("", False),
        ("The answer is 42.", False),
        (GOOD, False),
        ("`def f(): return 1`", False),
        ("Call ```add(1, 2)``` first.", False),
        ("```javascript let x = 1```", False),
        ("```bash\nls\n```", False),
        ("```javascript\nlet x = 1\n```", False),
        ("```python\ndef f():\n    ret", True),
        (f"{BLOCK}\nBetter:\n```python\ndef f():", True),
        (f"<think>\n{BLOCK}", False),
        (f"<think>\n{BLOCK}\n</think>\nno code", False),
        ("```\nx = 1", True),
    ],
)
def test_no_complete_block(text: str, unclosed: bool) -> None:
    found = extract_program(text)
    assert found.program is None
    assert found.unclosed is unclosed


def test_fences_inside_strings_do_not_end_the_block() -> None:
    program = 'def f():\n    """\n    ```\n    doc\n    ```\n    """\n    return "```"\n'
    assert extract_program(f"```python\n{program}```").program == program


def test_a_longer_fence_holds_shorter_ones() -> None:
    program = 's = """\n```python\nx\n```\n"""\n'
    assert extract_program(f"````python\n{program}````").program == program


def test_thinking_tags_inside_a_program_survive() -> None:
    program = 'def f(s):\n    return s.replace("</think>", "").replace("<think>", "")\n'
    assert extract_program(f"```python\n{program}```").program == program


@pytest.mark.parametrize(
    "after",
    [
        "```python\nprint(f())\n```",
        "```python\nassert f() == 1\n```",
        "```python\nfrom solution import f\nprint(f())\n```",
        "Test it:\n```py\nx = f()\n```\nAnd:\n```python\nif f() == 1:\n    print('ok')\n```",
        "```python\nprint(f(\n",
    ],
)
def test_a_usage_example_after_the_solution_is_not_judged(after: str) -> None:
    """NVIDIA-NeMo/Gym#820: 18 of 100 answers had one."""
    found = extract_program(f"{BLOCK}\n\nExample usage:\n\n{after}", names=("f",))
    assert found.program == GOOD
    assert found.position == 1
    assert found.num_blocks > 1


@pytest.mark.parametrize(
    "better",
    [
        "def f():\n    return 2\n",
        "async def f():\n    return 2\n",
        "class Solution:\n    def f(self):\n        return 2\n",
        "class f:\n    pass\n",
        "f = lambda: 2\n",
        "f: object = lambda: 2\n",
        "def f(:\n",
    ],
)
def test_the_last_definition_is_judged(better: str) -> None:
    text = f"{BLOCK}\nBetter:\n```python\n{better}```\nUse:\n```python\nf == f()\n```"
    assert extract_program(text, names=("f",)).program == better


def test_if_no_block_defines_the_name_the_last_is_judged() -> None:
    text = "```python\na = 1\n```\n```python\ndef ff(): pass\n```"
    assert extract_program(text, names=("f",)).program == "def ff(): pass\n"


def test_a_block_on_one_line_is_read() -> None:
    assert extract_program("Sure:\n```python def f(): return 1```").program == "def f(): return 1\n"


def test_the_last_of_two_python_blocks_wins() -> None:
    first, second = "```python\na = 1\n```", "```py\nb = 2\n```"
    assert extract_program(f"{first}\n{second}").program == "b = 2\n"


def test_hostile_text_takes_linear_time() -> None:
    start = time.perf_counter()
    for text in ("<think>\n" * 50_000, "```\n" * 50_001, "`" * 200_000, "</think>\nx" * 50_000):
        extract_program(text)
    assert time.perf_counter() - start < 2
