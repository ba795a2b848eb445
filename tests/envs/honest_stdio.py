"""Correct programs on standard input and output that careless judges fail."""

from __future__ import annotations

from textwrap import dedent

from honest_functions import Honest


def reads(name: str, program: str) -> Honest:
    """A program that prints the sum of all numbers on standard input, however it reads them."""
    tests = [("1 2\n3 4\n", "10\n"), ("5\n", "5"), ("1 1\n1 1\n1 1", "6\n")]
    return Honest(name, "", dedent(program), tests)


def prints(name: str, program: str, *tests: tuple[str, str]) -> Honest:
    return Honest(name, "", dedent(program), list(tests))


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
        "import fileinput\nprint(sum(int(x) for s in fileinput.input() for x in s.split()))\n",
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
        "import sys\nprint(sum(int(x) for s in iter(sys.stdin.readline, '') for x in s.split()))\n",
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

PROGRAMS = [*STDIN, *STDOUT]
