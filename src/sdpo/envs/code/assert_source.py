"""What the trusted process runs beside the task's own code, as source: it has no access to this
package."""

from __future__ import annotations

DECIDE = """
def _decide(condition, values):
    try:
        return bool(condition(*values))
    except (NameError, ImportError):
        raise
    except Exception:
        return False
"""
"""A name or module that is missing is the test's fault; any other error, the value's."""

REPLAY = '''
class _NeedCall(BaseException):
    pass


def _as_exception(kind, message, bases):
    """An exception like the one that the program raised: of a builtin class, one of the task's
    own, or one made for it."""
    import builtins
    found = globals().get(kind, getattr(builtins, kind, None))
    if not (isinstance(found, type) and issubclass(found, Exception)):
        base = next((getattr(builtins, name) for name in bases if hasattr(builtins, name)), None)
        if not (isinstance(base, type) and issubclass(base, Exception)):
            base = Exception
        found = type(kind, (base,), {"__init__": lambda self, *args: None})
    try:
        error = found(message)
    except Exception:
        error = found.__new__(found)
        error.args = (message,)
    return error


def _replay(source, known):
    """Runs a test; `known` = [[call, is_value, value or exception], ...] answers its calls, None:
    the reference."""
    import copy
    calls = []
    state = {"needs": False, "raised": None}

    def stand_in(*arguments, **named):
        if state["needs"]:
            raise _NeedCall  # The test caught the first one.
        calls.append(copy.deepcopy([list(arguments), named]))
        if known is None:
            return _reference(*arguments, **named)
        index = len(calls) - 1
        if index >= len(known) or known[index][0] != calls[index]:
            state["needs"] = True
            raise _NeedCall
        _, is_value, answer = known[index]
        if is_value:
            return answer
        state["raised"] = _as_exception(*answer)
        raise state["raised"]

    scope = dict(globals())
    scope[_stands_for] = stand_in
    _random.seed(0)
    try:
        exec(compile(source, "test", "exec"), scope)
        found = ["pass", calls, ""]
    except _NeedCall:
        found = None
    except Exception as error:
        kind = type(error).__name__
        status = "fail"
        if error is state["raised"]:
            status = "raised"
        elif isinstance(error, (NameError, ImportError)):
            status = "broken"
        found = [status, calls, (kind + ": " + str(error)).rstrip(": ")]
    except BaseException as error:
        found = ["fail", calls, type(error).__name__ + ": " + str(error)]
    return ["need", calls, ""] if state["needs"] else found
'''

PYTEST = '''
def _pytest():
    """The part of pytest that asserts in data sets use."""
    import math, re, sys, types
    try:
        import pytest
        return
    except ImportError:
        pass

    class Failed(AssertionError):
        pass

    class Raises:
        def __init__(self, expected, match=None):
            self.expected, self.match = expected, match
            self.value = self.type = None

        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            if kind is None:
                raise Failed("DID NOT RAISE " + repr(self.expected))
            if not issubclass(kind, self.expected):
                return False
            self.value, self.type = error, kind
            if self.match is not None and not re.search(self.match, str(error)):
                raise Failed("the message does not match " + repr(self.match))
            return True

    def raises(expected, function=None, *arguments, match=None, **named):
        context = Raises(expected, match)
        if function is None:
            return context
        with context:
            function(*arguments, **named)
        return context

    class approx:
        def __init__(self, expected, rel=None, abs=None, nan_ok=False):
            self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

        def __eq__(self, value):
            return self.close(value, self.expected)

        def close(self, value, expected):
            if isinstance(expected, dict):
                return value.keys() == expected.keys() and all(
                    self.close(value[key], expected[key]) for key in expected)
            if isinstance(expected, (list, tuple)):
                return len(value) == len(expected) and all(map(self.close, value, expected))
            if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
                if math.isnan(expected):
                    return self.nan_ok and math.isnan(value)
                rel = 1e-6 if self.rel is None and self.abs is None else self.rel or 0.0
                return math.isclose(value, expected, rel_tol=rel, abs_tol=1e-12
                                    if self.abs is None else self.abs)
            return value == expected

    def fail(reason="", pytrace=True):
        raise Failed(reason)

    module = types.ModuleType("pytest")
    module.raises, module.approx, module.fail = raises, approx, fail
    sys.modules["pytest"] = module

_pytest()
'''
"""Tests of data sets say `pytest.raises` and `pytest.approx`; installed packages are not readable
in the jail."""
