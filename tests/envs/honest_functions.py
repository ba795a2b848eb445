"""Correct functions that careless judges fail, each with tests that it passes."""

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

FUNCTIONS = [*SHAPE, *VALUES]
