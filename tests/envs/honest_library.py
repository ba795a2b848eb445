"""Correct functions that use more of Python and its library than careless judges allow."""

from __future__ import annotations

from honest_functions import call

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
                    re.sub(r"\\d+", "#", "a12"), string.ascii_lowercase[:2],
                    deque([1], maxlen=1)[0]]
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
