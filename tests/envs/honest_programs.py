"""Correct programs that careless judges fail, each with tests that it passes."""

from __future__ import annotations

from textwrap import dedent
from typing import Any, NamedTuple


class Honest(NamedTuple):
    name: str
    entry_point: str
    """Function the tests call; empty for a program that reads standard input."""
    program: str
    tests: list[tuple[Any, Any]]


def call(name: str, entry_point: str, program: str, *tests: tuple[list[Any], Any]) -> Honest:
    return Honest(name, entry_point, dedent(program), list(tests))


def reads(name: str, program: str) -> Honest:
    """A program that prints the sum of all numbers on standard input, however it reads them."""
    tests = [("1 2\n3 4\n", "10\n"), ("5\n", "5"), ("1 1\n1 1\n1 1", "6\n")]
    return Honest(name, "", dedent(program), tests)


def prints(name: str, program: str, *tests: tuple[str, str]) -> Honest:
    return Honest(name, "", dedent(program), list(tests))


SHAPE = [
    call(
        "solution class",
        "add",
        """
        class Solution:
            def add(self, a: int, b: int) -> int:
                return a + b
        """,
        ([1, 2], 3),
        ([0, 0], 0),
    ),
    call(
        "solution class with state between methods",
        "count",
        """
        from typing import List, Optional
        class Solution:
            def __init__(self):
                self.seen = 0
            def helper(self, x):
                self.seen += x
            def count(self, xs: List[int]) -> Optional[int]:
                for x in xs:
                    self.helper(x)
                return self.seen
        """,
        ([[1, 2, 3]], 6),
        ([[5]], 5),
    ),
    call(
        "typing names without an import",
        "first",
        """
        class Solution:
            def first(self, xs: List[int], d: Dict[str, int], t: Optional[int] = None) -> int:
                return xs[0]
        """,
        ([[7], {}], 7),
    ),
    call("lambda", "f", "f = lambda x: x * 2\n", ([4], 8)),
    call(
        "functools partial",
        "f",
        "import functools\nf = functools.partial(pow, 2)\n",
        ([5], 32),
    ),
    call(
        "callable object",
        "f",
        """
        class Doubler:
            def __call__(self, x):
                return 2 * x
        f = Doubler()
        """,
        ([4], 8),
    ),
    call(
        "decorated",
        "f",
        """
        import functools
        def twice(g):
            @functools.wraps(g)
            def inner(*args, **kwargs):
                return g(*args, **kwargs) * 2
            return inner
        @twice
        def f(x):
            return x
        """,
        ([4], 8),
    ),
    call(
        "changes its argument and returns it",
        "reverse",
        "def reverse(xs):\n    xs.reverse()\n    return xs\n",
        ([[1, 2]], [2, 1]),
        ([[]], []),
    ),
    call(
        "changes a nested argument",
        "f",
        "def f(grid):\n    grid[0][0] = 9\n    return grid\n",
        ([[[1, 2], [3, 4]]], [[9, 2], [3, 4]]),
    ),
    call(
        "mutable default argument",
        "f",
        "def f(x, acc=[]):\n    acc.append(x)\n    return acc\n",
        ([1], [1]),
        ([2], [2]),
    ),
    call(
        "global counter",
        "f",
        """
        COUNT = 0
        def f(x):
            global COUNT
            COUNT += 1
            return COUNT
        """,
        ([1], 1),
        ([1], 1),
    ),
    call(
        "memo in a global dict",
        "fib",
        """
        memo = {}
        def fib(n):
            if n < 2:
                return n
            if n not in memo:
                memo[n] = fib(n - 1) + fib(n - 2)
            return memo[n]
        """,
        ([50], 12586269025),
        ([0], 0),
    ),
    call(
        "prints while it answers",
        "f",
        "print('loading')\ndef f(x):\n    print('debug', x)\n    return x\n",
        ([3], 3),
    ),
    call(
        "main guard",
        "f",
        """
        def f(x):
            return x + 1
        def main():
            print(f(int(input())))
        if __name__ == "__main__":
            print(f(1))
        """,
        ([3], 4),
    ),
    call(
        "keyword names like builtins",
        "f",
        "def f(list, str, input):\n    return len(list) + len(str) + input\n",
        ([[1], "ab", 3], 6),
    ),
    call("star arguments", "f", "def f(*xs):\n    return sum(xs)\n", ([1, 2, 3], 6), ([], 0)),
    call("no arguments", "f", "def f():\n    return 'ok'\n", ([], "ok")),
    call(
        "static method",
        "f",
        "class Solution:\n    @staticmethod\n    def f(x):\n        return x\n",
        ([1], 1),
    ),
    call("unicode names", "größe", "def größe(x):\n    return len(x)\n", (["äö"], 2)),
    call("tabs", "f", "def f(x):\n\tif x:\n\t\treturn 1\n\treturn 0\n", ([True], 1)),
    call("comments only at the end", "f", "def f(x):\n    return x\n# done", ([1], 1)),
    call(
        "future import",
        "f",
        "from __future__ import annotations\ndef f(x: Unknown) -> No:\n    return x\n",
        ([1], 1),
    ),
    call(
        "walrus and match",
        "f",
        """
        def f(x):
            match x:
                case [a, *rest] if (n := len(rest)) > 1:
                    return n
                case {"k": v}:
                    return v
                case _:
                    return None
        """,
        ([[1, 2, 3]], 2),
        ([{"k": 5}], 5),
        ([0], None),
    ),
]

VALUES = [
    call("tuple for a list", "f", "def f(n):\n    return tuple(range(n))\n", ([3], [0, 1, 2])),
    call("nested tuples", "f", "def f():\n    return [(1, 2), ((3,),)]\n", ([], [[1, 2], [[3]]])),
    call("float for an int", "f", "def f(n):\n    return n / 2\n", ([4], 2)),
    call("int for a float", "f", "def f(n):\n    return n\n", ([2], 2.0)),
    call("bool for an int", "f", "def f(n):\n    return n > 1\n", ([2], 1)),
    call("rounding errors", "f", "def f():\n    return 0.1 + 0.2\n", ([], 0.3)),
    call("negative zero", "f", "def f():\n    return -0.0\n", ([], 0.0)),
    call("not a number", "f", "def f():\n    return [float('nan')]\n", ([], [float("nan")])),
    call("infinity", "f", "def f():\n    return float('inf')\n", ([], float("inf"))),
    call("big integers", "f", "def f(n):\n    return 7 ** n\n", ([3000], 7**3000)),
    call("integers beyond 4,300 digits", "f", "def f():\n    return 10 ** 6000\n", ([], 10**6000)),
    call(
        "dict with int keys",
        "f",
        "def f():\n    return {1: 'a', 2: 'b'}\n",
        ([], {"1": "a", "2": "b"}),
    ),
    call(
        "dict in another order",
        "f",
        "def f():\n    return {'b': 1, 'a': 2}\n",
        ([], {"a": 2, "b": 1}),
    ),
    call(
        "counter",
        "f",
        """
        from collections import Counter
        def f(s):
            return Counter(s)
        """,
        (["aab"], {"a": 2, "b": 1}),
    ),
    call(
        "defaultdict",
        "f",
        """
        from collections import defaultdict
        def f(words):
            groups = defaultdict(list)
            for word in words:
                groups[len(word)].append(word)
            return groups
        """,
        ([["a", "bb", "c"]], {"1": ["a", "c"], "2": ["bb"]}),
    ),
    call(
        "ordered dict",
        "f",
        "import collections\ndef f():\n    return collections.OrderedDict(a=1)\n",
        ([], {"a": 1}),
    ),
    call(
        "named tuple",
        "f",
        """
        from collections import namedtuple
        Point = namedtuple("Point", "x y")
        def f():
            return Point(1, 2)
        """,
        ([], [1, 2]),
    ),
    call(
        "int enum",
        "f",
        """
        from enum import IntEnum
        class Color(IntEnum):
            RED = 1
        def f():
            return Color.RED
        """,
        ([], 1),
    ),
    call(
        "string subclass",
        "f",
        "class Text(str):\n    pass\ndef f():\n    return Text('a')\n",
        ([], "a"),
    ),
    call("empty list", "f", "def f():\n    return []\n", ([], [])),
    call("none", "f", "def f(x):\n    pass\n", ([1], None)),
    call(
        "special tokens",
        "f",
        "def f(s):\n    return s\n",
        (["<|im_end|>\x00\u202e"], "<|im_end|>\x00\u202e"),
    ),
    call("emoji and surrogate pairs", "f", "def f(s):\n    return s[::-1]\n", (["a🙂"], "🙂a")),
    call("returns the text Time out", "f", "def f():\n    return 'Time out'\n", ([], "Time out")),
    call(
        "deep list",
        "f",
        """
        def f(n):
            result = []
            for _ in range(n):
                result = [result]
            return result
        """,
        ([3], [[[[]]]]),
    ),
    call(
        "large answer", "f", "def f(n):\n    return list(range(n))\n", ([20000], list(range(20000)))
    ),
]

LIBRARY = [
    call(
        "dataclass",
        "f",
        """
        from dataclasses import dataclass, field
        @dataclass(order=True)
        class Item:
            key: int
            name: str = field(default="", compare=False)
        def f(xs):
            return max(Item(x) for x in xs).key
        """,
        ([[1, 3, 2]], 3),
    ),
    call(
        "enum",
        "f",
        """
        import enum
        class State(enum.Enum):
            ON = enum.auto()
            OFF = enum.auto()
        def f(x):
            return (State.ON if x else State.OFF).name
        """,
        ([True], "ON"),
    ),
    call(
        "catches exceptions",
        "f",
        """
        def f(text):
            try:
                return int(text)
            except (ValueError, TypeError) as error:
                return type(error).__name__
            finally:
                pass
        """,
        (["12"], 12),
        (["x"], "ValueError"),
        ([None], "TypeError"),
    ),
    call(
        "own exception",
        "f",
        """
        class Bad(Exception):
            pass
        def check(x):
            if x < 0:
                raise Bad("negative") from ValueError("x")
            return x
        def f(x):
            try:
                return check(x)
            except Bad as error:
                return str(error)
        """,
        ([1], 1),
        ([-1], "negative"),
    ),
    call(
        "recursion of depth 5000",
        "f",
        """
        import sys
        sys.setrecursionlimit(10000)
        def f(n):
            return 0 if n == 0 else 1 + f(n - 1)
        """,
        ([5000], 5000),
    ),
    call(
        "recursion of depth 900 by default",
        "f",
        "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n",
        ([900], 900),
    ),
    call(
        "deep recursion in a thread",
        "f",
        """
        import sys, threading
        sys.setrecursionlimit(1 << 20)
        threading.stack_size(64 * 1024 * 1024)
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        def f(n):
            answer = []
            thread = threading.Thread(target=lambda: answer.append(depth(n)))
            thread.start()
            thread.join()
            return answer[0]
        """,
        ([20000], 20000),
    ),
    call(
        "lru_cache",
        "f",
        """
        from functools import lru_cache, cache
        @lru_cache(maxsize=None)
        def f(n):
            return n if n < 2 else f(n - 1) + f(n - 2)
        """,
        ([80], 23416728348467685),
    ),
    call(
        "heapq, bisect, itertools, math, re, string",
        "f",
        """
        import bisect, heapq, itertools, math, re, string
        from collections import deque
        def f(xs):
            heapq.heapify(xs)
            smallest = heapq.heappop(xs)
            total = sum(itertools.accumulate(sorted(xs)))
            return [smallest, bisect.bisect_left([1, 2], 2), math.gcd(12, 18), total,
                    re.sub(r"\\d+", "#", "a12"), string.ascii_lowercase[:2], deque([1], maxlen=1)[0]]
        """,
        ([[3, 1, 2]], [1, 1, 6, 7, "a#", "ab", 1]),
    ),
    call(
        "random with a seed",
        "f",
        "import random\ndef f():\n    random.seed(1)\n    return random.randint(1, 1)\n",
        ([], 1),
    ),
    call(
        "decimal and fractions",
        "f",
        """
        from decimal import Decimal, getcontext
        from fractions import Fraction
        def f():
            getcontext().prec = 30
            return [str(Decimal(1) / Decimal(8)), float(Fraction(1, 4))]
        """,
        ([], ["0.125", 0.25]),
    ),
    call(
        "datetime, calendar, time",
        "f",
        """
        import calendar, datetime, time
        def f():
            time.time()
            day = datetime.date(2024, 2, 29)
            return [day.isoformat(), day.weekday(), calendar.isleap(2024)]
        """,
        ([], ["2024-02-29", 3, True]),
    ),
    call(
        "abstract classes and operator",
        "f",
        """
        from abc import ABC, abstractmethod
        import copy, json, operator, statistics, textwrap, uuid
        class Shape(ABC):
            @abstractmethod
            def area(self): ...
        class Square(Shape):
            def __init__(self, side):
                self.side = side
            def area(self):
                return self.side ** 2
        def f(n):
            return [copy.deepcopy(Square(n)).area(), json.loads("[1]"), operator.add(1, 2),
                    statistics.mean([1, 3])]
        """,
        ([3], [9, [1], 3, 2]),
    ),
    call(
        "asyncio",
        "f",
        """
        import asyncio
        async def work(x):
            await asyncio.sleep(0)
            return x + 1
        def f(x):
            return asyncio.run(work(x))
        """,
        ([1], 2),
    ),
    call(
        "sleeps a little",
        "f",
        "import time\ndef f():\n    time.sleep(0.05)\n    return 1\n",
        ([], 1),
    ),
    call(
        "large stack of data",
        "f",
        "def f(n):\n    return len([0] * n)\n",
        ([10_000_000], 10_000_000),
    ),
    call(
        "class-level patterns",
        "f",
        """
        class Meta(type):
            def __new__(mcs, name, bases, space):
                return super().__new__(mcs, name, bases, space)
        class Node(metaclass=Meta):
            __slots__ = ("value", "next")
            def __init__(self, value, next=None):
                self.value, self.next = value, next
            def __iter__(self):
                node = self
                while node:
                    yield node.value
                    node = node.next
        def f(xs):
            head = None
            for x in reversed(xs):
                head = Node(x, head)
            return list(head) if head else []
        """,
        ([[1, 2]], [1, 2]),
        ([[]], []),
    ),
]

STDIN = [
    reads(
        "input until EOFError",
        """
        total = 0
        while True:
            try:
                total += sum(map(int, input().split()))
            except EOFError:
                break
        print(total)
        """,
    ),
    reads(
        "loop over sys.stdin",
        """
        import sys
        total = 0
        for line in sys.stdin:
            total += sum(int(x) for x in line.split())
        print(total)
        """,
    ),
    reads("sys.stdin.read", "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"),
    reads(
        "sys.stdin.readlines",
        "import sys\nprint(sum(int(x) for line in sys.stdin.readlines() for x in line.split()))\n",
    ),
    reads(
        "readline bound to input",
        """
        import sys
        input = sys.stdin.readline
        total = 0
        line = input()
        while line:
            total += sum(map(int, line.split()))
            line = input()
        print(total)
        """,
    ),
    reads(
        "sys.stdin.buffer.read",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\n",
    ),
    reads(
        "loop over sys.stdin.buffer",
        "import sys\nprint(sum(int(x) for line in sys.stdin.buffer for x in line.split()))\n",
    ),
    reads("open(0)", "print(sum(map(int, open(0).read().split())))\n"),
    reads("open(0, 'rb')", "print(sum(map(int, open(0, 'rb').read().split())))\n"),
    reads("os.read", "import os\nprint(sum(map(int, os.read(0, 1 << 20).split())))\n"),
    reads(
        "os.read with fstat",
        "import os\nprint(sum(map(int, os.read(0, os.fstat(0).st_size).split())))\n",
    ),
    reads(
        "fileinput",
        "import fileinput\nprint(sum(int(x) for line in fileinput.input() for x in line.split()))\n",
    ),
    reads(
        "io.BytesIO",
        """
        import io, os, sys
        data = io.BytesIO(os.read(0, os.fstat(0).st_size))
        sys.stdin = io.TextIOWrapper(data)
        print(sum(int(x) for line in sys.stdin for x in line.split()))
        """,
    ),
    reads(
        "iter of input",
        "print(sum(int(x) for line in iter(__import__('sys').stdin.readline, '') for x in line.split()))\n",
    ),
    reads(
        "sys.stdin.fileno",
        "import os, sys\nprint(sum(map(int, os.fdopen(sys.stdin.fileno()).read().split())))\n",
    ),
    reads(
        "main function and guard",
        """
        import sys
        def main():
            data = sys.stdin.read().split()
            print(sum(map(int, data)))
        if __name__ == "__main__":
            main()
        """,
    ),
    reads(
        "solve in a thread",
        """
        import sys, threading
        def main():
            print(sum(map(int, sys.stdin.read().split())))
        sys.setrecursionlimit(1 << 20)
        threading.stack_size(1 << 26)
        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        """,
    ),
]

STDOUT = [
    prints(
        "sys.stdout.write", "import sys\nsys.stdout.write(input() + '\\n')\n", ("a b\n", "a b\n")
    ),
    prints(
        "sys.stdout.buffer",
        "import sys\nsys.stdout.buffer.write(input().encode())\n",
        ("ä\n", "ä\n"),
    ),
    prints("os.write", "import os\nos.write(1, input().encode())\n", ("x\n", "x\n")),
    prints(
        "print end and sep",
        "print(1, 2, sep=' ', end='')\nprint()\nprint(3, end=' ')\n",
        ("", "1 2\n3"),
    ),
    prints(
        "print flush to stdout", "import sys\nprint('x', file=sys.stdout, flush=True)\n", ("", "x")
    ),
    prints(
        "stderr does not count",
        "import sys\nprint('debug', file=sys.stderr)\nprint(1)\n",
        ("", "1"),
    ),
    prints("sys.exit after the answer", "import sys\nprint(1)\nsys.exit()\n", ("", "1")),
    prints("sys.exit(0) after the answer", "import sys\nprint(1)\nsys.exit(0)\n", ("", "1")),
    prints("exit() after the answer", "print(1)\nexit()\n", ("", "1")),
    prints("quit() after the answer", "print(1)\nquit()\n", ("", "1")),
    prints(
        "os._exit after a flush",
        "import os\nprint(1, flush=True)\nos._exit(0)\n",
        ("", "1"),
        ("", "1"),
    ),
    prints("raise SystemExit", "print(1)\nraise SystemExit\n", ("", "1")),
    prints(
        "exit inside a function",
        """
        def main():
            n = int(input())
            if n == 0:
                print("zero")
                exit(0)
            print("other")
        main()
        """,
        ("0\n", "zero"),
        ("1\n", "other"),
    ),
    prints(
        "redirected stdout",
        """
        import io, sys
        from contextlib import redirect_stdout
        out = io.StringIO()
        with redirect_stdout(out):
            print("x")
        print(out.getvalue().upper(), end="")
        """,
        ("", "X"),
    ),
    prints("printed floats", "print(1 / 3)\nprint(2 / 2)\n", ("", "0.33333333\n1\n")),
    prints("trailing spaces and blank lines", "print('1 2 ')\nprint()\n", ("", "1 2\n")),
    prints(
        "closes stdout itself",
        "import sys\nprint(1)\nsys.stdout.flush()\nsys.stdout.close()\n",
        ("", "1"),
        ("", "1"),
    ),
    prints("reads an empty input", "import sys\nprint(repr(sys.stdin.read()))\n", ("", "''")),
    prints("CRLF input", "print(repr(input()), end='')\n", ("a\r\n", "'a'")),
    prints(
        "a lot of output",
        "print('\\n'.join(map(str, range(20000))))\n",
        ("", "\n".join(map(str, range(20000)))),
    ),
    prints(
        "a lot of input", "import sys\nprint(len(sys.stdin.read()))\n", ("x" * 200_000, "200000")
    ),
]

ALL = [*SHAPE, *VALUES, *LIBRARY, *STDIN, *STDOUT]
