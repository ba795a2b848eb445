"""Which names of an assert test are the program's, and which the judge's own process must know.

A test that uses a name nobody defines cannot be decided. It is refused when its file is loaded: at
judging time it would fail every program, and the feedback would blame them for it.
"""

from __future__ import annotations

import ast
import builtins
import sys
import threading
import warnings
from collections.abc import Iterable
from functools import lru_cache

CANDIDATE = "candidate"

STAND_INS = frozenset({"pytest"})
"""Modules that the trusted process has although it cannot see installed packages
(`assert_source.py`)."""

_WARNINGS_LOCK = threading.Lock()
_BUILTINS = frozenset({*dir(builtins), "__name__", "__file__"})


def parse_python(source: str) -> ast.Module:
    """The syntax tree of `source`, without the parser's warnings about escapes. Raises SyntaxError
    or ValueError."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (MemoryError, RecursionError) as error:
            # The parser's own words are "too many nested parentheses" at best.
            raise ValueError("too deeply nested") from error


def loaded(node: ast.AST) -> set[str]:
    """Variables that `node` reads and does not itself bind."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} - bound(node)


def stored(node: ast.AST) -> set[str]:
    """Variables that `node` assigns to."""
    return {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


def bound(node: ast.AST) -> set[str]:
    """Names that `node` binds anywhere inside: variables, arguments, imports, functions."""
    names = stored(node)
    for each in ast.walk(node):
        match each:
            case ast.Import() | ast.ImportFrom():
                names |= {(alias.asname or alias.name).split(".")[0] for alias in each.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(each.name)
            case ast.arg():
                names.add(each.arg)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                names.add(name)
    return names


def program_names(
    tree: ast.Module, entry_point: str | None, solution: str | None, setup: str
) -> frozenset[str]:
    """Names that belong to the program: `candidate`, or what the reference defines, or else every
    name that nothing else defines."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if CANDIDATE in used:
        return frozenset({CANDIDATE})
    names = {entry_point} if entry_point else set()
    if solution is not None:
        names |= defined_names(solution)
    if not names & used:
        names = used - _BUILTINS - sys.stdlib_module_names - bound(tree) - _bound_in(setup)
    return frozenset(names)


@lru_cache(maxsize=2048)
def called_names(tests: tuple[str, ...], solution: str | None, setup: str) -> tuple[str, ...]:
    """Names of the program that tests without an entry point use."""
    trees = [parse_python(test.strip()) for test in tests]
    names = {
        name for tree in trees for name in loaded(tree) & program_names(tree, None, solution, setup)
    }
    return tuple(sorted(names))


@lru_cache(maxsize=2048)
def defined_names(source: str) -> frozenset[str]:
    """Functions, classes and variables at the top level of `source`; empty if it does not parse."""
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


def is_class(name: str, solution: str | None) -> bool:
    """Whether `name` is a class of the reference, or looks like one where there is none."""
    tree = _parsed(solution) if solution else None
    if tree is None:
        return name[:1].isupper()
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)


def missing_names(own: Iterable[str], defining: Iterable[str]) -> list[str]:
    """Names that the sources `own`, which the trusted process runs, use although neither they nor
    the sources `defining` bind them; also modules that this process cannot import."""
    trees = [tree for source in own if (tree := _parsed(source)) is not None]
    others = [tree for source in defining if (tree := _parsed(source)) is not None]
    if any(_imports_all(tree) for tree in (*trees, *others)):
        return [module for tree in trees for module in _foreign_modules(tree)]
    known = _BUILTINS.union(*map(bound, others))
    names = {name for tree in trees for name in loaded(tree) - known}
    return sorted(names.union(*map(_foreign_modules, trees)))


def _foreign_modules(tree: ast.Module) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    return modules - sys.stdlib_module_names - STAND_INS


def _imports_all(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        for node in ast.walk(tree)
    )


def _parsed(source: str) -> ast.Module | None:
    try:
        return parse_python(source.strip())
    except (SyntaxError, ValueError):
        return None


@lru_cache(maxsize=2048)
def _bound_in(source: str) -> frozenset[str]:
    tree = _parsed(source)
    return frozenset() if tree is None else frozenset(bound(tree))
