"""Takes asserts apart: expressions for the program's process, and conditions to decide elsewhere.

Expected values never enter the process of the program under test. `assert f(5) == 8` becomes the
*probe* `f(5)`, which the program's process evaluates, and the literal 8, which stays with the
judge. A probe is a call or attribute of the program together with what surrounds it, as long as
that contains nothing expected: `Pile().push(1).pop()`, `sorted(f(x))`.

Five forms, tried in this order:

    equals   probe == value         compared by `compare.values_match`; a value that is not a
                                    literal (`2.0 / 3.0`) is computed once per task in a *trusted*
                                    process: jailed, but without the program
    is       probe is True, probe,  the value must be this constant; of a bare probe, its truth
             not probe
    trusted  abs(probe - 1) < 1e-6  the trusted process decides, given the probes' values
    replay   loops, try, with       the trusted process runs the test with a stand-in that records
                                    calls, the program's process answers those calls, and the test
                                    runs again on the answers (`assert_runs.py`); an exception is
                                    an answer: the stand-in raises it where the test may expect it

    objects  s.limit = 5            the same for objects of a class of the program: everything that
             a == b, for x in s     is done to them is carried out in the program's process
                                    (`assert_objects.py`); needs a reference solution

Lines before an assert that build an object (`s = Pile()`, `s.push(1)`) run in the program's process
before each probe that needs them; other lines stay out of it.

The trusted process has the task's reference solution, so helpers that a test uses (HumanEval's
`poly`) exist there. If a test says `candidate`, that name is the program's function, and all other
names are the reference's.

Not supported: replayed tests that look at arguments after a call changed them; they fail for every
program, and `check` says so.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, assert_never

from sdpo.envs.code.assert_names import (
    CANDIDATE,
    is_class,
    loaded,
    parse_python,
    program_names,
    stored,
)
from sdpo.envs.code.assert_objects import is_about_state, stand_in_names

Form = Literal["equals", "is", "trusted", "replay", "objects"]

_ABSORBED = frozenset(
    "abs bool bytes dict float frozenset int len list max min next".split()  # noqa: SIM905
    + "reversed round set sorted str sum tuple".split()  # noqa: SIM905
)
"""Builtins that may surround a probe in the program's process, where they turn honest iterators
into plain data. Their other arguments are constants of the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One assert, taken apart.

    Example:
        Compiled(form="equals", probes=("f(5)",), expected="8", shown="f(5)")
    """

    form: Form
    probes: tuple[str, ...] = ()
    """Expressions for the program's process. A `replay` has none; running it reveals its calls."""
    expected: str = ""
    """`equals`, `is`: source of the expected value."""
    condition: str = ""
    """`trusted`: expression over `probe_0`, `probe_1`, ...; `replay`: the test as written."""
    shown: str = ""
    """The probes as feedback shows them."""
    claim: str = ""
    """`trusted`: the condition as feedback shows it."""
    function: str = ""
    """`replay`: the name whose calls are recorded."""
    names: tuple[str, ...] = ()
    """`objects`: functions and classes of the program that the test uses."""
    expects_errors: bool = False
    """`replay`: whether the test handles exceptions of the program."""


@lru_cache(maxsize=8192)
def compile_test(
    source: str, entry_point: str | None, solution: str | None, setup: str
) -> tuple[Compiled, ...]:
    """The asserts of one test, all of which must hold; the other arguments tell which names are the
    program's.

    Raises ValueError if the test calls nothing of the program.
    """
    tree = parse_python(source.strip())
    names = program_names(tree, entry_point, solution, setup)
    *lines, last = tree.body
    has_state = entry_point is not None and is_class(entry_point, solution)
    if has_state and is_about_state(tree, entry_point or "", has_reference=solution is not None):
        return _of_objects(source, tree, entry_point or "", solution)
    if isinstance(last, ast.Assert) and all(isinstance(line, _PLAIN_LINES) for line in lines):
        asserts = [
            _compile_assert(line, tree.body[:index], names, entry_point)
            for index, line in enumerate(tree.body)
            if isinstance(line, ast.Assert)
        ]
        if None not in asserts:
            return tuple(each for each in asserts if each is not None)
    used = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]
    if not used:
        raise ValueError(f"the test calls nothing of the program: {source.strip()[:80]}")
    if entry_point is None and solution is None and len(set(used)) > 1:
        several = ", ".join(sorted(set(used)))
        raise ValueError(f"which of {several} is the program's function? Name it as entry_point")
    function = entry_point or used[0]
    if is_class(function, solution):
        return _of_objects(source, tree, function, solution)
    expects_errors = any(isinstance(node, (ast.Try, ast.With)) for node in ast.walk(tree))
    return (
        Compiled(
            form="replay",
            condition=source,
            shown=function,
            function=function,
            expects_errors=expects_errors or "assertRaises" in source or "raises(" in source,
        ),
    )


def _of_objects(
    source: str, tree: ast.Module, class_name: str, solution: str | None
) -> tuple[Compiled, ...]:
    """A test whose objects are stand-ins. Raises ValueError without a reference that says what
    they answer."""
    if solution is None:
        raise ValueError(
            f"lines around objects of the class {class_name} (loops, try, with, attributes, "
            "objects compared) need a reference_solution: it tells which answers are plain data; "
            "give one, or assert what methods return after lines that build the objects"
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(op, (ast.Is, ast.IsNot)) and not isinstance(other, ast.Constant)
            for op, other in zip(node.ops, node.comparators, strict=True)
        ):
            raise ValueError(
                f"whether two objects of the class {class_name} are the same cannot be seen from "
                f"outside its process: {ast.unparse(node)}; compare what they do"
            )
    names = stand_in_names(tree, solution)
    return (Compiled(form="objects", condition=source, shown=source, names=names),)


def own_sources(compiled: Compiled) -> tuple[str, ...]:
    """What the trusted process runs of a test; the names that stand for the program are bound."""
    match compiled.form:
        case "equals" | "is":
            return (compiled.expected,)
        case "trusted":
            names = ", ".join(f"probe_{index}" for index in range(len(compiled.probes)))
            return (f"lambda {names}: {compiled.condition}",)
        case "replay":
            names = f"{compiled.function} = {CANDIDATE} = None"
            return (f"{names}\n{compiled.condition}",)
        case "objects":
            names = "".join(f"{name} = " for name in compiled.names)
            return (f"{names}None\n{compiled.condition}",)
        case _:
            assert_never(compiled.form)


_PLAIN_LINES = (ast.Assert, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr)


def _compile_assert(
    line: ast.Assert, before: Sequence[ast.stmt], names: frozenset[str], entry_point: str | None
) -> Compiled | None:
    """One assert of a test without loops; None if only a replay can decide it."""
    lines = [each for each in before if not isinstance(each, ast.Assert)]
    finder = _Probes(names | _objects(lines, names))
    rest = finder.visit(copy.deepcopy(line.test))
    bound = {name for each in lines for name in stored(each)}
    if finder.is_bound or not finder.probes or (loaded(rest) & bound):
        return None
    rename = _Rename(entry_point)
    needed = [rename.visit(copy.deepcopy(each)) for each in _needed(lines, finder.probes, names)]
    probes = tuple(ast.unparse(rename.visit(probe)) for probe in finder.probes)
    script = "\n".join(map(ast.unparse, needed))
    shown = "\n".join([script, ", ".join(probes)]).lstrip("\n")
    if needed:
        probes = tuple(f"(exec({script!r}, globals()), {probe})[1]" for probe in probes)
    simple = _simple_form(rest, probes, shown)
    return simple or Compiled(
        form="trusted",
        probes=probes,
        condition=ast.unparse(rest),
        shown=shown,
        claim=ast.unparse(rename.visit(copy.deepcopy(line.test))),
    )


def _objects(lines: Sequence[ast.stmt], names: frozenset[str]) -> frozenset[str]:
    """Variables whose values the program made or may have changed."""
    bound = {name for line in lines for name in stored(line)}
    objects: set[str] = set()
    for line in lines:
        if loaded(line) & (names | objects):
            objects |= stored(line) | (loaded(line) & bound)
    return frozenset(objects)


def _needed(
    lines: Sequence[ast.stmt], probes: Sequence[ast.expr], names: frozenset[str]
) -> list[ast.stmt]:
    """The lines that the probes depend on, in order.

    `expected = [1, 2]` is not among them: what it binds must not reach the program's process. An
    assignment is needed for what it binds, a bare call for what it may change.
    """
    bound = {name for line in lines for name in stored(line)}
    wanted = {name for probe in probes for name in loaded(probe)} & bound
    needed: list[ast.stmt] = []
    while True:
        more = [
            line
            for line in lines
            if line not in needed
            and (
                stored(line) & wanted
                or (isinstance(line, ast.Expr) and loaded(line) & (wanted | names))
            )
        ]
        if not more:
            return [line for line in lines if line in needed]
        needed += more
        wanted |= {name for line in more for name in loaded(line)} & bound


def _simple_form(rest: ast.expr, probes: tuple[str, ...], shown: str) -> Compiled | None:
    """`equals` or `is`, if the condition is one of these on a single probe."""
    if len(probes) != 1:
        return None
    match rest:
        case ast.Name():
            return _truth(probes[0], "True", shown)
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id="probe_0")):
            return _truth(probes[0], "False", shown)
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[ast.Name(id="probe_0")]):
            right, form = left, "equals"
        case ast.Compare(left=ast.Name(id="probe_0"), ops=[ast.Eq()], comparators=[right]):
            form = "equals"
        case ast.Compare(
            left=ast.Name(id="probe_0"), ops=[ast.Is()], comparators=[ast.Constant() as right]
        ):
            form = "is"
        case _:
            return None
    if "probe_0" in loaded(right):
        return None
    return Compiled(form=form, probes=probes, expected=ast.unparse(right), shown=shown)


def _truth(probe: str, expected: str, shown: str) -> Compiled:
    # Truth is evaluated where the object is: a regex match or a tree node is not plain data.
    return Compiled(form="is", probes=(f"bool({probe})",), expected=expected, shown=shown)


class _Probes(ast.NodeTransformer):
    """Collects the outermost probes and replaces each by a name `probe_N`."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.probes: list[ast.expr] = []
        self.is_bound = False
        """True if a probe is inside a comprehension or lambda, whose variables it may use."""
        self._scopes = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self._is_probe(node):
            self.is_bound |= self._scopes > 0
            self.probes.append(node)
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
    """Replaces `candidate` by the name of the program's function."""

    def __init__(self, entry_point: str | None) -> None:
        self.entry_point = entry_point

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id == CANDIDATE and self.entry_point:
            return ast.copy_location(ast.Name(id=self.entry_point, ctx=node.ctx), node)
        return node


def literal(source: str) -> tuple[bool, Any]:
    """(True, value) if `source` is a literal, (False, None) if it must be computed."""
    try:
        return True, ast.literal_eval(source)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False, None


def as_source(value: Any) -> str:
    """Python source of plain data, exact for every float and for ints of any length. Raises
    TypeError for other values."""
    match value:
        case bool() | None | str() | bytes():
            return repr(value)
        case int():
            # Python limits decimal conversion to 4,300 digits, and it takes quadratic time.
            return repr(value) if value.bit_length() < 64 else hex(value)
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
    raise TypeError(f"{type(value).__name__} is not plain data")
