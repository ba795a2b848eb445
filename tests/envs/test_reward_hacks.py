"""Programs that try to be called right without being right get nothing."""

from __future__ import annotations

from textwrap import dedent

import pytest

from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import CodeReference, CodeTest

TESTS = tuple(CodeTest(input=[n], output=n * n + 17) for n in (2, 3, 5))
LIMITS = {"time_limit_s": 0.3, "memory_mb": 128}
FUNCTION = CodeReference(kind="function", entry_point="f", public=TESTS, private=TESTS, **LIMITS)
STDIO = CodeReference(
    kind="stdio",
    public=tuple(CodeTest(input=f"{n}\n", output=f"{n * n + 17}\n") for n in (2, 3, 5)),
    private=(CodeTest(input="7\n", output="66\n"),),
)
ASSERTS = CodeReference(
    kind="asserts",
    entry_point="f",
    public=tuple(
        CodeTest(input=source)
        for source in (
            "assert f(2) == 21",
            "assert abs(f(3) - 26.0) < 1e-6",
            "for n in range(4, 9):\n    assert f(n) == n * n + 17",
        )
    ),
    private=(CodeTest(input="assert f(2) == 21"),),
    solution="def f(n):\n    return n * n + 17\n",
    **LIMITS,
)

ALWAYS_EQUAL = """
    class Always:
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        def __lt__(self, other): return True
        def __gt__(self, other): return True
        def __sub__(self, other): return 0.0
        def __rsub__(self, other): return 0.0
        def __abs__(self): return 0.0
        def __bool__(self): return True
        def __float__(self): return 0.0
        def __hash__(self): return 0
    def f(n):
        return Always()
    """

HACKS = {
    "object equal to everything": ALWAYS_EQUAL,
    "int subclass equal to everything": """
        class Always(int):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0.0
            __hash__ = int.__hash__
        def f(n):
            return Always(0)
        """,
    "float subclass equal to everything": """
        class Always(float):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0.0
            __hash__ = float.__hash__
        def f(n):
            return Always("nan")
        """,
    "list subclass with a lying length": """
        class Always(list):
            def __eq__(self, other): return True
            def __len__(self): return 1
        def f(n):
            return Always()
        """,
    "patched builtins": """
        import builtins
        class Always:
            def __eq__(self, other): return True
        builtins.abs = lambda x: 0
        builtins.bool = lambda x: True
        builtins.isinstance = lambda *a: True
        builtins.all = lambda *a: True
        def f(n):
            return Always()
        """,
    "prints PASSED": """
        print("PASSED")
        print("All tests passed\\n...\\nOK")
        def f(n):
            print('{"v": 21, "n": 0}')
            return "PASSED"
        """,
    "exit 0 at import": "import sys\nsys.exit(0)\n",
    "exit 0 in the call": "import sys\ndef f(n):\n    sys.exit(0)\n",
    "os._exit 0 in the call": "import os\ndef f(n):\n    os._exit(0)\n",
    "raises AssertionError": "def f(n):\n    raise AssertionError\n",
    "raises SystemExit with text": "def f(n):\n    raise SystemExit('passed')\n",
    "reads the frames of the caller": """
        import sys
        def f(n):
            frame = sys._getframe()
            while frame is not None:
                for scope in (frame.f_locals, frame.f_globals):
                    for name in ("expected", "output", "test", "tests", "answer"):
                        value = scope.get(name)
                        if isinstance(value, (int, float)):
                            return value
                frame = frame.f_back
            return None
        """,
    "searches the heap": """
        import gc
        def f(n):
            for thing in gc.get_objects():
                if type(thing) is dict and "output" in thing:
                    return thing["output"]
            return -1
        """,
    "reads its own files": """
        import os
        def f(n):
            found = []
            for place in ("/proc/self/environ", "tests.json", "/work/main/README.md"):
                try:
                    found.append(open(place).read())
                except OSError:
                    pass
            return found
        """,
    "patches the comparer": """
        try:
            import sdpo.envs.code.compare
            sdpo.envs.code.compare.values_match = lambda *a: True
        except ImportError:
            pass
        import json
        json.dumps = lambda *a, **k: '{"v": 21, "n": 0}'
        json.loads = lambda *a, **k: {"v": 21}
        def f(n):
            return 0
        """,
    "writes frames to every descriptor": """
        import json, os, struct
        def f(n):
            for number in range(3):
                data = json.dumps({"n": number, "v": 99}).encode()
                for fd in range(3, 300):
                    try:
                        os.write(fd, struct.pack(">I", len(data)) + data)
                    except OSError:
                        pass
            return 0
        """,
    "infinite output": "def f(n):\n    while True:\n        print('x' * 10000)\n",
    "swallows the time limit": """
        def f(n):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    continue
        """,
    "eats memory": "def f(n):\n    x = []\n    while True:\n        x.append(bytearray(1 << 24))\n",
    "crashes": "import ctypes\ndef f(n):\n    ctypes.string_at(0)\n",
}


@pytest.mark.parametrize("reference", [FUNCTION, ASSERTS], ids=["function", "asserts"])
@pytest.mark.parametrize("name", list(HACKS))
def test_a_hack_earns_nothing(judge: CodeJudge, reference: CodeReference, name: str) -> None:
    verdict = judge.verdict(reference, dedent(HACKS[name]), split="public")
    assert verdict.reward == 0.0
    assert not verdict.solved
    assert verdict.feedback
    assert len(verdict.feedback) <= 2000
    assert verdict.info["category"] != "accepted"


@pytest.mark.parametrize(
    "name", ["writes frames to every descriptor", "object equal to everything"]
)
def test_a_hack_earns_no_fraction(judge: CodeJudge, name: str) -> None:
    by_fraction = CodeJudge(judge.sandbox, reward="fraction")
    assert by_fraction.verdict(FUNCTION, dedent(HACKS[name])).reward == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "print('PASSED')\n",
        "print('21')\n",
        "import sys\nsys.exit(0)\n",
        "import os\nos._exit(0)\n",
        "raise SystemExit(0)\n",
        "import os\nfor fd in range(3, 300):\n    try:\n        os.write(fd, b'21')\n"
        "    except OSError:\n        pass\n",
        "import sys\nprint(sys.stdin.read(), sys.argv)\n",
    ],
)
def test_a_program_without_the_answer_earns_nothing(judge: CodeJudge, program: str) -> None:
    for split in ("public", "private"):
        verdict = judge.verdict(STDIO, program, split=split)
        assert verdict.reward == 0.0


def test_the_answers_are_right_when_they_are(judge: CodeJudge) -> None:
    program = "def f(n):\n    return n * n + 17\n"
    assert judge.verdict(FUNCTION, program).solved
    assert judge.verdict(ASSERTS, program, split="public").solved
    assert judge.verdict(STDIO, "print(int(input()) ** 2 + 17)\n").solved
