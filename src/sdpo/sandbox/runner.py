"""The program's side: reads one input at a time, runs the program, answers with a value or an exception's text.

Runs inside `python -I -S` without this package; see zygote.py. Nothing here is trusted by the judge: it can at most give a
wrong answer. Values are encoded by exact type, so no method of the program's objects runs while they are.
"""

import io
import json
import os
import struct
import sys
import types

MAX_DEPTH = 150
MAX_VALUE_BYTES = 4 << 20
MAX_FRAMES = 12
FILENAME = "Solution.py"


class TooLarge(Exception):
    pass


def encode(value, depth=0):
    """Tagged plain data; anything else becomes its type's name."""
    if depth > MAX_DEPTH:
        return {"o": "deeply nested value"}
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(2**53) <= value <= 2**53 else {"i": hex(value)}
    if kind is float:
        return {"f": value.hex() if value == value else "nan"}
    if kind is list:
        return [encode(item, depth + 1) for item in value]
    if kind is tuple:
        return {"t": [encode(item, depth + 1) for item in value]}
    if kind is set or kind is frozenset:
        return {"s": [encode(item, depth + 1) for item in value]}
    if kind is dict:
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]}
    if kind is bytes or kind is bytearray:
        return {"b": bytes(value).hex()}
    return encode_subclass(value, kind, depth)


def encode_subclass(value, kind, depth):
    """Base-class content of a subclass of a plain type (namedtuple, defaultdict, IntEnum, ...)."""
    for base in (bool, int, float, str, bytes):
        if issubclass(kind, base):
            plain = base.__new__(base, value) if base is not int else int.__add__(value, 0)
            if base is str:
                plain = str.__str__(value) if type(str.__str__(value)) is str else "".join(str.__iter__(value))
            if base is float:
                plain = float.__add__(value, 0.0)
            return encode(plain, depth)
    for base, build in ((list, list), (tuple, tuple), (set, set), (frozenset, set)):
        if issubclass(kind, base):
            return encode(build(base.__iter__(value)), depth)
    if issubclass(kind, dict):
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]}
    return {"o": kind.__name__ if type(kind.__name__) is str else "object"}


def decode(data):
    """Arguments back from tagged plain data."""
    if type(data) is list:
        return [decode(item) for item in data]
    if type(data) is not dict:
        return data
    (tag, body), = data.items()
    if tag == "i":
        return int(body, 16)
    if tag == "f":
        return float.fromhex(body) if body != "nan" else float("nan")
    if tag == "t":
        return tuple(decode(item) for item in body)
    if tag == "s":
        return {decode(item) for item in body}
    if tag == "d":
        return {decode(k): decode(v) for k, v in body}
    return bytes.fromhex(body)


def describe(error, skip_setup):
    """Kind, message and the program's own frames of an exception, outermost first."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILENAME:
            frames.append([trace.tb_lineno, code.co_name])
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        frames.append([error.lineno or 1, "<module>"])
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:
        message = ""
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    return {"k": type(error).__name__, "m": str(message)[:2000], "f": frames}


def fresh_module():
    """A new `__main__` for each input: globals and default arguments do not leak between tests."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    return module.__dict__


def call(namespace, job, request):
    if job["mode"] == "expressions":
        return eval(compile(request["x"], "<test>", "eval"), namespace)
    name = job["fn"]
    function = namespace.get(name)
    if function is None and "Solution" in namespace and hasattr(namespace["Solution"], name):
        function = getattr(namespace["Solution"](), name)
    if function is None:
        raise NameError(f"name '{name}' is not defined")
    return function(*decode(request["x"]))


def open_streams(stdin_fd):
    os.dup2(stdin_fd, 0)
    os.lseek(0, 0, 0)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace")
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8", errors="replace"
    )
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout


def flush():
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        pass


def answer(job, code, setup, request, fds):
    """The reply to one request."""
    open_streams(fds["stdin"])
    if fds["stdout"] != 1:
        os.dup2(fds["stdout"], 1)
    namespace = fresh_module()
    try:
        if isinstance(code, SyntaxError):
            raise code
        if setup is not None:
            exec(setup, namespace)
        exec(code, namespace)
        value = None if job["mode"] == "stdio" else call(namespace, job, request)
        flush()
        reply = {"v": encode(value)}
        text = json.dumps(reply)
        return {"big": 1} if len(text) > MAX_VALUE_BYTES else reply
    except SystemExit as end:
        flush()
        status = end.code
        if status is None:
            status = 0
        return {"x": status if type(status) is int else 1}
    except MemoryError:
        namespace.clear()
        return {"mem": 1}
    except RecursionError as error:
        flush()
        return {"e": describe(error, setup)}
    except BaseException as error:
        flush()
        return {"e": describe(error, setup)}


def compile_or_error(source, name):
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error))


def read_exactly(fd, count):
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 16))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(fds):
    """Answer requests until the judge closes the pipe."""
    read, write = fds["commands"], fds["results"]

    def receive():
        (length,) = struct.unpack(">I", read_exactly(read, 4))
        return json.loads(read_exactly(read, length))

    def send(message):
        data = json.dumps(message).encode()
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(write, data) :]

    job = receive()
    code = compile_or_error(job["code"], FILENAME)
    setup = compile_or_error(job["setup"], "<setup>") if job["setup"] else None
    while True:
        request = receive()
        reply = answer(job, code, setup, request, fds)
        reply["n"] = request["n"]
        send(reply)
