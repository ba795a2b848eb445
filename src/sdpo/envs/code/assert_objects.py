"""Tests that use objects of the program over several lines: loops, `try`, `with`, two objects
compared, attributes set.

The objects stay in the program's process, expected values in the trusted one. There the test runs
with stand-ins, and everything it does to an object of the program becomes an *operation*, a line of
source: `_object_0 = Stack()`, `_object_1 = _object_0.push(2)`. The reference solution answers them
first, which reveals all of them; the program's process then carries them out, one after the other,
and returns what came of each; the test runs again on these answers. If it does something else after
another answer, the program's process begins anew with one operation more.

An answer that is plain data is a copy, any other is a stand-in again. Where the reference answers
with plain data, so must the program: an object that claims to equal whatever it is compared with
would otherwise pass. For the same reason a test that compares an object with plain data is refused,
and so are subclasses of the program's classes and objects inside of lists.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from sdpo.envs.code.assert_names import defined_names, loaded, parse_python, stored
from sdpo.sandbox import Failure, Opaque, Outcome

MAX_OPERATIONS = 1000

Operation = list[str]
"""[source of one operation]."""


def stand_in_names(tree: ast.AST, solution: str) -> tuple[str, ...]:
    """Functions and classes of the program that a test uses, without its exceptions: those are
    caught by the reference's classes."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    exceptions = {"Exception", "BaseException"}
    names = set()
    for node in parse_python(solution).body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & exceptions or any(base.endswith(("Error", "Exception")) for base in bases):
                exceptions.add(node.name)
                continue
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
    return tuple(sorted(names & used & defined_names(solution)))


def is_about_state(tree: ast.Module, class_name: str, *, has_reference: bool) -> bool:
    """Whether plain lines do to objects what probes cannot carry: set attributes or items, give an
    object a second name, keep an iterator, or compare objects themselves. What may be an object or
    a value that a method returned counts as an object where there is a reference."""
    made = {class_name}
    for line in tree.body:
        match line:
            case ast.Assign(targets=targets, value=value):
                if any(not isinstance(target, (ast.Name, ast.Tuple)) for target in targets):
                    return True
                if isinstance(value, ast.Name) or _calls(value, {"iter"}):
                    return True
                parts = value.elts if isinstance(value, ast.Tuple) else [value]
                if any(_calls(part, {class_name}) for part in parts) or (
                    has_reference and loaded(value) & made
                ):
                    made |= stored(line)
            case ast.AugAssign(target=ast.Attribute() | ast.Subscript()):
                return True
            case ast.AugAssign(target=ast.Name(id=name)) if name in made:
                return True
            case ast.Assert(test=test):
                if any(_is_bare(node, made) for node in _operands(test)):
                    return True
    return False


def _operands(test: ast.expr) -> list[ast.expr]:
    """What comparisons, functions and `and` are given in an assert; of the assert's own truth, and
    of lengths and lists, a probe is the value."""
    found: list[ast.expr] = []
    for node in ast.walk(test):
        match node:
            case ast.Compare(left=left, comparators=others):
                found += [left, *others]
            case ast.BoolOp(values=values):
                found += [v.operand if isinstance(v, ast.UnaryOp) else v for v in values]
            case ast.Call(func=ast.Name(id=name), args=given) if name not in ("len", "list"):
                found += given
    return found


def _is_bare(node: ast.expr, made: set[str]) -> bool:
    return (isinstance(node, ast.Name) and node.id in made) or _calls(node, made)


def _calls(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def script(operations: Sequence[Operation]) -> str:
    """An expression for the program's process that carries out all operations in order: a list of
    [True, value] or [False, [kind, message, bases] of an exception]."""
    lines = [_BEFORE]
    for place, (source,) in enumerate(operations):
        lines.append(f"try:\n    _object_{place} = {source}\n    _gave(_object_{place})")
        lines.append("except Exception as _error:\n    _failed(_error)")
    return f"(exec({chr(10).join(lines)!r}, globals()), _answers)[1]"


_BEFORE = """
import copy as _copy, operator as _operator
_answers = []
def _gave(value):
    plain = type(value) in (list, tuple, dict, set, frozenset)
    _answers.append([True, _copy.deepcopy(value) if plain else value])
def _failed(error):
    bases = [each.__name__ for each in type(error).__mro__[1:]]
    _answers.append([False, [type(error).__name__, str(error), bases]])
"""


def answers_of(outcome: Outcome, count: int) -> list[list[Any]] | None:
    """The answers that a process returned to `count` operations; None for something else."""
    found = outcome.value
    if not isinstance(found, list) or len(found) != count:
        return None
    for each in found:
        if not (isinstance(each, list) and len(each) == 2 and isinstance(each[0], bool)):
            return None
        if each[0]:
            continue
        match each[1]:
            case [str(), str(), list() as bases] if all(isinstance(base, str) for base in bases):
                continue
        return None
    # What is not plain data is replaced by a stand-in.
    return [
        ["object", each[1].type_name] if isinstance(each[1], Opaque) else each for each in found
    ]


def failure_of(answer: Sequence[Any]) -> Outcome:
    """The exception that an operation raised, as the outcome of a test."""
    kind, message, bases = answer[1]
    failure = Failure(kind=kind, message=message, bases=tuple(bases))
    return Outcome(status="exception", failure=failure)


OBJECTS = '''
class _Refused(BaseException):
    pass


class _Ops:
    """What was done to objects so far, and what came of it."""

    def __init__(self, known):
        self.known, self.calls, self.kinds = known, [], []
        self.needs, self.raised = False, None

    def ask(self, source, run):
        if self.needs:
            raise _NeedCall
        self.calls.append([source])
        place = len(self.calls) - 1
        real = error = None
        try:
            real = run()
        except Exception as caught:
            error = caught
        if self.known is None:
            if error is not None:
                self.kinds.append("error")
                raise error
            if not _is_plain(real):
                if isinstance(real, (list, tuple, dict, set, frozenset)):
                    raise _Refused("objects of the program inside of a " + type(real).__name__)
                self.kinds.append("object")
                return _Thing(self, "_object_%d" % place, real)
            self.kinds.append("value")
            import copy
            return copy.deepcopy(real)
        if place >= len(self.known) or self.known[place][0] != self.calls[place]:
            self.needs = True
            raise _NeedCall
        _, is_value, answer = self.known[place]
        if is_value == "object":
            return _Thing(self, "_object_%d" % place, real)
        if is_value:
            return answer
        self.raised = _as_exception(*answer)
        raise self.raised


def _is_plain(value):
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return True
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(map(_is_plain, [*value.keys(), *value.values()]))


def _source(value):
    if isinstance(value, _Thing):
        return value._name
    if isinstance(value, _Method):
        return value._owner._name + "." + value._called
    if isinstance(value, list):
        return "[" + ", ".join(map(_source, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(_source(each) + ", " for each in value) + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(_source(k) + ": " + _source(v) for k, v in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return type(value).__name__ + "([" + ", ".join(map(_source, value)) + "])"
    if isinstance(value, float) and value - value != 0:
        return "float('%s')" % value
    if isinstance(value, slice):
        return "slice(%s, %s, %s)" % tuple(map(_source, (value.start, value.stop, value.step)))
    if _is_plain(value):
        return repr(value)
    raise _Refused("an argument of the type " + type(value).__name__ + " for the program")


def _real(value):
    if isinstance(value, _Thing):
        return value._real
    if isinstance(value, _Method):
        return getattr(value._owner._real, value._called)
    if isinstance(value, (list, tuple, set)):
        return type(value)(map(_real, value))
    if isinstance(value, dict):
        return {_real(k): _real(v) for k, v in value.items()}
    return value


def _call(ops, name, real, arguments, named):
    given = [_source(each) for each in arguments]
    given += [key + "=" + _source(each) for key, each in named.items()]
    return ops.ask(
        name + "(" + ", ".join(given) + ")",
        lambda: real()(*map(_real, arguments), **{k: _real(v) for k, v in named.items()}),
    )


class _Method:
    def __init__(self, owner, called):
        self._owner, self._called = owner, called

    def __call__(self, *arguments, **named):
        owner = self._owner
        real = lambda: getattr(owner._real, self._called)
        return _call(owner._ops, owner._name + "." + self._called, real, arguments, named)


class _Thing:
    """Stands for an object of the program, or for one of its functions or classes."""

    def __init__(self, ops, name, real):
        self.__dict__.update(_ops=ops, _name=name, _real=real)

    def _ask(self, form, *others):
        """`form` with {0} for this object and {1}, ... for the others."""
        import operator
        real = eval("lambda *_o: " + form.format(*["_o[%d]" % i for i in range(len(others) + 1)]),
                    {"_operator": operator})
        sources = [self._name, *map(_source, others)]
        return self._ops.ask(form.format(*sources), lambda: real(self._real, *map(_real, others)))

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        if callable(getattr(self._real, name, None)):
            return _Method(self, name)
        return self._ask("{0}." + name)

    def __setattr__(self, name, value):
        self._ask("setattr({0}, {1}, {2})", name, value)

    def __delattr__(self, name):
        self._ask("delattr({0}, {1})", name)

    def __call__(self, *arguments, **named):
        return _call(self._ops, self._name, lambda: self._real, arguments, named)

    def __eq__(self, other):
        if other is not None and not isinstance(other, _Thing):
            raise _Refused("an object of the program compared with plain data")
        return self._ask("{0} == {1}", other)

    def __ne__(self, other):
        if other is not None and not isinstance(other, _Thing):
            raise _Refused("an object of the program compared with plain data")
        return self._ask("{0} != {1}", other)

    def __instancecheck__(self, other):
        return isinstance(other, _Thing) and other._ask("isinstance({0}, {1})", self)

    def __mro_entries__(self, bases):
        raise _Refused("a subclass of the program's " + self._name)

    def __enter__(self):
        return self._ask("{0}.__enter__()")

    def __exit__(self, kind, error, trace):
        if kind is None:
            return self._ask("{0}.__exit__(None, None, None)")
        if not issubclass(kind, Exception):
            return False
        form = "{0}.__exit__(%s, %s({1}), None)" % (kind.__name__, kind.__name__)
        return self._ask(form, str(error))

    def __format__(self, form):
        return self._ask("format({0}, {1})", form)

    def __setitem__(self, key, value):
        self._ask("_operator.setitem({0}, {1}, {2})", key, value)

    def __delitem__(self, key):
        self._ask("_operator.delitem({0}, {1})", key)

    def __getitem__(self, key):
        return self._ask("{0}[{1}]", key)

    def __contains__(self, value):
        return self._ask("{1} in {0}", value)


for _n in "len iter next bool str repr hash reversed int float abs round".split():
    setattr(_Thing, "__%s__" % _n, lambda self, *o, _n=_n: self._ask(
        _n + "({0}" + "".join(", {%d}" % (i + 1) for i in range(len(o))) + ")", *o))
for _n, _s in (("neg", "-"), ("pos", "+"), ("invert", "~")):
    setattr(_Thing, "__%s__" % _n, lambda self, _s=_s: self._ask(_s + "{0}"))
for _n, _s in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    setattr(_Thing, "__%s__" % _n, lambda self, o, _s=_s: self._ask("{0} " + _s + " {1}", o))
for _n, _s in (("add", "+"), ("sub", "-"), ("mul", "*"), ("truediv", "/"), ("floordiv", "//"),
               ("mod", "%"), ("pow", "**"), ("matmul", "@"), ("and", "&"), ("or", "|"),
               ("xor", "^"), ("lshift", "<<"), ("rshift", ">>")):
    setattr(_Thing, "__%s__" % _n, lambda self, o, _s=_s: self._ask("{0} " + _s + " {1}", o))
    setattr(_Thing, "__r%s__" % _n, lambda self, o, _s=_s: self._ask("{1} " + _s + " {0}", o))
    setattr(_Thing, "__i%s__" % _n,
            lambda self, o, _n=_n: self._ask("_operator.i" + _n + "({0}, {1})", o))


def _objects(source, names, known):
    """Runs a test; `known` = [[operation, is_value, answer], ...], None: the reference."""
    ops = _Ops(known)
    scope = dict(globals())
    for name in names:
        scope[name] = _Thing(ops, name, globals()[name])
    scope["hasattr"] = lambda o, n: (
        o._ask("hasattr({0}, {1})", n) if isinstance(o, _Thing) else hasattr(o, n))
    scope["type"] = lambda o, *more: (
        o._ask("type({0})") if isinstance(o, _Thing) else type(o, *more))
    _random.seed(0)
    try:
        exec(compile(source, "test", "exec"), scope)
        found = ["pass", ops.calls, "", ops.kinds]
    except _NeedCall:
        found = None
    except _Refused as error:
        found = ["broken", ops.calls, "it uses " + str(error), ops.kinds]
    except Exception as error:
        kind = type(error).__name__
        status = "fail"
        if error is ops.raised:
            status = "raised"
        elif known is None or isinstance(error, ImportError):
            status = "broken"
        found = [status, ops.calls, (kind + ": " + str(error)).rstrip(": "), ops.kinds]
    except BaseException as error:
        found = ["fail", ops.calls, type(error).__name__ + ": " + str(error), ops.kinds]
    return ["need", ops.calls, "", ops.kinds] if ops.needs else found
'''
"""What the trusted process runs beside `REPLAY`, whose exceptions it uses."""
