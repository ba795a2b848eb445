"""Assert lines as calls for the program's process and conditions for elsewhere.

Expected values never enter the process of the program under test. `assert f(5) == 8` becomes the
*probe* `f(5)`, which the program's process evaluates, and the literal 8, which stays with the
judge. A probe is a call or attribute of the program with whatever surrounds it as long as nothing
expected is inside: `Pile().push(1).pop()`, `sorted(f(x))`.

Five forms, tried in this order:

    equals    probe == value         compared by `compare.values_match`; a value that is no literal
                                     (`2.0 / 3.0`) is computed once per task in a *trusted*
                                     process: jailed, but without the program
    truth     probe, not probe       the probe's value is true or false
    identity  probe is True          the probe's value is this constant
    trusted   abs(probe - 1) < 1e-6  the trusted process decides on the probes' values
    replay    loops, several lines   the trusted process runs the test against a stand-in that
                                     records calls, the program's process answers those calls,
                                     and the test is run again on the answers

The trusted process knows the task's reference solution, so that helpers the test uses (HumanEval's
`poly`) exist there. When a test says `candidate`, that name is the program's function and all other
names are the reference's.

Not supported: tests that look at arguments after the call changed them; they fail for every
program, and `check` says so.
"""

from __future__ import annotations

import ast
import builtins
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Form = Literal["equals", "truth", "identity", "trusted", "replay"]

CANDIDATE = "candidate"

_ABSORBED = frozenset(
    function.__name__
    for function in (abs, bool, bytes, dict, float, frozenset, int, len, list, max, min, next)
    + (reversed, round, set, sorted, str, sum, tuple)
)
"""Builtins that may stand around a probe in the program's process. Their other arguments are
constants of the question, and they turn honest iterators into plain data."""

_WARNINGS_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One assert test, taken apart.

    Example:
        Compiled(form="equals", probes=("f(5)",), expected="8", condition="", source="assert f(5) ==
        8")
    """

    form: Form
    probes: tuple[str, ...]
    """Expressions for the program's process; `replay` has none, it learns its calls by running."""
    expected: str = ""
    """`equals`, `identity`: source of the right side. `truth`: `True` or `False`."""
    condition: str = ""
    """`trusted`: expression over `probe_0`, `probe_1`, ..."""
    source: str
    """The test as written."""


def parse_python(source: str) -> ast.Module:
    """The syntax tree; raises SyntaxError or ValueError, and keeps the parser's warnings about
    escapes to itself."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


@lru_cache(maxsize=8192)
def compile_assert(
    source: str, entry_point: str | None, solution: str | None, setup: str
) -> Compiled:
    """The form of one test, given what is known of the program's names."""
    tree = parse_python(source.strip())
    names = _program_names(tree, entry_point, solution, setup)
    replay = Compiled(form="replay", probes=(), source=source)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert):
        return replay
    condition = tree.body[0].test
    finder = _Probes(names, entry_point)
    rest = finder.visit(condition)
    if finder.is_bound or not finder.probes:
        return replay
    probes = tuple(finder.probes)
    return _simple_form(rest, probes, source) or Compiled(
        form="trusted", probes=probes, condition=ast.unparse(rest), source=source
    )


def _simple_form(rest: ast.expr, probes: tuple[str, ...], source: str) -> Compiled | None:
    """`equals`, `truth` or `identity`, when the condition is one of them on a single probe."""
    if len(probes) != 1:
        return None
    if (
        isinstance(rest, ast.UnaryOp)
        and isinstance(rest.op, ast.Not)
        and _is_probe_name(rest.operand)
    ):
        return Compiled(form="truth", probes=probes, expected="False", source=source)
    if _is_probe_name(rest):
        return Compiled(form="truth", probes=probes, expected="True", source=source)
    if not isinstance(rest, ast.Compare) or len(rest.ops) != 1:
        return None
    left, right = rest.left, rest.comparators[0]
    if _is_probe_name(right):
        left, right = right, left
    if not _is_probe_name(left):
        return None
    if isinstance(rest.ops[0], ast.Eq):
        return Compiled(form="equals", probes=probes, expected=ast.unparse(right), source=source)
    if isinstance(rest.ops[0], ast.Is) and isinstance(right, ast.Constant):
        return Compiled(form="identity", probes=probes, expected=ast.unparse(right), source=source)
    return None


def _is_probe_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "probe_0"


def _program_names(
    tree: ast.Module, entry_point: str | None, solution: str | None, setup: str
) -> frozenset[str]:
    """Names that belong to the program: `candidate`, or what the reference defines, or else
    whatever nothing else explains."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if CANDIDATE in used:
        return frozenset({CANDIDATE})
    names = {entry_point} if entry_point else set()
    if solution is not None:
        names |= defined_names(solution)
    if not names & used:
        known = (
            set(dir(builtins))
            | set(sys.stdlib_module_names)
            | (defined_names(setup) if setup else set())
        )
        names = used - known
    return frozenset(names)


@lru_cache(maxsize=2048)
def defined_names(source: str) -> frozenset[str]:
    """Functions, classes and variables at the top level of `source`; none when it does not
    parse."""
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                name.id
                for target in targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name)
            }
    return frozenset(names)


class _Probes(ast.NodeTransformer):
    """Replaces every outermost probe by a name `probe_N` and collects the probes' sources."""

    def __init__(self, names: frozenset[str], entry_point: str | None) -> None:
        self.names = names
        self.entry_point = entry_point
        self.probes: list[str] = []
        self.is_bound = False
        """True when a probe stands where a loop variable may be part of it."""
        self._scopes = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self._is_probe(node):
            self.is_bound |= self._scopes > 0
            self.probes.append(ast.unparse(_Rename(self.entry_point).visit(node)))
            return ast.Name(id=f"probe_{len(self.probes) - 1}", ctx=ast.Load())
        scope = isinstance(
            node,
            (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr),
        )
        self._scopes += scope
        node = super().visit(node)
        self._scopes -= scope
        return node

    def _is_probe(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self.names
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                return self._is_probe(value)
            case ast.Call(func=ast.Name(id=name), args=[first, *others], keywords=keywords) if (
                name in _ABSORBED and name not in self.names
            ):
                values = [*others, *(keyword.value for keyword in keywords)]
                return self._is_probe(first) and all(
                    isinstance(value, ast.Constant) for value in values
                )
            case ast.Call(func=function):
                return self._is_probe(function)
        return False


class _Rename(ast.NodeTransformer):
    """`candidate` by the name the program gives its function."""

    def __init__(self, entry_point: str | None) -> None:
        self.entry_point = entry_point

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id == CANDIDATE and self.entry_point:
            return ast.copy_location(ast.Name(id=self.entry_point, ctx=node.ctx), node)
        return node


def literal(source: str) -> tuple[bool, Any]:
    """(True, value) when `source` is a literal, (False, None) when it must be computed."""
    try:
        return True, ast.literal_eval(source)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False, None


def as_source(value: Any) -> str:
    """Python source of plain data, exact for every float and for ints of any length."""
    match value:
        case bool() | None | str() | bytes():
            return repr(value)
        case int():
            return hex(value)  # decimal digits are limited to 4,300 and slow
        case float():
            return repr(value) if value - value == 0 else f"float('{value}')"
        case complex():
            return f"complex({as_source(value.real)}, {as_source(value.imag)})"
        case list():
            return f"[{', '.join(map(as_source, value))}]"
        case tuple():
            return f"({', '.join(map(as_source, value))}{',' if len(value) == 1 else ''})"
        case frozenset():
            return f"frozenset([{', '.join(map(as_source, value))}])"
        case set():
            return f"set([{', '.join(map(as_source, value))}])"
        case Mapping():
            return f"{{{', '.join(f'{as_source(k)}: {as_source(v)}' for k, v in value.items())}}}"
    raise TypeError(f"{type(value).__name__} is no plain data")


def call_source(entry_point: str, arguments: Iterable[Any]) -> str:
    """`entry_point(argument, ...)` as an expression for the program's process."""
    return f"{entry_point}({', '.join(map(as_source, arguments))})"


TRUSTED_PREAMBLE = "import random as _random\n_random.seed(0)\n"
"""Tests that draw random arguments must draw the same ones when they are replayed."""

_REPLAY = '''
class _NeedCall(BaseException):
    pass


def _replay(source, known):
    """Runs a test with `known` = [[arguments, value], ...] answering its calls; `known` None lets
    the reference answer."""
    import copy
    calls = []

    def candidate(*arguments):
        calls.append(copy.deepcopy(list(arguments)))
        if known is None:
            return _reference(*arguments)
        index = len(calls) - 1
        if index >= len(known) or known[index][0] != calls[index]:
            raise _NeedCall
        return known[index][1]

    scope = dict(globals())
    scope.update({"candidate": candidate, _NAME: _reference if _USES_CANDIDATE else candidate})
    _random.seed(0)
    try:
        exec(compile(source, "test", "exec"), scope)
    except _NeedCall:
        return ["need", calls, ""]
    except Exception as error:
        return ["fail", calls, type(error).__name__ + ": " + str(error)]
    return ["pass", calls, ""]
'''
REPLAY_FUNCTION = "_replay"


def replay_program(
    prelude: str, entry_point: str, *, uses_candidate: bool, has_reference: bool
) -> str:
    """A trusted program whose function `_replay(source, known)` runs a test against recorded
    answers."""
    reference = entry_point if has_reference else "None"
    return (
        f"{prelude}\n{TRUSTED_PREAMBLE}_reference = {reference}\n_NAME = {entry_point!r}\n"
        f"_USES_CANDIDATE = {uses_candidate and has_reference}\n{_REPLAY}"
    )
