"""Honest programs that a careless judge gets wrong.

FUNCTIONS: name -> (source, arguments, value); STDIO: name -> (source, stdin, stdout).
"""

# ruff: noqa: E501 - a table of programs reads best with one program a line

from __future__ import annotations

import math
import sys
from textwrap import dedent

DEPTH_IN_C = 5_000 if sys.version_info < (3, 12) else 400
"""Python 3.12 and 3.13 bound recursion through C themselves; docs/code-tasks.md."""

_FUNCTIONS = {
    "plain": ("def f(x): return x + 1", [1], 2),
    "lambda": ("f = lambda x: x * 2", [4], 8),
    "class Solution": ("class Solution:\n def f(self, x): return x[::-1]", ["abc"], "cba"),
    "class Solution with state": (
        "class Solution:\n def __init__(self): self.n = 3\n def f(self, x): return x * self.n", [2], 6),
    "typing names": ("from typing import List\ndef f(x: List[int]) -> int: return len(x)", [[1]], 1),
    "future annotations": ("from __future__ import annotations\ndef f(x: Foo) -> Bar: return x", [1], 1),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n x: int\ndef f(n): return P(n).x", [5], 5),
    "dataclass ordering": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n x: int\n"
        "def f(a): return [p.x for p in sorted(map(P, a))]", [[3, 1]], [1, 3]),
    "enum": ("from enum import IntEnum\nclass C(IntEnum):\n A=7\ndef f(): return C.A", [], 7),
    "named tuple": (
        "from collections import namedtuple\nP=namedtuple('P','x y')\ndef f(): return P(1,2)", [], (1, 2)),
    "default dict": (
        "from collections import defaultdict\ndef f(s):\n d=defaultdict(int)\n for c in s: d[c]+=1\n return d",
        ["aab"], {"a": 2, "b": 1}),
    "counter": ("from collections import Counter\ndef f(s): return Counter(s)", ["aab"], {"a": 2, "b": 1}),
    "ordered dict": (
        "from collections import OrderedDict\ndef f(): return OrderedDict(a=1)", [], {"a": 1}),
    "set": ("def f(x): return set(x)", [[1, 1, 2]], {1, 2}),
    "frozenset": ("def f(x): return frozenset(x)", [[1]], {1}),
    "tuple keys": ("def f(): return {(1, 2): 3}", [], {(1, 2): 3}),
    "nested": ("def f(): return [(1, {'a': {2}}), None]", [], [(1, {"a": {2}}), None]),
    "bytes": ("def f(): return b'\\x00\\xff'", [], b"\x00\xff"),
    "big number": ("def f(): return 7 ** 5000", [], 7**5000),
    "negative big number": ("def f(): return -(2 ** 80)", [], -(2**80)),
    "infinity": ("def f(): return [float('inf'), -float('inf')]", [], [math.inf, -math.inf]),
    "float to the last bit": ("def f(): return 0.1 + 0.2", [], 0.1 + 0.2),
    "complex": ("def f(): return [1j ** 2, complex(0.5, -1)]", [], [(-1 + 0j), (0.5 - 1j)]),
    "memory error handled": (
        "def f():\n try: return len(bytes(10**12))\n except MemoryError: return -1", [], -1),
    "bool stays bool": ("def f(): return [True, 1]", [], [True, 1]),
    "unicode": ("def f(s): return s + '\\u00e9\\U0001f600'", ["\u00fc"], "\u00fc\u00e9\U0001f600"),
    "NUL in a string": ("def f(): return 'a\\x00b'", [], "a\x00b"),
    "str subclass": ("class S(str): pass\ndef f(): return S('x')", [], "x"),
    "exceptions caught": ("def f():\n try: return [][0]\n except IndexError as e: return str(e)", [],
                          "list index out of range"),
    "except everything": ("def f():\n try: 1/0\n except: return 1", [], 1),
    "finally": ("def f():\n try: return 1\n finally: pass", [], 1),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef g(n): return 0 if n==0 else 1+g(n-1)\n"
        "def f(n): return g(n)", [50_000], 50_000),
    "deep recursion in a cache": (
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "@lru_cache(None)\ndef g(n): return 0 if n==0 else 1+g(n-1)\ndef f(n): return g(n)",
        [DEPTH_IN_C], DEPTH_IN_C),
    "recursion at the default limit": (
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)", [5_000], 5_000),
    "recursion error caught": (
        "def g(): return g()\ndef f():\n try: g()\n except RecursionError: return 'deep'", [], "deep"),
    "threads": (
        "import threading\ndef f():\n r=[]\n t=threading.Thread(target=r.append,args=(1,))\n"
        " t.start(); t.join()\n return r", [], [1]),
    "thread with a large stack": (
        "import threading\nthreading.stack_size(1<<27)\ndef f():\n r=[]\n"
        " t=threading.Thread(target=lambda: r.append(1))\n t.start(); t.join()\n return r", [], [1]),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor as T\ndef f():\n"
        " with T(4) as t: return list(t.map(abs, [-1, 2]))", [], [1, 2]),
    "asyncio": (
        "import asyncio\nasync def g():\n await asyncio.sleep(0.01)\n return 4\n"
        "def f(): return asyncio.run(g())", [], 4),
    "random with a seed": ("import random\ndef f():\n random.seed(1)\n return random.random() < 1", [], True),
    "decimal": ("from decimal import Decimal as D\ndef f(): return str(D('0.1')+D('0.2'))", [], "0.3"),
    "fraction": ("from fractions import Fraction as F\ndef f(): return float(F(1,4))", [], 0.25),
    "heap": ("import heapq\ndef f(x):\n heapq.heapify(x)\n return heapq.heappop(x)", [[3, 1, 2]], 1),
    "regular expression": ("import re\ndef f(s): return re.findall(r'\\d+', s)", ["a1b22"], ["1", "22"]),
    "datetime": ("import datetime as d\ndef f(): return d.date(2024,2,29).isoformat()", [], "2024-02-29"),
    "time zone": (
        "from zoneinfo import ZoneInfo\nimport datetime as d\n"
        "def f(): return d.datetime(2024,1,1,tzinfo=ZoneInfo('UTC')).isoformat()", [],
        "2024-01-01T00:00:00+00:00"),
    "hash": ("import hashlib\ndef f(): return hashlib.md5(b'').hexdigest()[:8]", [], "d41d8cd9"),
    "late import": ("def f():\n import sqlite3\n return sqlite3.connect(':memory:').execute('select 1').fetchone()", [], (1,)),
    "late import of XML": ("def f():\n import xml.etree.ElementTree as E\n return E.fromstring('<a>x</a>').text", [], "x"),
    "ctypes": ("import ctypes\ndef f(): return ctypes.c_int(5).value", [], 5),
    "subprocess imported only": ("import subprocess, socket, multiprocessing\ndef f(): return 1", [], 1),
    "global state": ("n = 0\ndef f():\n global n\n n += 1\n return n", [], 1),
    "mutable default": ("def f(x=[]):\n x.append(1)\n return len(x)", [], 1),
    "prints while it works": ("def f(x):\n print('debug', x)\n return x", [1], 1),
    "own main guard": ("def f(): return 1\nif __name__ == '__main__':\n print('main')", [], 1),
    "reads stdin while loading": ("import sys\nx = sys.stdin.read()\ndef f(): return x", [], ""),
    "sleeps a little": ("import time\ndef f():\n time.sleep(0.3)\n return 1", [], 1),
    "much memory, within the limit": ("def f(): return len(bytearray(200 << 20))", [], 200 << 20),
    "own class named like a builtin": ("class list(list): pass\ndef f(): return list([1])", [], [1]),
    "signal handler": ("import signal\ndef f():\n signal.alarm(0)\n return 1", [], 1),
    "kill check on itself": ("import os\ndef f():\n os.kill(os.getpid(), 0)\n return 1", [], 1),
    "pickle and copy": ("import pickle,copy\ndef f(x): return copy.deepcopy(pickle.loads(pickle.dumps(x)))", [[1]], [1]),
    "eval and exec": ("def f():\n d={}\n exec('a=1', d)\n return eval('a+1', d)", [], 2),
    "unhashable answers": ("def f(): return {'a': [1], 'b': {'c': []}}", [], {"a": [1], "b": {"c": []}}),
    "file in the working folder": (
        "def f():\n open('notes.txt','w').write('a\\nb')\n return open('notes.txt').read().split()", [], ["a", "b"]),
    "file appended to and cut": (
        "def f():\n open('x','w').write('abc')\n h=open('x','r+')\n h.seek(2)\n h.truncate()\n h.close()\n"
        " open('x','a').write('!')\n return open('x').read()", [], "ab!"),
    "file renamed, copied and removed": (
        "import os,shutil\ndef f():\n open('a','w').write('x')\n os.rename('a','b')\n shutil.copyfile('b','c')\n"
        " os.remove('b')\n return os.listdir(), open('c').read()", [], (["c"], "x")),
    "named temporary file": (
        "import tempfile\ndef f():\n with tempfile.NamedTemporaryFile('w+') as h:\n  h.write('x')\n  h.seek(0)\n"
        "  return h.read(), open(h.name).read()", [], ("x", "x")),
    "nameless temporary file": (
        "import tempfile\ndef f():\n with tempfile.TemporaryFile() as h:\n  h.write(b'x')\n  h.seek(0)\n  return h.read()",
        [], b"x"),
    "temporary folder": (
        "import os,tempfile\ndef f():\n with tempfile.TemporaryDirectory() as d:\n"
        "  p=os.path.join(d,'x')\n  open(p,'w').write('1')\n  r=open(p).read()\n return r, os.path.exists(d)",
        [], ("1", False)),
    "path of pathlib": (
        "from pathlib import Path\ndef f():\n p=Path('x')\n p.write_text('\\u00e9')\n r=p.read_text()\n p.unlink()\n"
        " return r, p.exists()", [], ("\u00e9", False)),
    "csv and JSON files": (
        "import csv,json\ndef f():\n with open('t.csv','w',newline='') as h: csv.writer(h).writerow([1,2])\n"
        " json.dump(list(csv.reader(open('t.csv'))), open('t.json','w'))\n return json.load(open('t.json'))",
        [], [["1", "2"]]),
    "file of some size": (
        "def f():\n open('x','wb').write(bytes(6<<20))\n return len(open('x','rb').read())", [], 6 << 20),
    "windows line ends": ("def f(x):\r\n    return x\r\n", [1], 1),
    "tabs": ("def f(x):\n\treturn x", [1], 1),
}  # fmt: skip

_STDIO = {
    "input": ("print(int(input()) + 1)", "4\n", "5\n"),
    "input without a newline": ("print(input())", "x", "x\n"),
    "sys.stdin loop": ("import sys\nfor l in sys.stdin: print(l.strip())", "a\nb\n", "a\nb\n"),
    "sys.stdin.read": ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", "1 2\n3", "6\n"),
    "sys.stdin.buffer": ("import sys\nprint(len(sys.stdin.buffer.read()))", "abc", "3\n"),
    "sys.stdin.readline": ("import sys\ninput = sys.stdin.readline\nprint(input().strip())", "x\n", "x\n"),
    "os.read": ("import os\nprint(os.read(0, 1 << 20).decode())", "x", "x\n"),
    "open(0)": ("print(open(0).read())", "x", "x\n"),
    "/dev/stdin": ("print(open('/dev/stdin').read())", "x", "x\n"),
    "fileinput": ("import fileinput\nfor l in fileinput.input(): print(l, end='')", "a\nb", "a\nb"),
    "iter(input, '')": ("print(list(iter(input, '0')))", "a\n0\n", "['a']\n"),
    "EOFError": ("try:\n while True: print(input())\nexcept EOFError: print('end')", "a\n", "a\nend\n"),
    "print = sys.stdout.write": ("import sys\nprint = sys.stdout.write\nprint('x')", "", "x"),
    "sys.stdout.buffer": ("import sys\nsys.stdout.buffer.write(b'x')", "", "x"),
    "os.write": ("import os\nos.write(1, b'x')", "", "x"),
    "open(1)": ("f = open(1, 'w')\nf.write('x')", "", "x"),
    "print to stderr": ("import sys\nprint('no', file=sys.stderr)\nprint('x')", "", "x\n"),
    "StringIO at exit": (
        "import atexit,io,sys\nsys.stdout=o=io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(o.getvalue()))\nprint('x')", "", "x\n"),
    "redirect": ("import contextlib,io\nb=io.StringIO()\nwith contextlib.redirect_stdout(b): print('no')\nprint('x')", "", "x\n"),
    "sys.exit": ("import sys\nprint('x')\nsys.exit()", "", "x\n"),
    "exit": ("print('x')\nexit(0)", "", "x\n"),
    "os._exit": ("import os\nprint('x', flush=True)\nos._exit(0)", "", "x\n"),
    "main in a thread": (
        "import sys,threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1<<26)\n"
        "def main(): print(input())\nthreading.Thread(target=main).start()", "x\n", "x\n"),
    "pool left open": (
        "from concurrent.futures import ThreadPoolExecutor as T\nt=T(2)\nprint(t.submit(abs,-1).result())",
        "", "1\n"),
    "large input": ("print(len(input()))", "x" * 2_000_000, "2000000\n"),
    "large output": ("print('x' * 900000)", "", "x" * 900000 + "\n"),
    "unicode in and out": ("print(input()[::-1])", "\u00e9\u4e2d\n", "\u4e2d\u00e9\n"),
    "main guard": ("if __name__ == '__main__':\n    print('x')", "", "x\n"),
    "file that must be new": (
        "open('x','x').write(input())\nprint(open('x').read())", "a\n", "a\n"),
    "print into a file": ("print('x', file=open('o','w'))\nprint(open('o').read(), end='')", "", "x\n"),
    "stdin saved first": (
        "import sys,shutil\nshutil.copyfileobj(sys.stdin, open('in','w'))\nprint(sum(map(int, open('in'))))", "1\n2\n", "3\n"),
    "seek": ("import sys\na=sys.stdin.read()\nsys.stdin.seek(0)\nprint(a==sys.stdin.read())", "x", "True\n"),
}  # fmt: skip

FUNCTIONS = {
    name: (dedent(source), given, value) for name, (source, given, value) in _FUNCTIONS.items()
}
STDIO = {name: (dedent(source), given, text) for name, (source, given, text) in _STDIO.items()}
