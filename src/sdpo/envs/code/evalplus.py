"""The tests of EvalPlus (`evalplus/humanevalplus`, `evalplus/mbppplus`): lists `inputs` and
`results` in the source of a `test` field, and a loop over them.

Where the loop compares as EvalPlus does everywhere, they become function tests: `values_match` is
the same comparison. Where it has an oracle of its own (roots of a polynomial, sets, a second
reference), each input becomes an assert test that runs this oracle; numpy, of which it needs only
`allclose`, is replaced. A `test` field that is neither is refused, never ignored.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo.envs.code.assert_names import CANDIDATE, parse_python
from sdpo.envs.code.compare import TOLERANCE
from sdpo.envs.code.tasks import CodeTest
from sdpo.envs.table import Line

_COMPARES = "exact_match = out == exp"
"""How EvalPlus's usual comparison begins."""
_ALLCLOSE = """
class np:
    @staticmethod
    def allclose(out, exp, rtol, atol):
        if isinstance(exp, (list, tuple)):
            return len(out) == len(exp) and all(
                np.allclose(*pair, rtol, atol) for pair in zip(out, exp))
        return out == exp or abs(out - exp) <= atol + rtol * abs(exp)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlusTests:
    """Tests of one EvalPlus row.

    Example:
        PlusTests(kind="function", entry_point="add", tests=(CodeTest(input=[1, 2], output=3),))
    """

    kind: Literal["function", "asserts"]
    entry_point: str
    tests: tuple[CodeTest, ...]
    tolerance: float = TOLERANCE


def is_plus_test(source: str) -> bool:
    """Whether `source` is a `test` field of EvalPlus."""
    try:
        return any(_assigned(node) == "inputs" for node in ast.walk(parse_python(source.strip())))
    except (SyntaxError, ValueError):
        return False


def plus_tests(line: Line, source: str, entry_point: str | None) -> PlusTests:
    """The tests in the `test` field `source`; without an `entry_point`, it is what the loop calls.

    Raises `TaskError` for any other form.
    """
    tree = parse_python(source.strip())
    parts = {_assigned(node): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    loops = [loop for loop in loops if ast.unparse(loop.iter).startswith("enumerate(")]
    if len(loops) != 1 or not isinstance(parts.get("inputs"), ast.List):
        raise line.error("test", "expected a list `inputs` and one loop over it, as in EvalPlus")
    body = loops[0].body
    called = [name for name, _ in _calls_on_input(body)]
    entry_point = entry_point or (called[0] if called else None)
    if entry_point is None or not {entry_point, CANDIDATE} & set(called):
        raise line.error("test", "its loop calls no function on an input")
    inputs, results = parts["inputs"], parts.get("results")
    assert isinstance(inputs, ast.List), "checked above"
    expected = results.elts if isinstance(results, ast.List) else [None] * len(inputs.elts)
    if len(expected) != len(inputs.elts) or not inputs.elts:
        raise line.error("test", f"{len(inputs.elts)} inputs and {len(expected)} results")
    pairs = list(zip(inputs.elts, expected, strict=True))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    comparison = functions.get("assertion")
    if comparison is not None and not any(isinstance(n, ast.Assert) for n in ast.walk(comparison)):
        # It compares and asserts nothing: the answer is a match object, whose truth is expected.
        sources = [
            f"assert bool({entry_point}(*{ast.unparse(given)})) == {_text(want)}"
            for given, want in pairs
        ]
        own = tuple(CodeTest(input=source) for source in sources)
        return PlusTests(kind="asserts", entry_point=entry_point, tests=own)
    tolerance = _usual_tolerance(comparison, body)
    if tolerance is not None and isinstance(results, ast.List):
        tests = [
            CodeTest(input=list(_value(line, given)), output=_value(line, want))
            for given, want in pairs
            if want is not None
        ]
        return PlusTests(
            kind="function", entry_point=entry_point, tests=tuple(tests), tolerance=tolerance
        )
    helpers = "\n".join(
        ast.unparse(node)
        for node in tree.body
        if _is_helper(node) and _assigned(node) not in ("inputs", "results")
    )
    loop = "\n".join(map(ast.unparse, body))
    sources = [
        f"{_ALLCLOSE}{helpers}\ninp = {ast.unparse(given)}\nexp = {_text(want)}\n{loop}"
        for given, want in pairs
    ]
    own = tuple(CodeTest(input=source) for source in sources)
    return PlusTests(kind="asserts", entry_point=entry_point, tests=own)


def _is_helper(node: ast.stmt) -> bool:
    """Whether the loop may need the statement; not numpy, not `check` around the loop."""
    match node:
        case ast.For():
            return False
        case ast.FunctionDef(name=name):
            return name != "check"
        case ast.Import(names=[ast.alias(name="numpy")]):
            return False
    return True


def _assigned(node: ast.AST) -> str | None:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def _calls_on_input(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.Call]]:
    """Calls like `f(*inp)`, by the function's name."""
    for statement in body:
        for node in ast.walk(statement):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[ast.Starred(value=ast.Name(id="inp"))]):
                    yield name, node


def _usual_tolerance(comparison: ast.FunctionDef | None, body: Sequence[ast.stmt]) -> float | None:
    """The tolerance of `assertion(f(*inp), exp, tolerance)`; None if the loop does anything else,
    or its comparison is not the usual one."""
    if comparison is None or ast.unparse(comparison.body[0]) != _COMPARES:
        return None
    match body:
        case [
            ast.Expr(
                value=ast.Call(
                    func=ast.Name(id="assertion"),
                    args=[
                        ast.Call(args=[ast.Starred()]),
                        ast.Name(id="exp"),
                        ast.Constant(value=int() | float() as tolerance),
                    ],
                )
            )
        ]:
            return float(tolerance) or TOLERANCE
    return None


def _text(node: ast.expr | None) -> str:
    return "None" if node is None else ast.unparse(node)


def _value(line: Line, node: ast.expr) -> Any:
    """The value of a literal, which may hold `inf`, `nan` and `set([...])`."""
    match node:
        case ast.Name(id="inf" | "nan" as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -float("inf")
        case ast.List(elts=elements):
            return [_value(line, each) for each in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(line, each) for each in elements)
        case ast.Set(elts=elements):
            return {_value(line, each) for each in elements}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_value(line, key): _value(line, each) for key, each in pairs if key}
        case ast.Call(func=ast.Name(id="set"), args=[]):
            return set()
        case ast.Call(func=ast.Name(id="set" | "frozenset"), args=[inner]):
            return set(_value(line, inner))
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))]):
            return float(text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError) as error:
        text = ast.unparse(node)[:80]
        raise line.error("test", f"{text} is not a literal") from error
